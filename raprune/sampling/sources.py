"""Sources of proposals: baselines, earlier runs, warm starts, mutations of the front, Optuna's sampler.

A search asks its sources in their order, and takes the first proposal. Every source is told every result, in the order
of proposal, and learns from the results that it can use.
"""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import optuna
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler

from raprune.pareto import non_dominated
from raprune.records import Proposal, Setting, TrialState
from raprune.sampling.mutation import Litter, Mutator, targets_in
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
_KERNEL_EVERY = 16
"""Number of proposals after which the mutations' kernel is fitted again."""
_DELAY = 8
"""Mutations share a model for at most this part of the lookahead: each may miss the results that came meanwhile."""
_LITTERS = (2, 16)
"""Least and largest number of proposals that share a litter: the later ones choose among worse children."""
_FOR_LITTER = 64
"""Lookahead for each proposal that shares a litter: the more is under way, the less does a choice know anyway."""
_KNOWN = 512
"""Number of results that TPE is left with once it has twice as many: the time of a proposal grows with them."""
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
    def owns(self, turn: Turn) -> bool:
        """True if the proposal for this number is the source's, unless a source before it owns the number."""

    @abstractmethod
    def propose(self, turn: Turn) -> Proposal:
        """Return the proposal for a number that the source owns."""

    def recall(self, turn: Turn, proposal: Proposal) -> None:
        """Take the stored proposal for a number that the source owns, as if the source had just proposed it."""
        return  # Most sources do not depend on their own proposals.

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

    def owns(self, turn: Turn) -> bool:
        return turn.number in self._by_number

    def propose(self, turn: Turn) -> Proposal:
        trial = optuna.trial.FixedTrial(self._by_number[turn.number])
        return _to_proposal(trial, self._space, number=turn.number, seed=self._seed)


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
        place = float(np.random.default_rng(self._seed).random()) + _GOLDEN * (turn.rank - self._after)
        # A stream of random numbers for each proposal, so that a resumed search need not repeat earlier draws. Before
        # the first result TPE draws at random as well, and takes long to find out that there is none.
        draws = RandomSampler if self._is_tpe and not self._finished else self._make_sampler
        sampler = draws(seed=_stream(self._seed, turn.number))
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
        return _to_proposal(trial, self._space, number=number, seed=self._seed)

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
                as_proposed = _to_proposal(trial, self._space, number=0, seed=0)
            except (UserWarning, ValueError, KeyError):
                return None
        method = values["method"]
        given = {name.removeprefix(f"{method}."): v for name, v in values.items() if name.startswith(f"{method}.")}
        return trial if dict(as_proposed.settings) == given else None


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
        self._mutator = Mutator(tuple(space.channels), cost=space.target, highest=space.highest)
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
    lookahead = spec.lookahead_for(1)
    mutations = Mutations(space, seed=seed, after=after, lookahead=lookahead) if mutates(space, spec) else None
    for known in earlier.observed:
        if mutations is not None:
            mutations.observe(known)
        sampler.observe(known)
    sources: list[ProposalSource] = [baselines, EarlierFronts(space, earlier.first, seed=seed)]
    sources.append(WarmStarts(sampler, warm, after=after))
    return baselines, [*sources, *([] if mutations is None else [mutations]), sampler]


def _new_study() -> optuna.Study:
    return optuna.create_study(directions=["minimize", "minimize"])


def _defaults(space: SearchSpace, method: str) -> dict[str, Setting]:
    return {f"{method}.{name}": options["default"] for name, options in space.settings.get(method, {}).items()}


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


def pending_point(proposal: Proposal, space: SearchSpace) -> Point:
    """The point of a proposal whose trial has not ended."""
    point = Point(trial_id=proposal.trial_id, state=TrialState.WAITING, method=proposal.method)
    point = point.with_recipe(proposal, target=space.target_of(proposal))
    # A stored proposal has its ratios packed, and looks each one up.
    return replace(point, keep_ratios=dict(proposal.keep_ratios))


def trial_seed(seed: int, number: int) -> int:
    """A seed for each trial, in [0, 2**31)."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0] >> 1)


def _stream(seed: int, number: int) -> int:
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
