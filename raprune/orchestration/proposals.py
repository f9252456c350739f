"""What to try next: Optuna's ask and tell in a fixed order. Knows no Ray.

Proposal n is asked when exactly the results 0 to n - lookahead have been told, in that order, so that a seed gives the
same search whatever the number of workers and whoever finishes first.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import optuna
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler

from raprune.candidate import Setting
from raprune.errors import StoreError
from raprune.orchestration.promotion import Outcome
from raprune.spec import SamplerSpec
from raprune.trial import Proposal, Stage, Trial, TrialState

RATIOS = "ratios"
"""The allocation that follows a keep ratio for each block of groups."""

MAX_BLOCKS = 32
_LOWEST_RATIO = 0.05
_GOLDEN = 0.6180339887498949
_WARM_TARGETS = 3


@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """What the search chooses among."""

    methods: tuple[str, ...]
    allocations: tuple[str, ...]
    """`ratios` among them draws a keep ratio for each block."""
    blocks: tuple[tuple[str, ...], ...]
    """Names of the groups that share one keep ratio, in network order."""
    lowest: float
    highest: float
    """Range of the sampled target, as fractions of the dense network."""
    target: str = "flops"
    """`flops` or `params`: which cost the sampled target is of."""
    params_limit: float | None = None
    """A fixed bound on the parameters beside a sampled `flops` target."""
    controls: tuple[str, ...] = ()
    """Methods that are tried at first and not searched over."""
    fixed: Mapping[str, Mapping[str, Setting]] = field(default_factory=dict)
    """Method -> hyper-parameters that every proposal of it has."""
    settings: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    """Method -> name of a hyper-parameter -> `{"choices": [...]}` or `{"low", "high"}`, with `"log"` and `"int"`, and
    its `"default"`."""


def make_blocks(group_names: Sequence[str], max_blocks: int = MAX_BLOCKS) -> tuple[tuple[str, ...], ...]:
    """Contiguous blocks of near-equal size, one for each group when there are at most `max_blocks`."""
    edges = np.linspace(0, len(group_names), min(len(group_names), max_blocks) + 1).round().astype(int)
    return tuple(tuple(group_names[a:b]) for a, b in pairwise(edges))


class Proposals:
    """The search's proposals, one after another. `stored` trials are told in their turn instead of being proposed."""

    def __init__(
        self,
        space: SearchSpace,
        spec: SamplerSpec,
        *,
        seed: int,
        stored: Sequence[Trial] = (),
    ) -> None:
        self._space = space
        self._spec = spec
        self._seed = seed
        self._limit = spec.trials
        searched = [trial for trial in stored if trial.proposal.stage is Stage.SEARCH and trial.proposal.step is None]
        self._stored = {trial.trial_id: trial for trial in searched}
        if any(trial.proposal.stage is Stage.FINETUNE for trial in stored):
            # The search had ended when the first finalist was chosen, by its time limit perhaps.
            self._limit = min(self._limit, len(self._stored))
        self._controls = _controls(space, spec.trials)
        self._warm = _warm_starts(space, spec.trials)
        self._study = _make_study(spec, seed, num_warm=len(self._warm))
        self._asked: list[optuna.Trial | None] = []
        """What the sampler was asked for; None for a control, which it does not hear of."""
        self._results: dict[int, Outcome] = {}
        self._told = 0
        self.proposals: dict[str, Proposal] = {}
        """Trial id -> every proposal so far, stored ones as well."""

    @property
    def outcomes(self) -> list[Outcome]:
        """Of all finished search trials, in the order of proposal."""
        return [self._results[number] for number in sorted(self._results)]

    @property
    def over(self) -> bool:
        """Whether everything is proposed and every result is in."""
        return len(self._asked) >= self._limit and len(self._results) == len(self._asked)

    @property
    def total(self) -> int:
        return self._limit

    def stop(self) -> None:
        """Propose nothing new from now on."""
        self._limit = min(self._limit, len(self._asked))

    def next(self) -> Proposal | None:
        """The next proposal to run; None while it waits for a result, or when there is none.

        Raises:
            StoreError: if a stored trial is not what this search proposes in its place.
        """
        while (number := len(self._asked)) < self._limit and self._ready(number):
            proposal = self._ask(number)
            self.proposals[proposal.trial_id] = proposal
            trial = self._stored.get(proposal.trial_id)
            if trial is None:
                return proposal
            _check_same(trial.proposal, proposal)
            self.tell(number, Outcome.of(trial))
        return None

    def tell(self, number: int, outcome: Outcome) -> None:
        """Take the result of a proposal; the sampler hears of it in its turn."""
        assert number not in self._results, f"proposal {number} was told twice"
        self._results[number] = outcome

    def _ready(self, number: int) -> bool:
        needed = max(0, number - self._spec.lookahead + 1)
        return all(i in self._results for i in range(self._told, needed))

    def _ask(self, number: int) -> Proposal:
        for due in range(self._told, max(0, number - self._spec.lookahead + 1)):
            outcome, asked = self._results[due], self._asked[due]
            if asked is not None and outcome.state is TrialState.COMPLETE:
                self._study.tell(asked, outcome.point)
            elif asked is not None:
                self._study.tell(asked, state=optuna.trial.TrialState.FAIL)
            self._told = due + 1
        if number < len(self._controls):
            self._asked.append(None)
            return self._control(number)
        self._study.enqueue_trial(self._fixed(number - len(self._controls)))
        trial = self._study.ask()
        self._asked.append(trial)
        return _to_proposal(trial, self._space, number=number, seed=self._seed)

    def _control(self, number: int) -> Proposal:
        space = replace(self._space, methods=self._space.controls, settings={})
        asked = optuna.trial.FixedTrial(self._controls[number])
        return _to_proposal(asked, space, number=number, seed=self._seed)

    def _fixed(self, number: int) -> dict[str, Any]:
        """What is not left to the sampler: everything at first, then the target, which covers its range evenly."""
        if number < len(self._warm):
            return self._warm[number]
        start = np.random.default_rng(self._seed).random()
        share = (start + _GOLDEN * number) % 1.0
        # Evenly on a logarithmic scale: accuracy falls with each halving of the cost, not with each percent of it.
        return {
            "target": min(self._space.highest, self._space.lowest * (self._space.highest / self._space.lowest) ** share)
        }


def _warm_starts(space: SearchSpace, num_trials: int) -> list[dict[str, Any]]:
    """Every method, as its paper sets it, with every allocation that needs no ratios, the highest target first."""
    starts = [
        {"target": target, "allocation": allocation, "method": method, **_defaults(space, method)}
        for target in _ladder(space)
        for allocation in space.allocations
        if allocation != RATIOS
        for method in space.methods
    ]
    return starts[: max(1, num_trials // 4)]


def _controls(space: SearchSpace, num_trials: int) -> list[dict[str, Any]]:
    """Every control with the allocations that need no ratios, the highest target first; some trials are left."""
    simple = [name for name in space.allocations if name != RATIOS]
    controls = [
        {"target": target, "allocation": allocation, "method": method}
        for target in _ladder(space)
        for allocation in simple or space.allocations
        for method in space.controls
    ]
    return controls[: min(num_trials - 1, max(len(space.controls), num_trials // 4))]


def _ladder(space: SearchSpace) -> list[float]:
    """Targets spread over the range, the highest first."""
    targets = np.geomspace(space.highest, space.lowest, _WARM_TARGETS).clip(space.lowest, space.highest)
    return list(dict.fromkeys(targets.tolist()))


def _defaults(space: SearchSpace, method: str) -> dict[str, Setting]:
    return {f"{method}.{name}": options["default"] for name, options in space.settings.get(method, {}).items()}


def _make_study(spec: SamplerSpec, seed: int, *, num_warm: int) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        # Options of the sampler that older Optuna calls experimental.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.create_study(
            directions=["minimize", "minimize"],
            sampler=SAMPLERS[spec.sampler](spec, seed, num_warm),
        )


def _tpe(spec: SamplerSpec, seed: int, num_warm: int) -> BaseSampler:
    # Warm starts draw no ratios: without random draws after them the sampler would hardly ever try some. One joint
    # density instead of one for each dimension is also three times as fast (9 ms a proposal at 32 ratios).
    startup = num_warm + max(8, spec.trials // 8)
    return TPESampler(
        seed=seed,
        n_startup_trials=startup,
        multivariate=True,
        group=True,
        constant_liar=True,
    )


def _nsga2(spec: SamplerSpec, seed: int, num_warm: int) -> BaseSampler:
    return NSGAIISampler(seed=seed, population_size=max(8, min(50, spec.trials // 4)))


def _random(spec: SamplerSpec, seed: int, num_warm: int) -> BaseSampler:
    return RandomSampler(seed=seed)


SAMPLERS: dict[str, Callable[[SamplerSpec, int, int], BaseSampler]] = {
    "tpe": _tpe,
    "nsga2": _nsga2,
    "random": _random,
}


def _to_proposal(trial: optuna.trial.BaseTrial, space: SearchSpace, *, number: int, seed: int) -> Proposal:
    method = trial.suggest_categorical("method", space.methods)
    allocation = trial.suggest_categorical("allocation", space.allocations)
    target = trial.suggest_float("target", space.lowest, space.highest, log=True)
    ratios: dict[str, float] = {}
    if allocation == RATIOS:
        for index, block in enumerate(space.blocks):
            ratio = trial.suggest_float(f"keep.{index}", _LOWEST_RATIO, 1.0)
            ratios |= dict.fromkeys(block, ratio)
    searched = space.settings.get(method, {})
    settings = {
        **space.fixed.get(method, {}),
        **{name: _suggest(trial, f"{method}.{name}", options) for name, options in searched.items()},
    }
    of_flops = space.target == "flops"
    return Proposal(
        number=number,
        method=method,
        allocation=allocation,
        target_flops=target if of_flops else 1.0,
        target_params=space.params_limit if of_flops else target,
        settings=settings,
        keep_ratios=ratios,
        seed=trial_seed(seed, number),
    )


def trial_seed(seed: int, number: int) -> int:
    """A seed for each trial, in [0, 2**31)."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0] >> 1)


def _suggest(trial: optuna.trial.BaseTrial, name: str, options: Mapping[str, Any]) -> Setting:
    if "choices" in options:
        choice: Setting = trial.suggest_categorical(name, options["choices"])
        return choice
    log = bool(options.get("log", False))
    if options.get("int", False):
        return trial.suggest_int(name, int(options["low"]), int(options["high"]), log=log)
    return trial.suggest_float(name, options["low"], options["high"], log=log)


def _check_same(stored: Proposal, proposal: Proposal) -> None:
    for name in (
        "method",
        "allocation",
        "target_flops",
        "target_params",
        "settings",
        "keep_ratios",
        "seed",
    ):
        before, now = getattr(stored, name), getattr(proposal, name)
        if (dict(before) if isinstance(before, Mapping) else before) != (
            dict(now) if isinstance(now, Mapping) else now
        ):
            raise StoreError(
                f"{proposal.trial_id}: the run's store has {name} {before!r}, and this search proposes {now!r}.",
                hint="The code, Optuna or the job changed since the run began. Resume with the versions that run.json "
                "names, or begin a new run with another --output.",
            )
