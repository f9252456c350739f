"""Sources of proposals: baselines, earlier runs, warm starts, mutations of the front, Optuna's sampler.

A search asks its sources in their order, and takes the first proposal. Every source is told every result, in the order
of proposal, and learns from the results that it can use.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import optuna
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler

from raprune.records import Proposal, Setting, TrialState
from raprune.sampling.mutation import child_of, targets_in
from raprune.sampling.point import Point
from raprune.sampling.space import RATIOS, SearchSpace
from raprune.sampling.warm_start import Earlier
from raprune.spec.job import SamplerSpec

LEAST_DAMAGE = "least_damage"
"""The allocation that follows what the method predicts."""

_LOWEST_RATIO = 0.05
_GOLDEN = 0.6180339887498949
_BASELINE_TARGETS = 3
_BASELINE_ALLOCATIONS = ("uniform",)
"""Allocations of the baselines if every allocation of the search needs ratios."""
_BASELINE_EVERY = 4
_WARM_TURNS = 3
_SAMPLED_EVERY = 6
"""In a `mixed` search, one in six proposals after the warm starts is TPE's; the others are mutations of the front."""
_STARTUP = 16
"""Random draws after the warm starts, at most: the number of trials is no guide if a time limit ends the search."""


@dataclass(frozen=True, kw_only=True)
class Turn:
    """A number of the search that a proposal is wanted for."""

    number: int
    rank: int
    """Place among the numbers that are no baseline's, from 0."""
    heard: int
    """Number of the results, from the first on, that the proposal may depend on."""


@dataclass(kw_only=True)
class Asked:
    """A number of the search: its proposal, the source of the proposal, and the result."""

    proposal: Proposal
    """The proposal on the first rung."""
    source: ProposalSource
    point: Point | None = None
    """Result on the candidate's last rung, with its recipe; None until the candidate has ended."""


class ProposalSource(ABC):
    """One way to propose candidates, and what it learns from results."""

    teaches: bool = True
    """True if the sampler may learn from the results of these proposals."""

    @abstractmethod
    def propose(self, turn: Turn) -> Proposal | None:
        """Return the proposal for a number; None leaves the number to the next source."""

    def learn(self, asked: Asked) -> None:
        """Take a result. Results come in the order of proposal, each before the first turn that may depend on it."""
        return  # The proposals of most sources are fixed in advance.


class Baselines(ProposalSource):
    """Baselines at spread targets: at most one proposal in four, so that a search that ends early has others too."""

    teaches = False

    def __init__(self, space: SearchSpace, *, trials: int, seed: int) -> None:
        allocations = space.simple or _BASELINE_ALLOCATIONS
        self._space = replace(space, methods=space.baselines, allocations=allocations, settings={})
        self._seed = seed
        fixed = [
            {"target": target, "allocation": allocation, "method": method}
            for target in space.ladder(_BASELINE_TARGETS)
            for allocation in allocations
            for method in space.baselines
        ]
        fixed = fixed[: min(trials - 1, max(len(space.baselines), trials // 4))]
        every = min(_BASELINE_EVERY, trials // max(1, len(fixed)))
        self._by_number = {every * index: values for index, values in enumerate(fixed)}

    def before(self, number: int) -> int:
        """Number of baselines before `number`."""
        return sum(own < number for own in self._by_number)

    def propose(self, turn: Turn) -> Proposal | None:
        values = self._by_number.get(turn.number)
        if values is None:
            return None
        return _to_proposal(optuna.trial.FixedTrial(values), self._space, number=turn.number, seed=self._seed)


class EarlierFronts(ProposalSource):
    """The widths of the fronts of earlier runs, each once."""

    def __init__(self, space: SearchSpace, points: Sequence[Point], *, seed: int) -> None:
        self._space, self._points, self._seed = space, points, seed

    def propose(self, turn: Turn) -> Proposal | None:
        if turn.rank >= len(self._points):
            return None
        known = self._points[turn.rank]
        # Slightly above the cost of the widths, since the fraction may be rounded down.
        target = min(self._space.highest, known.fraction(self._space.target) * (1 + 1e-12))
        return Proposal(
            number=turn.number,
            method=known.method,
            allocation=RATIOS,
            target=self._space.budget_of(target),
            settings={**known.settings, **self._space.fixed.get(known.method, {})},
            keep_ratios=self._space.ratios_of(known.widths),
            seed=trial_seed(self._seed, turn.number),
        )


class Sampler(ProposalSource):
    """Optuna's sampler, over the whole search space.

    In a `mixed` search the mutations search for the widths, and the sampler chooses among the allocations without
    ratios. Ranks below `after` belong to the fronts of earlier runs.
    """

    def __init__(self, space: SearchSpace, spec: SamplerSpec, *, seed: int, num_warm: int, after: int) -> None:
        simple = space.simple if mutates(space, spec) else ()
        self._space = replace(space, allocations=simple) if simple else space
        self._study = _make_study(spec, seed, num_warm=num_warm)
        self._seed, self._after = seed, after
        self._trials: dict[int, optuna.Trial] = {}

    def propose(self, turn: Turn) -> Proposal | None:
        # The range of targets is covered evenly.
        place = float(np.random.default_rng(self._seed).random()) + _GOLDEN * (turn.rank - self._after)
        return self.propose_fixed(turn, {"target": self._space.at(place)})

    def propose_fixed(self, turn: Turn, values: Mapping[str, Any]) -> Proposal:
        """Return the sampler's proposal, with these values."""
        self._study.enqueue_trial(dict(values))
        trial = self._trials[turn.number] = self._study.ask()
        return _to_proposal(trial, self._space, number=turn.number, seed=self._seed)

    def learn(self, asked: Asked) -> None:
        point = asked.point
        assert point is not None, "a source learns from results"
        own, is_complete = self._trials.get(asked.proposal.number), point.state is TrialState.COMPLETE
        if own is not None and is_complete:
            self._study.tell(own, point.objectives(self._space.cost))
        elif own is not None:
            # The accuracy on a lower rung would mislead the sampler.
            states = optuna.trial.TrialState
            self._study.tell(own, state=states.PRUNED if point.state is TrialState.STOPPED else states.FAIL)
        elif asked.source.teaches and is_complete:
            self.observe(point)

    def observe(self, point: Point) -> None:
        """Tell the sampler a result that it did not propose itself, if the recipe is in its search space.

        Ratios within a block may differ: their mean counts.
        """
        ratios = point.keep_ratios
        kept = [np.mean([ratios[name] for name in block]) for block in self._space.blocks if ratios]
        trial = optuna.trial.FixedTrial(
            {
                "method": point.method,
                "allocation": point.allocation,
                # 0 is in no range of targets.
                "target": point.target or 0.0,
                **{f"keep.{i}": max(_LOWEST_RATIO, float(ratio)) for i, ratio in enumerate(kept)},
                **{f"{point.method}.{name}": value for name, value in point.settings.items()},
            }
        )
        with warnings.catch_warnings():
            # Optuna warns of values outside their range.
            warnings.simplefilter("error")
            try:
                as_proposed = _to_proposal(trial, self._space, number=0, seed=0)
            except (UserWarning, ValueError, KeyError):
                return
        if dict(as_proposed.settings) == dict(point.settings):
            values = point.objectives(self._space.cost)
            self._study.add_trial(
                optuna.trial.create_trial(params=trial.params, distributions=trial.distributions, values=values)
            )


class WarmStarts(ProposalSource):
    """Every method with its paper's settings, with every allocation without ratios in turn.

    The targets begin with the highest, and already the first few cover the range evenly. The proposals are trials of
    the sampler with fixed values, so that it learns from their results.
    """

    def __init__(self, sampler: Sampler, fixed: Sequence[Mapping[str, Any]], *, after: int) -> None:
        self._sampler, self._fixed, self._after = sampler, fixed, after

    @staticmethod
    def values_in(space: SearchSpace, *, trials: int) -> list[dict[str, Any]]:
        """Return the values that each warm start fixes: at most a quarter of the trials, one at least."""
        # The best predictor comes first, because a search that ends early may try only a few.
        simple = sorted(space.simple, key=lambda name: name != LEAST_DAMAGE)
        combined = [
            {"allocation": allocation, "method": method, **_defaults(space, method)}
            for allocation in simple
            for method in space.methods
        ]
        count = min(_WARM_TURNS * len(combined), max(1, trials // 4))
        return [{"target": space.at(-_GOLDEN * i), **combined[i % len(combined)]} for i in range(count)]

    def propose(self, turn: Turn) -> Proposal | None:
        own = turn.rank - self._after
        return self._sampler.propose_fixed(turn, self._fixed[own]) if own < len(self._fixed) else None


class Mutations(ProposalSource):
    """Mutations of the front, for the cost at which the front gains most (`raprune.sampling.mutation`)."""

    def __init__(self, space: SearchSpace, *, seed: int, after: int) -> None:
        self._space, self._seed, self._after = space, seed, after
        self._points: list[Point] = []
        self._expected: dict[int, Point] = {}
        """Number of a mutation -> its predicted result."""

    def propose(self, turn: Turn) -> Proposal | None:
        if (turn.rank - self._after) % _SAMPLED_EVERY == 0 or not self._points:
            return None
        generator = np.random.default_rng([self._seed, turn.number])
        child = child_of(
            self._points,
            targets_in(self._space.lowest, self._space.highest, generator=generator),
            cost=self._space.target,
            highest=self._space.highest,
            generator=generator,
            pending=[self._expected[n] for n in range(turn.heard, turn.number) if n in self._expected],
        )
        self._expected[turn.number] = child
        return Proposal(
            number=turn.number,
            method=child.method,
            allocation=RATIOS,
            target=self._space.budget_of(child.fraction(self._space.target)),
            settings=child.settings,
            keep_ratios=child.keep_ratios,
            seed=trial_seed(self._seed, turn.number),
        )

    def learn(self, asked: Asked) -> None:
        if asked.point is not None and asked.point.state is TrialState.COMPLETE:
            self.observe(asked.point)

    def observe(self, point: Point) -> None:
        """Let mutations start from a result, if its method is one of the search's."""
        if point.method in self._space.methods:
            # The ratios that the candidate came to, after the projection onto its target.
            self._points.append(replace(point, keep_ratios=self._space.ratios_of(point.widths)))


def mutates(space: SearchSpace, spec: SamplerSpec) -> bool:
    """True if the search has mutations of the front."""
    return spec.sampler == "mixed" and RATIOS in space.allocations and bool(space.channels)


def make_sources(
    space: SearchSpace, spec: SamplerSpec, *, seed: int, earlier: Earlier
) -> tuple[Baselines, list[ProposalSource]]:
    """Return the baselines, and all sources of a search in the order in which they are asked."""
    baselines = Baselines(space, trials=spec.trials, seed=seed)
    after = len(earlier.first)
    warm = WarmStarts.values_in(space, trials=spec.trials) if spec.warm_starts else []
    sampler = Sampler(space, spec, seed=seed, num_warm=len(warm), after=after)
    mutations = Mutations(space, seed=seed, after=after) if mutates(space, spec) else None
    for known in earlier.observed:
        if mutations is not None:
            mutations.observe(known)
        sampler.observe(known)
    sources: list[ProposalSource] = [baselines, EarlierFronts(space, earlier.first, seed=seed)]
    sources.append(WarmStarts(sampler, warm, after=after))
    return baselines, [*sources, *([] if mutations is None else [mutations]), sampler]


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
    # Warm starts have no ratios: without random draws after them the sampler would hardly ever try ratios. A `mixed`
    # search leaves ratios to the mutations. One joint density for all dimensions is three times as fast as one for each
    # (9 ms a proposal at 32 ratios).
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
        target=space.budget_of(target),
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
