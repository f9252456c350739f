"""The result of a run in one sentence. No torch, no ray."""

from __future__ import annotations

from collections.abc import Mapping

from raprune.report.formats import about, count, cuts_in_words, times_as_fast
from raprune.results.front import budget_of, floor_of
from raprune.results.rows import CandidateRow
from raprune.results.siblings import SiblingComparison
from raprune.results.stages import FINETUNE, LATENCY, PHASES, REPORT, SCORES, SEARCH, TEST
from raprune.results.timings import Times, Timing, is_faster
from raprune.store.record import RunRecord


def summary(row: CandidateRow, run: RunRecord, times: Times) -> str:
    """A sentence that compares the network of the starred row with the dense network: cost, speed and accuracy.

    The accuracy is measured on the test split if the run did so, else on the validation split. A second sentence says
    if no network has the required accuracy.
    """
    parts = [part for part in (_kept(row, run), _speed(row, times), _accuracy(row, run)) if part]
    said = f"The chosen network, {row.candidate} by {row.method}, {', '.join(parts[:-1])} and {parts[-1]}."
    floor = floor_of(run)
    if floor is not None and row.val_accuracy < floor:
        said += f" No network has the required {run.metric}, {_percent(floor)} on the validation split."
    return said


def compared(comparison: SiblingComparison, run: RunRecord) -> str:
    """A sentence that compares the front with a smaller dense network; a second one if that is the better choice."""
    sibling, rival, lead = comparison.sibling, comparison.rival, comparison.lead
    own, other = comparison.accuracies
    flops = run.dense.flops if run.dense is not None else None
    at = f" at {_percent(sibling.flops / flops)} of the FLOPs" if flops else f" with {count(sibling.flops)} FLOPs"
    said = f"{sibling.name} ({sibling.weights}) has {100 * own:.2f} % {comparison.split} {run.metric}{at}"
    if rival is None or lead is None or other is None:
        return f"{said}; the front has no network with so few."
    points = f"{abs(100 * lead):.2f} points {'less' if comparison.is_beaten else 'more'}"
    said += f"; {rival.candidate}, the best of the front with no more, has {100 * other:.2f} %, {points}."
    return f"{said} The smaller dense network is the better choice there." if comparison.is_beaten else said


def ways_told(best: Mapping[int, int]) -> str:
    """A sentence on `best_by_cuts`: for how many finalists each number of cuts is best; empty for no finalist."""
    if not best:
        return ""
    won = [f"{finalists} in {cuts_in_words(cuts)}" for cuts, finalists in best.items()]
    return f"Best on the validation split, of {sum(best.values())} finalists: {', '.join(won[:-1])} and {won[-1]}."


def _kept(row: CandidateRow, run: RunRecord) -> str:
    budget = budget_of(run)
    kept = [f"{_percent(row.flops_fraction)} of the FLOPs"]
    if budget.params is not None:
        kept.append(f"{_percent(row.params_fraction)} of the parameters")
    if budget.memory is not None and row.memory_fraction is not None:
        kept.append(f"{_percent(row.memory_fraction)} of the peak activation memory")
    return f"keeps {' and '.join(kept)}"


def _speed(row: CandidateRow, times: Times) -> str:
    if times.batch is not None and row.speedup is not None:
        under = f"at batch {times.batch.batch_size} on {_device(times.batch)}"
        speed = times_as_fast(row.speedup)
        return f"is {speed} faster {under}" if is_faster(row) else f"is not faster {under} ({speed})"
    if row.latency_fraction is not None:
        return f"takes about {_percent(row.latency_fraction)} of the latency, as predicted"
    return ""


def _device(timing: Timing) -> str:
    if timing.threads is None:
        return timing.device
    busy = " of a busy machine" if timing.is_disturbed else ""
    return f"{timing.threads} CPU thread{'s' * (timing.threads != 1)}{busy}"


def _accuracy(row: CandidateRow, run: RunRecord) -> str:
    split, accuracy, dense = "test", row.test_accuracy, row.dense_test_accuracy
    if accuracy is None:
        split, accuracy, dense = "validation", row.val_accuracy, run.dense_accuracy
    against = "" if dense is None else f" against {100 * dense:.1f} % of the dense network"
    return f"has {100 * accuracy:.1f} % {split} {run.metric}{against}"


def _percent(fraction: float) -> str:
    """A fraction in percent, with two significant digits: 29 %, 2.9 %."""
    return f"{100 * fraction:.0f} %" if fraction >= 0.1 else f"{100 * fraction:.2g} %"


def forecast_told(seconds: Mapping[str, float]) -> str:
    """The forecast as a sentence: the whole duration, and the three longest stages."""
    largest = sorted(seconds.items(), key=lambda item: -item[1])[:3]
    most = ", ".join(f"{_WORDS.get(name, name)} {about(value)}" for name, value in largest)
    return f"This will take about {about(sum(seconds.values()))}: {most}."


_WORDS = {
    PHASES: "training for methods",
    SCORES: "scores",
    SEARCH: "trials",
    FINETUNE: "fine-tuning",
    TEST: "the test split",
    LATENCY: "measuring latency",
    REPORT: "the report",
}
