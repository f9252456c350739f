"""Optuna's Gaussian process as a source of proposals: expected improvement of the front's hypervolume."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import optuna
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler

from raprune.errors import UsageError
from raprune.pareto import non_dominated
from raprune.records import Proposal, TrialState
from raprune.sampling.optuna_sampler import GOLDEN, Sampler, proposal_of, seed_of_draw
from raprune.sampling.point import Point
from raprune.sampling.source import Asked, Turn, pending_point
from raprune.sampling.space import RATIOS, SearchSpace
from raprune.spec.job import SamplerSpec

_KNOWN = 256
"""Number of results that the Gaussian process is fitted to: its time grows with their cube."""
_STARTUP = 10
"""Number of results before which widths are drawn at random."""


def check_installed(spec: SamplerSpec) -> None:
    """Refuse Optuna's Gaussian process where SciPy, which it computes with, is not installed.

    Raises:
        UsageError: with the command that installs it.
    """
    if spec.sampler == "gp" and importlib.util.find_spec("scipy") is None:
        raise UsageError(
            "search.sampler (--sampler) 'gp': SciPy is not installed.",
            hint="pip install 'raprune[gp]', or take another sampler: mixed, tpe, nsga2 or random.",
        )


class GaussianSampler(Sampler):
    """Optuna's Gaussian process over methods, targets and the keep ratios of blocks.

    Its inputs are the same for every network: a warm start is taken as the widths that it came to. Where the job leaves
    no keep ratios, it chooses among the allocations. TPE chooses hyper-parameters, which differ from method to method.
    """

    def __init__(self, space: SearchSpace, spec: SamplerSpec, *, seed: int, num_warm: int, after: int) -> None:
        super().__init__(space, spec, seed=seed, num_warm=num_warm, after=after)
        self._whole = space
        self._has_ratios = RATIOS in space.allocations and bool(space.channels)
        self._space = replace(space, allocations=(RATIOS,)) if self._has_ratios else space
        self._known: list[tuple[Point, optuna.trial.FrozenTrial]] = []
        """Complete results that the Gaussian process may be fitted to."""
        self._pending: dict[int, Point] = {}
        """Number of a proposal -> its point, until its result is learned."""

    def propose(self, turn: Turn) -> Proposal:
        study = optuna.create_study(directions=["minimize", "minimize"])
        study.add_trials([trial for _, trial in self._fitted_to()])
        under_way = (self._as_trial(point, optuna.trial.TrialState.RUNNING) for point in self._pending.values())
        study.add_trials([trial for trial in under_way if trial is not None])
        seed = seed_of_draw(self._seed, turn.number)
        if len(self._known) < _STARTUP:
            study.sampler = RandomSampler(seed=seed)
            place = float(np.random.default_rng(self._seed).random()) + GOLDEN * (turn.rank - self._after)
            study.enqueue_trial({"target": self._space.at(place)})
        else:
            study.sampler = self._fitted(seed)
        proposal = proposal_of(study.ask(), self._space, number=turn.number, seed=self._seed)
        self.recall(turn, proposal)
        return proposal

    def propose_fixed(self, turn: Turn, values: Mapping[str, Any]) -> Proposal:
        trial = optuna.trial.FixedTrial(dict(values))
        return proposal_of(trial, self._whole, number=turn.number, seed=self._seed)

    def recall(self, turn: Turn, proposal: Proposal) -> None:
        self._pending[turn.number] = pending_point(proposal, self._space)

    def recall_fixed(self, turn: Turn, proposal: Proposal) -> None:
        return  # Widths of a warm start are known only once it has ended.

    def learn(self, asked: Asked) -> None:
        self._pending.pop(asked.proposal.number, None)
        point = asked.point
        assert point is not None, "a source learns from results"
        if point.state is TrialState.COMPLETE and asked.source.teaches:
            self.observe(point)

    def observe(self, point: Point) -> None:
        if self._has_ratios:
            point = replace(point, allocation=RATIOS, keep_ratios=self._space.ratios_of(point.widths))
            point = replace(point, target=point.fraction(self._space.target))
        trial = self._as_trial(point, optuna.trial.TrialState.COMPLETE)
        if trial is not None:
            self._known.append((point, trial))

    def _as_trial(self, point: Point, state: optuna.trial.TrialState) -> optuna.trial.FrozenTrial | None:
        """A point as a trial of Optuna; None if it is outside of the search space."""
        if point.method not in self._space.methods or point.allocation not in self._space.allocations:
            return None
        drawn = self._drawn(self._values_of(point))
        if drawn is None:
            return None
        values = point.objectives(self._space.cost) if state is optuna.trial.TrialState.COMPLETE else None
        return optuna.trial.create_trial(
            state=state, params=drawn.params, distributions=drawn.distributions, values=values
        )

    def _fitted_to(self) -> list[tuple[Point, optuna.trial.FrozenTrial]]:
        """The results to fit to: all, or the non-dominated ones and the latest of the others."""
        if len(self._known) <= _KNOWN:
            return self._known
        best = set(non_dominated([point.objectives(self._space.cost) for point, _ in self._known]))
        places = sorted(range(len(self._known)), key=lambda place: (place in best, place))[-_KNOWN:]
        return [self._known[place] for place in sorted(places)]

    @staticmethod
    def _fitted(seed: int) -> BaseSampler:
        with warnings.catch_warnings():
            # Optuna calls some of these options experimental.
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            settings = TPESampler(seed=seed)
            return GPSampler(
                seed=seed, n_startup_trials=_STARTUP, independent_sampler=settings, warn_independent_sampling=False
            )
