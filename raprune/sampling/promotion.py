"""Who is promoted. Pure: outcomes in, trial ids out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from raprune.pareto import crowding, ranks, spread
from raprune.records import Trial, TrialState
from raprune.spec.budget import Budget


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The outcome of a finished trial: a `Trial` without its channels."""

    trial_id: str
    state: TrialState
    candidate: str = ""
    """Id of the candidate; empty when the trial failed."""
    accuracy: float = 0.0
    """Top-1 on the validation split."""
    flops_fraction: float = 1.0
    params_fraction: float = 1.0
    latency_fraction: float | None = None
    error: str | None = None
    method: str = ""
    widths: Mapping[str, int] = field(default_factory=dict)
    """Group name -> how many channels stay."""
    rung: int = 0
    """Rung of successive halving after which `accuracy` was measured."""
    seconds: float = 0.0
    """Seconds that the worker spent on the trial on this rung."""

    @classmethod
    def of(cls, trial: Trial) -> Outcome:
        """The outcome of a finished trial."""
        method, rung = trial.proposal.method, trial.proposal.rung
        if trial.metrics is None or trial.candidate is None:
            failed = TrialState.FAILED
            return cls(
                trial_id=trial.trial_id,
                state=failed,
                error=trial.error,
                method=method,
                rung=rung,
                seconds=trial.seconds,
            )
        return cls(
            trial_id=trial.trial_id,
            state=trial.state,
            candidate=trial.candidate.id,
            accuracy=trial.metrics.accuracy,
            flops_fraction=trial.metrics.flops_fraction,
            params_fraction=trial.metrics.params_fraction,
            latency_fraction=trial.metrics.latency_fraction,
            error=trial.error,
            method=method,
            widths=trial.candidate.widths,
            rung=rung,
            seconds=trial.seconds,
        )

    def point(self, cost: str = "flops") -> tuple[float, float]:
        """Return the objectives to minimise: the error rate, and the fraction of the FLOPs or the latency (`cost`)."""
        share = self.flops_fraction if cost == "flops" else self.latency_fraction
        return (1.0 - self.accuracy, 1.0 if share is None else share)


def goes_on(points: Sequence[tuple[float, float]], keep: float) -> bool:
    """True if the last of `points`, the candidates that reached a rung in order, goes on to the next rung.

    It does when it is among the best `keep` of them, at least one, by the front that it is on and then by how lonely
    it is there: successive halving by front rank, one candidate after another, so that nobody waits for a cohort.
    Points are to be minimised.

    Source: Li et al., "A System for Massively Parallel Hyperparameter Tuning" (ASHA, 2020), for the halving; Deb et
    al., "NSGA-II" (2002), for the order.
    """
    rank = ranks(points)
    ahead = int((rank < rank[-1]).sum())
    level = [i for i, r in enumerate(rank) if r == rank[-1]]
    loneliness = crowding([points[i] for i in level])
    # Of equally lonely ones the first came first.
    ahead += int((loneliness[:-1] >= loneliness[-1]).sum())
    return ahead < max(1, math.ceil(keep * len(points) - 1e-9))


def choose_finalists(
    outcomes: Sequence[Outcome],
    budget: Budget,
    count: int,
    *,
    each_method: bool = False,
    floor: float | None = None,
    cost: str = "flops",
) -> list[str]:
    """The trial ids of at most `count` candidates to fine-tune, best accuracy first within each front.

    With `each_method`, the most accurate of every method that is not among them follow, one each.

    Those that keep the accuracy `floor` come before those that do not: fine-tuning may still bring these over it. Of
    both the front comes first, spread over it with its ends; when it is smaller than `count`, the next front
    follows, and so on. Failed and stopped trials, candidates outside the budget and repeats of a candidate are left
    out. The result does not depend on the order of `outcomes`.
    """
    remaining = _eligible(outcomes, budget)
    above = [outcome for outcome in remaining if floor is None or outcome.accuracy >= floor]
    chosen = _spread_over_fronts(above, count, cost)
    below = [outcome for outcome in remaining if outcome not in above]
    chosen += _spread_over_fronts(below, count - len(chosen), cost)
    if each_method and count:
        methods = {outcome.method for outcome in remaining if outcome.trial_id in chosen}
        for method in sorted({outcome.method for outcome in remaining} - methods):
            own = [outcome for outcome in remaining if outcome.method == method]
            chosen.append(min(own, key=lambda o: (o.point(cost), o.trial_id)).trial_id)
    return chosen


def _spread_over_fronts(outcomes: Sequence[Outcome], count: int, cost: str) -> list[str]:
    rank = ranks([outcome.point(cost) for outcome in outcomes])
    chosen: list[str] = []
    for level in range(int(rank.max(initial=-1)) + 1):
        front = [outcome for outcome, r in zip(outcomes, rank, strict=True) if r == level]
        # On a logarithmic scale of the cost: each halving counts the same.
        scaled = [(error, math.log(max(share, 1e-12))) for error, share in (o.point(cost) for o in front)]
        chosen += [front[i].trial_id for i in spread(scaled, count - len(chosen))]
    return chosen


def _eligible(outcomes: Sequence[Outcome], budget: Budget) -> list[Outcome]:
    """Complete ones within the budget, each candidate once, in the order of their trial ids."""
    eligible: dict[str, Outcome] = {}
    for outcome in sorted(outcomes, key=lambda o: o.trial_id):
        within = budget.admits(
            flops_fraction=outcome.flops_fraction,
            params_fraction=outcome.params_fraction,
            latency_fraction=outcome.latency_fraction,
        )
        if outcome.state is TrialState.COMPLETE and within:
            eligible.setdefault(outcome.candidate, outcome)
    return list(eligible.values())
