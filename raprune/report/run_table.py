"""The list of runs on the screen: one row a run, newest first."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len
from rich.text import Text

from raprune.report.formats import ago
from raprune.results.run_list import ListedRun, RunSummary
from raprune.spec.budget import Budget
from raprune.store.record import ACCURACY

_COLUMNS = ("run", "state", "began", "trials", "budget", "best, val %", "network")
_RIGHT = ("trials",)
_GAP = 2
_STYLES = {"searching": "green", "idle": "yellow", "unreadable": "red"}
"""State -> its colour; `finished` has no colour."""


def render_runs(runs: Sequence[ListedRun], *, now: float, width: int) -> Text:
    """The table of the runs; `now` is in seconds since the epoch.

    People copy the name of a run, so it is never cut. If a row with its name is wider than `width`, every name has a
    line of its own above its row.
    """
    rows = [_cells(run, now) for run in runs]
    widths = [max(map(cell_len, column)) for column in zip(_COLUMNS, *rows, strict=True)]
    is_wide = sum(widths) + _GAP * (len(widths) - 1) > width
    text = Text()
    for row in (_COLUMNS, *rows):
        is_head = row is _COLUMNS
        cells = [
            " " * (size - cell_len(cell)) + cell if name in _RIGHT else cell + " " * (size - cell_len(cell))
            for name, cell, size in zip(_COLUMNS, row, widths, strict=True)
        ]
        if is_wide:
            cells[0] = " " * _GAP if is_head else f"{row[0]}\n{' ' * _GAP}"
        else:
            cells[0] += " " * _GAP
        style = "dim" if is_head else ""
        text.append(cells[0], style or "bold")
        text.append(cells[1], style or _STYLES.get(row[1], ""))
        text.append((" " * _GAP + (" " * _GAP).join(cells[2:])).rstrip(), style)
        text.append("\n")
    text.append(_note(runs), "dim")
    return text


def _cells(run: ListedRun, now: float) -> tuple[str, ...]:
    summary = run.summary
    if summary is None:
        return (run.name, run.state, *("-" for _ in _COLUMNS[2:]))
    return (
        run.name,
        run.state,
        ago(now - run.began_at) if run.began_at else "-",
        f"{summary.searched}/{summary.trials}",
        budget_in_words(summary.budget),
        _best(summary),
        summary.network or "-",
    )


def budget_in_words(budget: Budget) -> str:
    """The limits of a budget in few words: `30% FLOPs, 20% params`."""
    limits = [(budget.flops, "FLOPs"), (budget.params, "params"), (budget.latency, "latency")]
    limits += [(budget.memory, "memory")]
    said = [f"{100 * limit:.3g}% {cost}" for limit, cost in limits if limit is not None]
    if budget.latency_ms is not None:
        said.append(f"{budget.latency_ms:.3g} ms")
    if budget.memory_bytes is not None:
        said.append(f"{budget.memory_bytes / 2**20:.3g} MiB")
    return ", ".join(said) or "none"


def _best(summary: RunSummary) -> str:
    best, cost = summary.best, summary.budget.cost
    if best is None:
        return "none yet"
    fraction = best.latency_fraction if cost == "latency" else best.flops_fraction
    return f"{100 * best.val_accuracy:.2f}" + ("" if fraction is None else f" at {fraction:.1%}")


def _note(runs: Sequence[ListedRun]) -> str:
    """Return the note on the column `best`, with the name of the metric, or of several with a run of each."""
    named = {run.summary.metric: run.name for run in reversed(runs) if run.summary is not None}
    metric = next(iter(named)) if len(named) == 1 else ACCURACY
    if len(named) > 1:
        metric = "value of the task's metric (" + ", ".join(f"{one}: {run}" for one, run in named.items()) + ")"
    return f"best: validation {metric} at the fraction of the dense network's cost, of the starred network."
