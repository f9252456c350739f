"""The front of a run, the candidate that it recommends, and the pick under a budget, from rows of candidates.

Open `front_of` and `choose` first. Numbers and records only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from raprune.errors import RapruneError, UsageError
from raprune.records import Trial
from raprune.results.rows import CandidateRow, candidates, non_dominated
from raprune.results.test_split import UNTESTED, SplitAccuracies
from raprune.spec.budget import Budget, accuracy_floor, with_budget_table
from raprune.spec.job import BASELINES
from raprune.store.record import RunRecord


def front(
    trials: Sequence[Trial], budget: Budget | None = None, *, test: SplitAccuracies = UNTESTED
) -> list[CandidateRow]:
    """The rows within the budget that no other row dominates in accuracy and FLOPs, by ascending FLOPs.

    If weights were pruned one by one, which saves no FLOPs, the fraction of remaining weights is compared as well.
    """
    return front_of(candidates(trials, test=test), budget or Budget())


def front_of(rows: Sequence[CandidateRow], budget: Budget, *, cost: str | None = None) -> list[CandidateRow]:
    """`front` of rows of `candidates`, in accuracy and `cost` (one of `COSTS`; by default the budget's)."""
    admitted = within(rows, budget)
    return [replace(admitted[index], on_front=True) for index in non_dominated(admitted, cost or budget.cost)]


def starred(rows: Sequence[CandidateRow], run: RunRecord) -> list[CandidateRow]:
    """The rows with the name of the run's metric, and the one of `choose` marked `starred`."""
    chosen = choose(rows, run)
    return [
        replace(row, metric=run.metric, starred=chosen is not None and row.candidate == chosen.candidate)
        for row in rows
    ]


def listed(rows: Sequence[CandidateRow], run: RunRecord) -> list[CandidateRow]:
    """The front of rows of `candidates` within the run's budget and the starred row, by ascending FLOPs.

    The starred row is off the front if a baseline dominates it by less than the standard error of the accuracies.
    """
    marked, budget = starred(rows, run), budget_of(run)
    on_front = {row.candidate: row for row in front_of(marked, budget)}
    shown = (on_front.get(row.candidate, replace(row, on_front=False)) for row in marked)
    return [row for row in shown if row.on_front or row.starred]


def within(rows: Sequence[CandidateRow], budget: Budget) -> list[CandidateRow]:
    """The rows that the budget admits."""
    return [
        row
        for row in rows
        if budget.admits(
            flops_fraction=row.flops_fraction,
            params_fraction=row.params_fraction,
            latency_fraction=row.latency_fraction,
            memory_fraction=row.memory_fraction,
        )
    ]


def choose(rows: Sequence[CandidateRow], run: RunRecord) -> CandidateRow | None:
    """The row that gets the star in the run `run`; None if no row is within the budget.

    The star goes to the most accurate row within the budget or, if the job asks for an accuracy and a row has it, to
    the cheapest such row. A baseline that is not a method of the job gets the star only if no other row has the
    requested accuracy, or if it exceeds every other row by more than its standard error on the validation images.
    """
    admitted, floor = within(rows, budget_of(run)), floor_of(run)
    others = [row for row in admitted if not is_baseline(row, run)]
    if floor is not None:
        for some in (others, admitted):
            accurate = [row for row in some if row.val_accuracy >= floor]
            if accurate:
                return min(accurate, key=_cheapest)
    if not admitted:
        return None
    best = max(admitted, key=_most_accurate)
    margin = standard_error(best.val_accuracy, run.val_images)
    close = [row for row in others if row.val_accuracy >= best.val_accuracy - margin]
    return max(close, key=_most_accurate) if close else best


def is_baseline(row: CandidateRow, run: RunRecord) -> bool:
    """True if the row's method was tried as a baseline, and not because the job names it."""
    return row.method in BASELINES and row.method not in run.job.methods


def standard_error(accuracy: float, images: int | None) -> float:
    """Standard error of an accuracy on so many images, a fraction; 0 where their number is not known.

    For the metric of another task it is a rough measure, and 0 for one that is negative.
    """
    return (max(0.0, accuracy * (1 - accuracy)) / images) ** 0.5 if images else 0.0


def pick(rows: Sequence[CandidateRow], budget: Budget, *, min_accuracy: float | None = None) -> CandidateRow:
    """The most accurate row within the budget; with `min_accuracy`, the cheapest row that is at least so accurate.

    The accuracy is that on the validation split. Of equally accurate rows the cheapest is picked. A baseline is picked
    like any other row: the star is a recommendation, a pick is any network that fits.

    Raises:
        RapruneError: if there is no such row; the message names the nearest.
    """
    if not rows:
        raise RapruneError("The run has no complete trial yet.", hint="`raprune status RUN` shows how far it is.")
    admitted = within(rows, budget)
    if not admitted:
        smallest = min(rows, key=lambda row: (row.flops_fraction, row.params_fraction))
        raise RapruneError(
            f"No candidate is within {_wanted(budget)}: the smallest, {smallest.candidate}, has "
            f"{smallest.flops_fraction:.1%} of the dense network's FLOPs and {smallest.params_fraction:.1%} of "
            f"its parameters.",
            hint="Pick a larger budget, or search with a smaller one.",
        )
    if min_accuracy is None:
        return max(admitted, key=_most_accurate)
    accurate = [row for row in admitted if row.val_accuracy >= min_accuracy]
    if not accurate:
        best = max(admitted, key=lambda row: row.val_accuracy)
        raise RapruneError(
            f"No candidate within {_wanted(budget)} has a validation {best.metric} of {min_accuracy:g}: the best, "
            f"{best.candidate}, has {best.val_accuracy:.4f}.",
            hint=f"Ask for less {best.metric}, pick a larger budget, or search longer.",
        )
    return min(accurate, key=_cheapest)


def budget_of(run: RunRecord) -> Budget:
    """The budget of a run. Latency is a fraction there, unless it was not measured yet."""
    return Budget(**with_budget_table(run.spec).get("budget", {}))


def measured_in(budget: Budget, run: RunRecord) -> Budget:
    """The budget with its latency and its memory as fractions of the dense network of the run.

    Raises:
        UsageError: if latency is limited and the run was searched without latencies, or memory in a run of a version
            that did not count it.
    """
    budget = _traced_in(budget, run)
    if not budget.limits_latency:
        return budget
    latency = run.latency
    if latency is None:
        raise UsageError(
            "--budget-latency: this run knows no latencies: it was searched without --budget-latency.",
            hint="Pick by FLOPs or parameters, or search with --budget-latency.",
        )
    return budget.measured(latency.dense_ms)


def _traced_in(budget: Budget, run: RunRecord) -> Budget:
    if not budget.limits_memory:
        return budget
    dense_bytes = None if run.dense is None else run.dense.memory_bytes
    if dense_bytes is None:
        raise UsageError(
            "--budget-memory: this run knows no memory: an earlier version of raprune searched it.",
            hint="Pick by FLOPs or parameters, or search again with --warm-start.",
        )
    return budget.traced(dense_bytes * run.job.latency.batch_size)


def floor_of(run: RunRecord) -> float | None:
    """The validation accuracy that the job of a run asks for; None if it asks for none."""
    return accuracy_floor(run.job.min_accuracy, run.job.max_drop, run.dense_accuracy)


def _wanted(budget: Budget) -> str:
    parts = [
        f"{value:.1%} of the dense network's {name}"
        for name, value in (
            ("FLOPs", budget.flops),
            ("parameters", budget.params),
            ("latency", budget.latency),
            ("activation memory", budget.memory),
        )
        if value is not None
    ]
    return " and ".join(parts) or "no budget at all"


def _most_accurate(row: CandidateRow) -> tuple[float, int]:
    return row.val_accuracy, -row.flops


def _cheapest(row: CandidateRow) -> tuple[int, float]:
    return row.flops, -row.val_accuracy
