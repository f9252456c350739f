"""Optuna's samplers as a source of proposals: TPE, NSGA-II and random draws."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import optuna
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler

from raprune.pareto import non_dominated
from raprune.records import Proposal, Setting, TrialState
from raprune.sampling.point import Point
from raprune.sampling.source import Asked, ProposalSource, Turn, pending_point, trial_seed
from raprune.sampling.space import RATIOS, SearchSpace
from raprune.spec.job import SamplerSpec

_LOWEST_RATIO = 0.05
GOLDEN = 0.6180339887498949
_KNOWN = 512
"""Number of results that TPE is left with once it has twice as many: the time of a proposal grows with them."""
_STARTUP = 16
"""Random draws after the warm starts, at most: the number of trials is no guide if a time limit ends the search."""


class Sampler(ProposalSource):
    """Optuna's sampler, over the whole search space.

    In a `mixed` search the mutations search for the widths, and the sampler chooses among the allocations without
    ratios. Ranks below `after` belong to the fronts of earlier runs.
    """

    def __init__(self, space: SearchSpace, spec: SamplerSpec, *, seed: int, num_warm: int, after: int) -> None:
        simple = space.simple if mutates(space, spec) else ()
        self._space = replace(space, allocations=simple) if simple else space
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._study = _new_study()
        self._make_sampler = partial(SAMPLERS[spec.sampler], spec, num_warm=num_warm)
        self._is_tpe = SAMPLERS[spec.sampler] is _tpe
        self._seed, self._after = seed, after
        self._trials: dict[int, optuna.Trial] = {}
        """Number of a proposal of the sampler -> its trial, until its result is learned."""
        self._finished = 0
        """Number of finished trials of the study."""

    def owns(self, turn: Turn) -> bool:
        return True

    def propose(self, turn: Turn) -> Proposal:
        # The range of targets is covered evenly.
        place = float(np.random.default_rng(self._seed).random()) + GOLDEN * (turn.rank - self._after)
        # A stream of random numbers for each proposal, so that a resumed search need not repeat earlier draws. Before
        # the first result TPE draws at random as well, and takes long to find out that there is none.
        draws = RandomSampler if self._is_tpe and not self._finished else self._make_sampler
        sampler = draws(seed=seed_of_draw(self._seed, turn.number))
        return self._ask(turn.number, {"target": self._space.at(place)}, sampler)

    def propose_fixed(self, turn: Turn, values: Mapping[str, Any]) -> Proposal:
        """Return a proposal of the sampler whose values are all given."""
        return self._ask(turn.number, values, self._draws_nothing())

    def recall(self, turn: Turn, proposal: Proposal) -> None:
        self.recall_fixed(turn, proposal)
        if turn.number in self._trials:
            # Optuna's genetic sampler notes the generation of a trial when it draws values for it.
            _ = self._trials[turn.number].relative_params

    def recall_fixed(self, turn: Turn, proposal: Proposal) -> None:
        """Take the stored proposal for a number, all of it fixed."""
        values = self._values_of(pending_point(proposal, self._space))
        if self._drawn(values) is not None:
            self._ask(turn.number, values, self._draws_nothing())

    def _draws_nothing(self) -> BaseSampler:
        """A sampler for a trial of which every value is known."""
        sampler = self._make_sampler(seed=0)
        # Others than the genetic sampler have nothing to note, and take long to draw.
        return sampler if isinstance(sampler, NSGAIISampler) else RandomSampler(seed=0)

    def _ask(self, number: int, values: Mapping[str, Any], sampler: BaseSampler) -> Proposal:
        self._study.sampler = sampler
        self._study.enqueue_trial(dict(values))
        trial = self._trials[number] = self._study.ask()
        return proposal_of(trial, self._space, number=number, seed=self._seed)

    def learn(self, asked: Asked) -> None:
        point = asked.point
        assert point is not None, "a source learns from results"
        own, is_complete = self._trials.pop(asked.proposal.number, None), point.state is TrialState.COMPLETE
        if own is not None and is_complete:
            self._study.tell(own, point.objectives(self._space.cost))
        elif own is not None:
            # The accuracy on a lower rung would mislead the sampler.
            states = optuna.trial.TrialState
            self._study.tell(own, state=states.PRUNED if point.state is TrialState.STOPPED else states.FAIL)
        elif asked.source.teaches and is_complete:
            self.observe(point)
        self._finished += own is not None
        if self._is_tpe and self._finished >= 2 * _KNOWN:
            self._forget()

    def _forget(self) -> None:
        """Go on with a study of half of the results: the non-dominated ones, and of the others the latest."""
        finished = [trial for trial in self._study.get_trials(deepcopy=False) if trial.state.is_finished()]
        complete = [trial for trial in finished if trial.state is optuna.trial.TrialState.COMPLETE]
        best = {complete[index].number for index in non_dominated([trial.values for trial in complete])}
        latest = sorted(finished, key=lambda trial: (trial.number in best, trial.number))[-_KNOWN:]
        self._study = _new_study()
        self._study.add_trials(sorted(latest, key=lambda trial: trial.number))
        self._finished = len(latest)
        for number, trial in self._trials.items():
            self._ask(number, trial.params, RandomSampler(seed=0))

    def observe(self, point: Point) -> None:
        """Tell the sampler a result that it did not propose itself, if the recipe is in its search space."""
        is_near = point.method in self._space.methods and point.allocation in self._space.allocations
        trial = self._drawn(self._values_of(point)) if is_near else None
        if trial is not None:
            values = point.objectives(self._space.cost)
            self._study.add_trial(
                optuna.trial.create_trial(params=trial.params, distributions=trial.distributions, values=values)
            )
            self._finished += 1

    def _values_of(self, point: Point) -> dict[str, Any]:
        """The recipe of a point as the sampler's parameters. Ratios within a block may differ: their mean counts."""
        space, ratios = self._space, dict(point.keep_ratios)
        blocks = [[ratios[name] for name in block] for block in space.blocks if ratios]
        kept = [block[0] if min(block) == max(block) else float(np.mean(block)) for block in blocks]
        return {
            "method": point.method,
            "allocation": point.allocation,
            # 0 is in no range of targets.
            "target": _into(point.target or 0.0, space.lowest, space.highest),
            **{f"keep.{i}": _into(max(_LOWEST_RATIO, ratio), _LOWEST_RATIO, 1.0) for i, ratio in enumerate(kept)},
            **{f"{point.method}.{name}": value for name, value in point.settings.items()},
        }

    def _drawn(self, values: Mapping[str, Any]) -> optuna.trial.FixedTrial | None:
        """The parameters as a trial of the sampler's search space; None if they are not in it."""
        trial = optuna.trial.FixedTrial(dict(values))
        with warnings.catch_warnings():
            # Optuna warns of values outside their range.
            warnings.simplefilter("error")
            try:
                as_proposed = proposal_of(trial, self._space, number=0, seed=0)
            except (UserWarning, ValueError, KeyError):
                return None
        method = values["method"]
        given = {name.removeprefix(f"{method}."): v for name, v in values.items() if name.startswith(f"{method}.")}
        return trial if dict(as_proposed.settings) == given else None


def mutates(space: SearchSpace, spec: SamplerSpec) -> bool:
    """True if the search has mutations of the front."""
    return spec.sampler == "mixed" and RATIOS in space.allocations and bool(space.channels)


def _new_study() -> optuna.Study:
    return optuna.create_study(directions=["minimize", "minimize"])


class _Tpe(TPESampler):
    """TPE that knows a pending trial by its parameters alone, which a resumed search knows too."""

    def _get_params(self, trial: optuna.trial.FrozenTrial, *_: object) -> dict[str, Any]:
        return trial.params


def _tpe(spec: SamplerSpec, *, seed: int, num_warm: int) -> BaseSampler:
    # Warm starts have no ratios: without random draws after them the sampler would hardly ever try ratios. A `mixed`
    # search leaves ratios to the mutations. One joint density for all dimensions is three times as fast as one for each
    # (9 ms a proposal at 32 ratios).
    startup = num_warm + (0 if spec.sampler == "mixed" and num_warm else min(_STARTUP, max(8, spec.trials // 8)))
    with warnings.catch_warnings():
        # Optuna calls some of these options experimental.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return _Tpe(seed=seed, n_startup_trials=startup, multivariate=True, group=True, constant_liar=True)


def _nsga2(spec: SamplerSpec, *, seed: int, num_warm: int) -> BaseSampler:
    return NSGAIISampler(seed=seed, population_size=max(8, min(50, spec.trials // 4)))


def _random(spec: SamplerSpec, *, seed: int, num_warm: int) -> BaseSampler:
    return RandomSampler(seed=seed)


SAMPLERS: dict[str, Callable[..., BaseSampler]] = {
    "mixed": _tpe,
    "tpe": _tpe,
    "nsga2": _nsga2,
    # `optuna_gp.py` makes its own sampler for each proposal.
    "gp": _random,
    "random": _random,
}


def proposal_of(trial: optuna.trial.BaseTrial, space: SearchSpace, *, number: int, seed: int) -> Proposal:
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
        target=space.budget_of(target),
        settings=settings,
        keep_ratios=ratios,
        seed=trial_seed(seed, number),
    )


def seed_of_draw(seed: int, number: int) -> int:
    """The seed of the sampler for one proposal, another one than that of its trial, in [0, 2**31)."""
    return int(np.random.SeedSequence([seed, number, 1]).generate_state(1)[0] >> 1)


def _into(value: float, lowest: float, highest: float) -> float:
    """The value, moved into a range that it misses by rounding alone: another CPU may have computed it."""
    near = float(np.clip(value, lowest, highest))
    return near if math.isclose(value, near, rel_tol=1e-9) else value


def _suggest(trial: optuna.trial.BaseTrial, name: str, options: Mapping[str, Any]) -> Setting:
    if "choices" in options:
        choice: Setting = trial.suggest_categorical(name, options["choices"])
        return choice
    log = bool(options.get("log", False))
    if options.get("int", False):
        return trial.suggest_int(name, int(options["low"]), int(options["high"]), log=log)
    return trial.suggest_float(name, options["low"], options["high"], log=log)
