"""Sources of proposals: baselines, earlier runs, warm starts, mutations of the front, Optuna's sampler.

A search asks its sources in their order, and takes the first proposal. Every source is told every result, in the order
of proposal, and learns from the results that it can use.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import optuna

from raprune.records import Proposal, Setting, TrialState
from raprune.sampling.mutation import Litter, Mutator, targets_in
from raprune.sampling.optuna_gp import GaussianSampler
from raprune.sampling.optuna_sampler import GOLDEN, Sampler, mutates, proposal_of
from raprune.sampling.point import Point
from raprune.sampling.source import Asked, ProposalSource, Turn, pending_point, trial_seed
from raprune.sampling.space import RATIOS, SearchSpace
from raprune.sampling.warm_start import Earlier
from raprune.spec.job import SamplerSpec

LEAST_DAMAGE = "least_damage"
"""The allocation that follows what the method predicts."""

_BASELINE_TARGETS = 3
_BASELINE_ALLOCATIONS = ("uniform",)
"""Allocations of the baselines if every allocation of the search needs ratios."""
_BASELINE_EVERY = 4
_WARM_TURNS = 3
_SAMPLED_EVERY = 6
"""In a `mixed` search, one in six proposals after the warm starts is TPE's; the others are mutations of the front."""
_KERNEL_EVERY = 16
"""Number of proposals after which the mutations' kernel is fitted again."""
_DELAY = 8
"""Mutations share a model for at most this part of the lookahead: each may miss the results that came meanwhile."""
_LITTERS = (2, 16)
"""Least and largest number of proposals that share a litter: the later ones choose among worse children."""
_FOR_LITTER = 64
"""Lookahead for each proposal that shares a litter: the more is under way, the less does a choice know anyway."""


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

    def owns(self, turn: Turn) -> bool:
        return turn.number in self._by_number

    def propose(self, turn: Turn) -> Proposal:
        trial = optuna.trial.FixedTrial(self._by_number[turn.number])
        return proposal_of(trial, self._space, number=turn.number, seed=self._seed)


class EarlierFronts(ProposalSource):
    """The widths of the fronts of earlier runs, each once."""

    def __init__(self, space: SearchSpace, points: Sequence[Point], *, seed: int) -> None:
        self._space, self._points, self._seed = space, points, seed

    def owns(self, turn: Turn) -> bool:
        return turn.rank < len(self._points)

    def propose(self, turn: Turn) -> Proposal:
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
        return [{"target": space.at(-GOLDEN * i), **combined[i % len(combined)]} for i in range(count)]

    def owns(self, turn: Turn) -> bool:
        return turn.rank - self._after < len(self._fixed)

    def propose(self, turn: Turn) -> Proposal:
        return self._sampler.propose_fixed(turn, self._fixed[turn.rank - self._after])

    def recall(self, turn: Turn, proposal: Proposal) -> None:
        self._sampler.recall_fixed(turn, proposal)


class Mutations(ProposalSource):
    """Mutations of the front, for the cost at which the front gains most (`raprune.sampling.mutation`)."""

    def __init__(self, space: SearchSpace, *, seed: int, after: int, lookahead: int) -> None:
        self._space, self._seed, self._after = space, seed, after
        groups = tuple(name for name in space.channels if name not in space.gates)
        self._mutator = Mutator(groups, gates=space.gates, cost=space.target, highest=space.highest)
        self._fit_every = min(_KERNEL_EVERY, max(1, lookahead // _DELAY))
        self._counts = [0]
        """Number of heard results -> number of those that mutations start from, with those of earlier runs."""
        self._pending: dict[int, Point] = {}
        """Number of a mutation -> its point, until no litter can begin before its result is heard."""
        self._litter_size = min(max(lookahead // _FOR_LITTER, _LITTERS[0]), _LITTERS[1])
        self._litter: tuple[tuple[int, int, int], Litter] | None = None
        """The last litter, by its first number and the counts of its model."""

    def owns(self, turn: Turn) -> bool:
        return (turn.rank - self._after) % _SAMPLED_EVERY != 0 and len(self._mutator) > 0

    def propose(self, turn: Turn) -> Proposal:
        first = self._first(turn)
        chosen = [point for number, point in self._pending.items() if number >= first]
        child = self._mutator.child(self._litter_at(turn), chosen=chosen)
        proposal = Proposal(
            number=turn.number,
            method=child.method,
            allocation=RATIOS,
            target=self._space.budget_of(child.fraction(self._space.target)),
            settings=child.settings,
            keep_ratios=child.keep_ratios,
            seed=trial_seed(self._seed, turn.number),
        )
        self.recall(turn, proposal)
        return proposal

    def recall(self, turn: Turn, proposal: Proposal) -> None:
        if proposal.keep_ratios.keys() >= self._space.channels.keys():
            target = self._space.target_of(proposal)
            self._pending[turn.number] = pending_point(proposal, self._space).with_fraction(self._space.target, target)

    def learn(self, asked: Asked) -> None:
        # Results come in the order of proposal; the present litter may have begun when this one was under way.
        self._pending.pop(asked.proposal.number - self._litter_size, None)
        if asked.point is not None and asked.point.state is TrialState.COMPLETE:
            self._add(asked.point)
        self._counts.append(len(self._mutator))

    def observe(self, point: Point) -> None:
        """Let mutations start from a result of an earlier run, before any result of this one."""
        self._add(point)
        self._counts = [len(self._mutator)]

    def _add(self, point: Point) -> None:
        if point.method in self._space.methods:
            # The ratios that the candidate came to, after the projection onto its target.
            self._mutator.learn(replace(point, keep_ratios=self._space.ratios_of(point.widths)))

    def _litter_at(self, turn: Turn) -> Litter:
        """The children among which a few numbers in a row choose, made once."""
        first = self._first(turn)
        count = self._count_at(turn, every=self._fit_every) or len(self._mutator)
        key = (first, count, self._count_at(turn, every=_KERNEL_EVERY))
        if self._litter is None or self._litter[0] != key:
            generator = np.random.default_rng([self._seed, first])
            targets = targets_in(self._space.lowest, self._space.highest, generator=generator)
            heard = turn.heard - (turn.number - first)
            pending = [point for number, point in self._pending.items() if heard <= number < first]
            litter = self._mutator.litter(
                targets, generator=generator, pending=pending, count=count, count_of_kernel=key[2]
            )
            self._litter = (key, litter)
        return self._litter[1]

    def _first(self, turn: Turn) -> int:
        """The first number that shares the litter of a turn."""
        return turn.number - turn.number % min(self._litter_size, self._fit_every)

    def _count_at(self, turn: Turn, *, every: int) -> int:
        """Number of results that the last number divisible by `every` might use, not after this one."""
        return self._counts[max(0, turn.heard - turn.number % every)]


def make_sources(
    space: SearchSpace, spec: SamplerSpec, *, seed: int, earlier: Earlier
) -> tuple[Baselines, list[ProposalSource]]:
    """Return the baselines, and all sources of a search in the order in which they are asked."""
    baselines = Baselines(space, trials=spec.trials, seed=seed)
    after = len(earlier.first)
    warm = WarmStarts.values_in(space, trials=spec.trials) if spec.warm_starts else []
    kind = GaussianSampler if spec.sampler == "gp" else Sampler
    sampler = kind(space, spec, seed=seed, num_warm=len(warm), after=after)
    lookahead = spec.lookahead_for(1)
    mutations = Mutations(space, seed=seed, after=after, lookahead=lookahead) if mutates(space, spec) else None
    for known in earlier.observed:
        if mutations is not None:
            mutations.observe(known)
        sampler.observe(known)
    sources: list[ProposalSource] = [baselines, EarlierFronts(space, earlier.first, seed=seed)]
    sources.append(WarmStarts(sampler, warm, after=after))
    return baselines, [*sources, *([] if mutations is None else [mutations]), sampler]


def _defaults(space: SearchSpace, method: str) -> dict[str, Setting]:
    return {f"{method}.{name}": options["default"] for name, options in space.settings.get(method, {}).items()}
