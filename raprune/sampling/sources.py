"""Sources of proposals: baselines, earlier runs, warm starts, mutations of the front, Optuna's sampler.

A search asks its sources in their order, and takes the first proposal. Every source hears of every result, in the order
of proposal, and learns from those that it can use.
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
from raprune.sampling.mutation import Seen, child_of, targets_in
from raprune.sampling.promotion import Outcome
from raprune.sampling.space import RATIOS, SearchSpace
from raprune.sampling.warm_start import Earlier, EarlierResult
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
"""After the warm starts one in six proposals of `mixed` is TPE's; the others are mutations of the front."""
_STARTUP = 16
"""Random draws after the warm starts, at most: a search that its time ends may be asked for any number of trials."""


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
    """As it was on the first rung."""
    source: ProposalSource
    outcome: Outcome | None = None
    """Outcome on the last rung; None until the candidate goes on no further."""


class ProposalSource(ABC):
    """One way to propose candidates, and what it learns from results."""

    teaches: bool = True
    """True if the sampler may learn from the results of these proposals."""

    @abstractmethod
    def propose(self, turn: Turn) -> Proposal | None:
        """Return the proposal for a number; None leaves the number to the next source."""

    def learn(self, asked: Asked) -> None:
        """Take a result. Results come in the order of proposal, each before the first turn that may depend on it."""
        return  # Most sources have fixed what they propose.


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

    def __init__(self, space: SearchSpace, results: Sequence[EarlierResult], *, seed: int) -> None:
        self._space, self._results, self._seed = space, results, seed

    def propose(self, turn: Turn) -> Proposal | None:
        if turn.rank >= len(self._results):
            return None
        known = self._results[turn.rank]
        # A hair above its cost, of which a fraction may fall short by rounding.
        target = min(self._space.highest, self._space.fraction_of(known) * (1 + 1e-12))
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
    """Optuna's sampler, over all that the search chooses among.

    In `mixed` searches, the mutations of the front search for the widths, and the sampler for the rest. `after` is the
    rank of its first turn, where ranks before it belong to earlier fronts.
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
        proposal, outcome = asked.proposal, asked.outcome
        assert outcome is not None, "a source learns from results"
        own, is_complete = self._trials.get(proposal.number), outcome.state is TrialState.COMPLETE
        if own is not None and is_complete:
            self._study.tell(own, outcome.point(self._space.cost))
        elif own is not None:
            # An accuracy of a lower rung is none that the sampler should learn from.
            states = optuna.trial.TrialState
            self._study.tell(own, state=states.PRUNED if outcome.state is TrialState.STOPPED else states.FAIL)
        elif asked.source.teaches and is_complete:
            self.observe(proposal, target=self._space.target_of(proposal), point=outcome.point(self._space.cost))

    def observe(self, known: Proposal | EarlierResult, *, target: float, point: tuple[float, float]) -> None:
        """Let the sampler know of a result that it did not propose, where it could have, or nearly."""
        ratios = known.keep_ratios
        kept = [np.mean([ratios[name] for name in block]) for block in self._space.blocks if ratios]
        trial = optuna.trial.FixedTrial(
            {
                "method": known.method,
                "allocation": known.allocation,
                "target": target,
                **{f"keep.{i}": max(_LOWEST_RATIO, float(ratio)) for i, ratio in enumerate(kept)},
                **{f"{known.method}.{name}": value for name, value in known.settings.items()},
            }
        )
        with warnings.catch_warnings():
            # Optuna warns of what lies outside.
            warnings.simplefilter("error")
            try:
                as_proposed = _to_proposal(trial, self._space, number=0, seed=0)
            except (UserWarning, ValueError, KeyError):
                return
        if dict(as_proposed.settings) == dict(known.settings):
            self._study.add_trial(
                optuna.trial.create_trial(params=trial.params, distributions=trial.distributions, values=point)
            )


class WarmStarts(ProposalSource):
    """Every method with its paper's settings and every allocation without ratios, in turns.

    The targets cover the range evenly from the first few on, beginning with the highest. The sampler asks for them, so
    that they are its own trials.
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
    """Changes of the front, for the cost at which the front gains most (`raprune.sampling.mutation`)."""

    def __init__(self, space: SearchSpace, *, seed: int, after: int) -> None:
        self._space, self._seed, self._after = space, seed, after
        self._seen: list[Seen] = []
        self._expected: dict[int, Seen] = {}
        """Number of a mutation -> its predicted result."""

    def propose(self, turn: Turn) -> Proposal | None:
        if (turn.rank - self._after) % _SAMPLED_EVERY == 0 or not self._seen:
            return None
        generator = np.random.default_rng([self._seed, turn.number])
        child = child_of(
            self._seen,
            targets_in(self._space.lowest, self._space.highest, generator=generator),
            highest=self._space.highest,
            generator=generator,
            pending=[self._expected[n] for n in range(turn.heard, turn.number) if n in self._expected],
        )
        self._expected[turn.number] = child
        return Proposal(
            number=turn.number,
            method=child.method,
            allocation=RATIOS,
            target=self._space.budget_of(child.cost),
            settings=child.settings,
            keep_ratios=child.ratios,
            seed=trial_seed(self._seed, turn.number),
        )

    def learn(self, asked: Asked) -> None:
        if asked.outcome is not None and asked.outcome.state is TrialState.COMPLETE:
            self.observe(asked.proposal.settings, asked.outcome)

    def observe(self, settings: Mapping[str, Setting], result: EarlierResult | Outcome) -> None:
        """Let mutations start from a result, if the result is of a method of the search."""
        if result.method in self._space.methods:
            seen = Seen(
                method=result.method,
                settings=settings,
                ratios=self._space.ratios_of(result.widths),
                cost=self._space.fraction_of(result),
                error=1.0 - result.accuracy,
            )
            self._seen.append(seen)


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
            mutations.observe(known.settings, known)
        sampler.observe(known, target=known.target or 0.0, point=known.point(space.cost))
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
