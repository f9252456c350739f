"""Who is promoted. Pure: outcomes in, trial ids out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from raprune.budget import Budget
from raprune.pareto import ranks, spread
from raprune.trial import Trial, TrialState


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What the search needs to know of a finished trial: a `Trial` without its channels."""

    trial_id: str
    state: TrialState
    candidate: str = ""
    """Id of the candidate; empty when the trial failed."""
    accuracy: float = 0.0
    """Top-1 on the validation split."""
    flops_fraction: float = 1.0
    params_fraction: float = 1.0
    error: str | None = None
    method: str = ""

    @classmethod
    def of(cls, trial: Trial) -> Outcome:
        """The outcome of a finished trial."""
        if trial.metrics is None or trial.candidate is None:
            failed = TrialState.FAILED
            return cls(trial_id=trial.trial_id, state=failed, error=trial.error, method=trial.proposal.method)
        return cls(
            trial_id=trial.trial_id,
            state=trial.state,
            candidate=trial.candidate.id,
            accuracy=trial.metrics.accuracy,
            flops_fraction=trial.metrics.flops_fraction,
            params_fraction=trial.metrics.params_fraction,
            error=trial.error,
            method=trial.proposal.method,
        )

    @property
    def point(self) -> tuple[float, float]:
        """What is minimised: the error rate and the fraction of the FLOPs."""
        return (1.0 - self.accuracy, self.flops_fraction)


def choose_finalists(
    outcomes: Sequence[Outcome], budget: Budget, count: int, *, each_method: bool = False
) -> list[str]:
    """The trial ids of at most `count` candidates to fine-tune, best accuracy first within each front.

    With `each_method`, the most accurate of every method that is not among them follow, one each.

    The front comes first, spread over it with its ends; when it is smaller than `count`, the next front follows,
    and so on. Failed trials, candidates outside the budget and repeats of a candidate are left out. The result
    does not depend on the order of `outcomes`.
    """
    remaining = _eligible(outcomes, budget)
    rank = ranks([outcome.point for outcome in remaining])
    chosen: list[str] = []
    for level in range(int(rank.max(initial=-1)) + 1):
        front = [outcome for outcome, r in zip(remaining, rank, strict=True) if r == level]
        # On a logarithmic scale of the cost: each halving counts the same.
        picked = spread([(o.point[0], math.log(max(o.flops_fraction, 1e-12))) for o in front], count - len(chosen))
        chosen += [front[i].trial_id for i in picked]
    if each_method and count:
        methods = {outcome.method for outcome in remaining if outcome.trial_id in chosen}
        for method in sorted({outcome.method for outcome in remaining} - methods):
            own = [outcome for outcome in remaining if outcome.method == method]
            chosen.append(min(own, key=lambda o: (o.point, o.trial_id)).trial_id)
    return chosen


def _eligible(outcomes: Sequence[Outcome], budget: Budget) -> list[Outcome]:
    """Complete ones within the budget, each candidate once, in the order of their trial ids."""
    eligible: dict[str, Outcome] = {}
    for outcome in sorted(outcomes, key=lambda o: o.trial_id):
        within = budget.admits(
            flops_fraction=outcome.flops_fraction,
            params_fraction=outcome.params_fraction,
        )
        if outcome.state is TrialState.COMPLETE and within:
            eligible.setdefault(outcome.candidate, outcome)
    return list(eligible.values())
