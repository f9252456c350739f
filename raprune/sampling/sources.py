"""The search's proposals: Optuna's ask and tell in a fixed order. Knows no Ray.

Proposal n is asked when exactly the results 0 to n - lookahead have been told, in that order, so that a seed and a
lookahead give the same search whatever the number of workers and whoever finishes first.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import optuna
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler

from raprune.errors import StoreError
from raprune.records import Proposal, Setting, Stage, Trial, TrialState
from raprune.sampling.halving import SuccessiveHalving
from raprune.sampling.mutation import Seen, child_of, targets_in
from raprune.sampling.promotion import Outcome
from raprune.spec.budget import Budget
from raprune.spec.job import SamplerSpec
from raprune.store.rows import target_columns

RATIOS = "ratios"
"""The allocation that follows a keep ratio for each block of groups."""
LEAST_DAMAGE = "least_damage"
"""The one that follows what the method predicts."""

MAX_BLOCKS = 32
_LOWEST_RATIO = 0.05
_GOLDEN = 0.6180339887498949
_CONTROL_TARGETS = 3
_CONTROL_ALLOCATIONS = ("uniform",)
"""Allocations of the baselines if every allocation of the search needs ratios."""
_WARM_TURNS = 3
_SAMPLED_EVERY = 6
"""After the warm starts one in six proposals of `mixed` is TPE's; the others are mutations of the front."""
_CONTROLS_EVERY = 4
_STARTUP = 16
"""Random draws after the warm starts, at most: a search that its time ends may be asked for any number of trials."""


@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """The search space: the values that the search chooses among."""

    methods: tuple[str, ...]
    allocations: tuple[str, ...]
    """`ratios` among them draws a keep ratio for each block."""
    blocks: tuple[tuple[str, ...], ...]
    """Names of the groups that share one keep ratio, in network order."""
    lowest: float
    highest: float
    """Range of the sampled target, as fractions of the dense network."""
    target: str = "flops"
    """`flops`, `params` or `latency`: which cost the sampled target is of."""
    cost: str = "flops"
    """`flops` or `latency`: what accuracy is set against."""
    limits: Budget = field(default_factory=Budget)
    """Fixed limits of the costs that the sampled target is not of."""
    channels: Mapping[str, int] = field(default_factory=dict)
    """Group name -> its number of channels."""
    controls: tuple[str, ...] = ()
    """Methods that are tried at first and not searched over."""
    fixed: Mapping[str, Mapping[str, Setting]] = field(default_factory=dict)
    """Method -> hyper-parameters that every proposal of it has."""
    settings: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    """Method -> name of a hyper-parameter -> `{"choices": [...]}` or `{"low", "high"}`, with `"log"` and `"int"`, and
    its `"default"`."""


@dataclass(frozen=True, kw_only=True)
class EarlierResult:
    """A result of an earlier run."""

    run: str
    trial_id: str
    method: str
    settings: Mapping[str, Setting]
    allocation: str
    target: float | None
    """Target of its proposal in the cost that this search targets; None: its target is another cost."""
    keep_ratios: Mapping[str, float]
    widths: Mapping[str, int]
    """Group name -> how many channels stayed."""
    accuracy: float
    flops_fraction: float
    params_fraction: float
    latency_fraction: float | None

    def point(self, cost: str) -> tuple[float, float]:
        """As `Outcome.point`."""
        share = self.flops_fraction if cost == "flops" else self.latency_fraction
        return (1.0 - self.accuracy, 1.0 if share is None else share)


@dataclass(frozen=True, kw_only=True)
class Earlier:
    """Results of earlier runs that a search uses."""

    first: tuple[EarlierResult, ...] = ()
    """Results whose widths the search proposes first."""
    observed: tuple[EarlierResult, ...] = ()
    """Results that the search treats as its own."""


def make_blocks(group_names: Sequence[str], max_blocks: int = MAX_BLOCKS) -> tuple[tuple[str, ...], ...]:
    """Contiguous blocks of near-equal size, one for each group when there are at most `max_blocks`."""
    edges = np.linspace(0, len(group_names), min(len(group_names), max_blocks) + 1).round().astype(int)
    return tuple(tuple(group_names[a:b]) for a, b in pairwise(edges))


class Proposals:
    """The search's proposals, one after another. `stored` trials are told in their turn instead of being proposed.

    Results of `earlier` runs come before everything except the baselines. `enough` decides whether the search should
    end, from the results that the next proposal may use, in the order of proposal; it is called before each proposal
    that is not stored.
    """

    def __init__(
        self,
        space: SearchSpace,
        spec: SamplerSpec,
        *,
        seed: int,
        stored: Sequence[Trial] = (),
        earlier: Earlier | None = None,
        enough: Callable[[Sequence[Outcome]], bool] = lambda outcomes: False,
    ) -> None:
        self._space = space
        self._seed = seed
        self._enough = enough
        # A run has decided on one; who asks for proposals alone is one worker.
        self._lookahead = spec.lookahead_for(1)
        self._limit = spec.trials
        searched = [trial for trial in stored if trial.proposal.stage is Stage.SEARCH and trial.proposal.step is None]
        self._stored = {trial.trial_id: trial for trial in searched}
        if any(trial.proposal.stage is Stage.FINETUNE for trial in stored):
            # The search had ended when the first finalist was chosen, by its time limit perhaps.
            self._limit = min(self._limit, len({trial.proposal.number for trial in searched}))
        self._controls = _spaced(_controls(space, spec.trials), spec.trials)
        """Number -> what that proposal is fixed to."""
        self._warm = _warm_starts(space, spec.trials) if spec.warm_starts else []
        self._earlier = (spec.warm_starts and earlier) or Earlier()
        self._refines = spec.sampler == "mixed" and RATIOS in space.allocations and bool(space.channels)
        self._sampled_space = space
        """The sampler's search space, without the widths if mutations of the front search for the widths."""
        if self._refines and _simple(space):
            self._sampled_space = replace(space, allocations=_simple(space))
        self._study = _make_study(spec, seed, num_warm=len(self._warm))
        self._seen_so_far: list[Seen] = []
        self._expected: dict[int, Seen] = {}
        """Number of a change -> what it is predicted to come to."""
        for known in self._earlier.observed:
            self._see(known.settings, known)
            self._tell_unasked(known, known.target or 0.0, known.point(space.cost))
        self._rungs = SuccessiveHalving(len(spec.rungs), spec.keep, cost=space.cost)
        self._asked: list[optuna.Trial | None] = []
        """Trials of the sampler; None for a proposal that is not the sampler's."""
        self._onward: deque[Proposal] = deque()
        """Proposals that go on to their next rung."""
        self._results: dict[int, Outcome] = {}
        """Outcomes of the candidates that do not go on, by number."""
        self._told = 0
        self.proposals: dict[str, Proposal] = {}
        """Trial id -> every proposal so far, stored ones as well."""

    @property
    def outcomes(self) -> list[Outcome]:
        """The last of every candidate that goes on no further, in the order of proposal."""
        return [self._results[number] for number in sorted(self._results)]

    @property
    def over(self) -> bool:
        """True if everything is proposed and every result is in."""
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
        while (proposal := self._made_next()) is not None:
            self.proposals[proposal.trial_id] = proposal
            trial = self._stored.get(proposal.trial_id)
            if trial is None:
                return proposal
            _check_same(trial.proposal, proposal)
            self.tell(proposal.number, Outcome.of(trial))
        return None

    def tell(self, number: int, outcome: Outcome) -> None:
        """Take the result of a proposal at its rung; the sampler hears of the last one in its turn."""
        assert number not in self._results, f"proposal {number} was told twice"
        for decision in self._rungs.tell(number, outcome):
            if decision.next_rung is None:
                self._results[decision.number] = decision.outcome
            else:
                before = self.proposals[decision.outcome.trial_id]
                self._onward.append(replace(before, rung=decision.next_rung, parent=before.trial_id))

    def _made_next(self) -> Proposal | None:
        # What has come far first: the sampler waits for it.
        if self._onward:
            return self._onward.popleft()
        number = len(self._asked)
        if number >= self._limit or not self._ready(number):
            return None
        seen = [self._results[earlier] for earlier in range(self._seen(number))]
        if search_id(number) not in self._stored and self._enough(seen):
            self.stop()
            return None
        return self._ask(number)

    def _seen(self, number: int) -> int:
        """How many results proposal `number` may look at."""
        return max(0, number - self._lookahead + 1)

    def _ready(self, number: int) -> bool:
        return all(i in self._results for i in range(self._told, self._seen(number)))

    def _ask(self, number: int) -> Proposal:
        for due in range(self._told, self._seen(number)):
            outcome, asked = self._results[due], self._asked[due]
            if asked is not None and outcome.state is TrialState.COMPLETE:
                self._study.tell(asked, outcome.point(self._space.cost))
            elif asked is not None:
                # An accuracy of a lower rung is none that the sampler should learn from.
                stopped = outcome.state is TrialState.STOPPED
                states = optuna.trial.TrialState
                self._study.tell(asked, state=states.PRUNED if stopped else states.FAIL)
            elif due not in self._controls and outcome.state is TrialState.COMPLETE:
                proposal = self.proposals[search_id(due)]
                self._tell_unasked(proposal, _target_of(proposal, self._space), outcome.point(self._space.cost))
            if outcome.state is TrialState.COMPLETE:
                self._see(self.proposals[outcome.trial_id].settings, outcome)
            self._told = due + 1
        if number in self._controls:
            self._asked.append(None)
            return self._control(number)
        own = number - sum(control < number for control in self._controls)
        if own < len(self._earlier.first):
            self._asked.append(None)
            return self._once_more(number, self._earlier.first[own])
        own -= len(self._earlier.first)
        if own < len(self._warm):
            return self._sampled(number, self._warm[own])
        if self._refines and own % _SAMPLED_EVERY and (child := self._child(number)) is not None:
            self._asked.append(None)
            return child
        return self._sampled(number, {"target": self._target(own)})

    def _control(self, number: int) -> Proposal:
        allocations = _simple(self._space) or _CONTROL_ALLOCATIONS
        space = replace(self._space, methods=self._space.controls, allocations=allocations, settings={})
        asked = optuna.trial.FixedTrial(self._controls[number])
        return _to_proposal(asked, space, number=number, seed=self._seed)

    def _once_more(self, number: int, known: EarlierResult) -> Proposal:
        """The widths of an earlier run's candidate."""
        # A hair above its cost, of which a fraction may fall short by rounding.
        target = min(self._space.highest, _share(known, self._space.target) * (1 + 1e-12))
        return Proposal(
            number=number,
            method=known.method,
            allocation=RATIOS,
            target=_target(target, self._space),
            settings={**known.settings, **self._space.fixed.get(known.method, {})},
            keep_ratios=_ratios(known.widths, self._space),
            seed=trial_seed(self._seed, number),
        )

    def _sampled(self, number: int, fixed: dict[str, Any]) -> Proposal:
        """Return the sampler's proposal, with the values of `fixed`."""
        self._study.enqueue_trial(fixed)
        trial = self._study.ask()
        self._asked.append(trial)
        return _to_proposal(trial, self._sampled_space, number=number, seed=self._seed)

    def _target(self, own: int) -> float:
        """Return the target of proposal `own`, counted without the baselines: the range is covered evenly."""
        return _spread(self._space, float(np.random.default_rng(self._seed).random()) + _GOLDEN * own)

    def _child(self, number: int) -> Proposal | None:
        """A change of the front, for the cost at which that gains most; None while there is no front."""
        if not self._seen_so_far:
            return None
        generator = np.random.default_rng([self._seed, number])
        child = child_of(
            self._seen_so_far,
            targets_in(self._space.lowest, self._space.highest, generator=generator),
            highest=self._space.highest,
            generator=generator,
            pending=[self._expected[n] for n in range(self._seen(number), number) if n in self._expected],
        )
        self._expected[number] = child
        return Proposal(
            number=number,
            method=child.method,
            allocation=RATIOS,
            target=_target(child.cost, self._space),
            settings=child.settings,
            keep_ratios=child.ratios,
            seed=trial_seed(self._seed, number),
        )

    def _see(self, settings: Mapping[str, Setting], result: EarlierResult | Outcome) -> None:
        """Let children learn from a result of the search's own methods."""
        if result.method in self._space.methods and self._refines:
            seen = Seen(
                method=result.method,
                settings=settings,
                ratios=_ratios(result.widths, self._space),
                cost=_share(result, self._space.target),
                error=1.0 - result.accuracy,
            )
            self._seen_so_far.append(seen)

    def _tell_unasked(self, proposal: Proposal | EarlierResult, target: float, point: tuple[float, float]) -> None:
        """Let the sampler know of a result that it did not propose, where it could have, or nearly."""
        ratios = proposal.keep_ratios
        kept = [np.mean([ratios[name] for name in block]) for block in self._space.blocks if ratios]
        known = optuna.trial.FixedTrial(
            {
                "method": proposal.method,
                "allocation": proposal.allocation,
                "target": target,
                **{f"keep.{i}": max(_LOWEST_RATIO, float(ratio)) for i, ratio in enumerate(kept)},
                **{f"{proposal.method}.{name}": value for name, value in proposal.settings.items()},
            }
        )
        with warnings.catch_warnings():
            # Optuna warns of what lies outside.
            warnings.simplefilter("error")
            try:
                as_proposed = _to_proposal(known, self._sampled_space, number=0, seed=0)
            except (UserWarning, ValueError, KeyError):
                return
        if dict(as_proposed.settings) == dict(proposal.settings):
            self._study.add_trial(
                optuna.trial.create_trial(params=known.params, distributions=known.distributions, values=point)
            )


def _spaced(controls: Sequence[dict[str, Any]], num_trials: int) -> dict[int, dict[str, Any]]:
    """Return the baselines by number: at most one in four, so that a search that ends early has other proposals too."""
    every = min(_CONTROLS_EVERY, num_trials // max(1, len(controls)))
    return {every * index: control for index, control in enumerate(controls)}


def _warm_starts(space: SearchSpace, num_trials: int) -> list[dict[str, Any]]:
    """Return every method with its paper's settings and every allocation without ratios, in turns.

    The targets cover the range evenly from the first few on, beginning with the highest.
    """
    # The best predictor comes first, because a search that ends early may try only a few.
    simple = sorted(_simple(space), key=lambda name: name != LEAST_DAMAGE)
    combined = [
        {"allocation": allocation, "method": method, **_defaults(space, method)}
        for allocation in simple
        for method in space.methods
    ]
    count = min(_WARM_TURNS * len(combined), max(1, num_trials // 4))
    return [{"target": _spread(space, -_GOLDEN * i), **combined[i % len(combined)]} for i in range(count)]


def _controls(space: SearchSpace, num_trials: int) -> list[dict[str, Any]]:
    """Return every baseline with the allocations that need no ratios, the highest target first."""
    controls = [
        {"target": target, "allocation": allocation, "method": method}
        for target in _ladder(space)
        for allocation in _simple(space) or _CONTROL_ALLOCATIONS
        for method in space.controls
    ]
    return controls[: min(num_trials - 1, max(len(space.controls), num_trials // 4))]


def _simple(space: SearchSpace) -> tuple[str, ...]:
    """The allocations that need no keep ratios."""
    return tuple(name for name in space.allocations if name != RATIOS)


def _spread(space: SearchSpace, place: float) -> float:
    """The target at `place` of the range, whose fraction counts: above 0 is the lowest, 1 (or 0) the highest."""
    share = 1.0 - (-place) % 1.0
    # Evenly on a logarithmic scale: accuracy falls with each halving of the cost, not with each percent of it.
    return float(np.clip(space.lowest * (space.highest / space.lowest) ** share, space.lowest, space.highest))


def _ladder(space: SearchSpace) -> list[float]:
    """Targets spread over the range, the highest first."""
    targets = np.geomspace(space.highest, space.lowest, _CONTROL_TARGETS).clip(space.lowest, space.highest)
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
    # Warm starts draw no ratios: without random draws after them the sampler would hardly ever try some. In `mixed`
    # that is not its business. One joint density instead of one for each dimension is also three times as fast (9 ms a
    # proposal at 32 ratios).
    startup = num_warm + (0 if spec.sampler == "mixed" and num_warm else min(_STARTUP, max(8, spec.trials // 8)))
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
    "mixed": _tpe,
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
    return Proposal(
        number=number,
        method=method,
        allocation=allocation,
        target=_target(target, space),
        settings=settings,
        keep_ratios=ratios,
        seed=trial_seed(seed, number),
    )


def _target(target: float, space: SearchSpace) -> Budget:
    """Return the target of a proposal: the sampled target, within the space's fixed limits."""
    return Budget(**{**space.limits.fractions, space.target: target})


def _target_of(proposal: Proposal, space: SearchSpace) -> float:
    """The sampled target that `_target` was given."""
    target = proposal.target.fractions[space.target]
    # All FLOPs, beside another limit, are read from the store as no limit.
    return 1.0 if target is None else target


def _ratios(widths: Mapping[str, int], space: SearchSpace) -> dict[str, float]:
    """The share of each group's channels that stayed; a group that is not named is whole."""
    return {name: widths.get(name, count) / count for name, count in space.channels.items()}


def _share(result: Outcome | EarlierResult, target: str) -> float:
    """The cost that targets are of, as a fraction of the dense network's."""
    share: float | None = getattr(result, f"{target}_fraction")
    return 1.0 if share is None else share


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


def search_id(number: int) -> str:
    """The trial id of proposal `number` at its first rung."""
    return Proposal(number=number, method="", allocation="", target=Budget()).trial_id


def _check_same(stored: Proposal, proposal: Proposal) -> None:
    for name in ("method", "allocation", "target", "settings", "keep_ratios", "seed"):
        before, now = getattr(stored, name), getattr(proposal, name)
        if name == "target":
            before, now = target_columns(before), target_columns(now)
        if (dict(before) if isinstance(before, Mapping) else before) != (
            dict(now) if isinstance(now, Mapping) else now
        ):
            raise StoreError(
                f"{proposal.trial_id}: the run's store has {name} {before!r}, and this search proposes {now!r}.",
                hint="The code, Optuna or the job changed since the run began. Resume with the versions that run.json "
                "names, or begin a new run with another --output.",
            )
