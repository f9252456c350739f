"""The candidates that go on: to the next rung of successive halving, and to fine-tuning. Pure: points in, ids out."""

from __future__ import annotations

import math
from collections.abc import Sequence

from raprune.pareto import Fronts, crowding, ranks, spread
from raprune.records import TrialState
from raprune.sampling.point import Point
from raprune.spec.budget import Budget


def is_promoted(fronts: Fronts, objectives: tuple[float, float], keep: float) -> bool:
    """Add a candidate to the candidates that reached a rung before it; true if it is promoted to the next rung.

    It is promoted if it is among the best `keep` of all of them, at least one. They are ordered by their front, and
    within a front by their crowding distance, the largest first. Candidates are decided one after another, so that none
    waits for a whole cohort. `objectives` are to be minimised. The time grows with the size of a front, not with the
    number of candidates. Source: Li et al., "A System for Massively Parallel Hyperparameter Tuning" (ASHA, 2020), for
    the halving; Deb et al., "NSGA-II" (2002), for the order.
    """
    rank = fronts.add(objectives)
    distances = crowding(fronts.front(rank))
    # Of two equal distances the earlier candidate is ahead.
    ahead = fronts.num_before(rank) + int((distances[:-1] >= distances[-1]).sum())
    return ahead < max(1, math.ceil(keep * len(fronts) - 1e-9))


def choose_finalists(
    points: Sequence[Point],
    budget: Budget,
    count: int,
    *,
    each_method: bool = False,
    floor: float | None = None,
    cost: str = "flops",
) -> list[str]:
    """The trial ids of at most `count` candidates to fine-tune, best accuracy first within each front.

    With `each_method`, the most accurate candidate of every other method follows, one each.

    Candidates that keep the accuracy `floor` come before the others, which fine-tuning may still bring above it. From
    both, the front is chosen first, spread over it with its ends; if it is smaller than `count`, the next front
    follows, and so on. Failed and stopped trials, candidates outside the budget and repeats of a candidate are left
    out. The result does not depend on the order of `points`.
    """
    remaining = _eligible(points, budget)
    above = [point for point in remaining if floor is None or point.accuracy >= floor]
    chosen = _spread_over_fronts(above, count, cost)
    below = [point for point in remaining if floor is not None and not point.accuracy >= floor]
    chosen += _spread_over_fronts(below, count - len(chosen), cost)
    if each_method and count:
        methods = {point.method for point in remaining if point.trial_id in chosen}
        for method in sorted({point.method for point in remaining} - methods):
            own = [point for point in remaining if point.method == method]
            chosen.append(min(own, key=lambda p: (p.objectives(cost), p.trial_id)).trial_id)
    return chosen


def _spread_over_fronts(points: Sequence[Point], count: int, cost: str) -> list[str]:
    rank = ranks([point.objectives(cost) for point in points])
    chosen: list[str] = []
    for level in range(int(rank.max(initial=-1)) + 1):
        if len(chosen) >= count:
            break
        front = [point for point, r in zip(points, rank, strict=True) if r == level]
        # On a logarithmic scale of the cost: each halving counts the same.
        scaled = [(error, math.log(max(fraction, 1e-12))) for error, fraction in (p.objectives(cost) for p in front)]
        chosen += [front[i].trial_id for i in spread(scaled, count - len(chosen))]
    return chosen


def _eligible(points: Sequence[Point], budget: Budget) -> list[Point]:
    """Complete trials within the budget, each candidate once, in the order of their trial ids."""
    eligible: dict[str, Point] = {}
    for point in sorted(points, key=lambda p: p.trial_id):
        within = budget.admits(
            flops_fraction=point.flops_fraction,
            params_fraction=point.params_fraction,
            latency_fraction=point.latency_fraction,
            memory_fraction=point.memory_fraction,
        )
        if point.state is TrialState.COMPLETE and within:
            eligible.setdefault(point.candidate, point)
    return list(eligible.values())
