"""Progress over compute time: hypervolume and best accuracy within the budget, over the hours of all trials so far."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from raprune.records import Stage
from raprune.report.figures.canvas import FAINT, INK, PALETTE, error_axis, is_wide
from raprune.results.run_results import RunResults


def height_in(results: RunResults, *, wide: bool) -> float:
    return 2.2 if wide else 3.2


def draw(figure: Figure, results: RunResults) -> None:
    """Draw into the empty `figure`: two panels side by side on a page's width, one above the other in a column."""
    spent, unit, per_hour = results.spent, *unit_of(results)
    hours = [per_hour * (row.gpu_hours if results.on_gpus else row.hours) for row in spent]
    end = per_hour * results.hours
    shape = (1, 2) if is_wide(figure) else (2, 1)
    above, below = figure.subplots(*shape, sharex=True)
    _line(above, hours, [row.hypervolume for row in spent], end, PALETTE[0], "hypervolume")
    errors = [results.error(row.val_accuracy) for row in spent if row.val_accuracy is not None]
    _line(below, hours, errors, end, PALETTE[1], f"best {results.run.metric}, %")
    dense = results.run.dense_accuracy
    if dense is not None:
        level = results.error(dense)
        below.axhline(level, color=INK, linewidth=0.7, linestyle=":")
        below.annotate("dense ", (1, level), (0, 2), below.get_yaxis_transform(), "offset points", ha="right")
    error_axis(below.yaxis, [*errors, *([] if dense is None else [level])])
    tuned = next((h for h, row in zip(hours, spent, strict=True) if row.stage is Stage.FINETUNE), None)
    for axes in (above, below):
        if tuned is not None:
            axes.axvline(tuned, color=FAINT, linewidth=0.7, linestyle=(0, (4, 2)))
    if tuned is not None:
        top = above.get_xaxis_transform()
        above.text(tuned, 1.0, "first fine-tuned ", transform=top, ha="right", va="bottom", color=FAINT)
    for axes in {below} if not is_wide(figure) else {above, below}:
        axes.set_xlabel(unit)


def unit_of(results: RunResults) -> tuple[str, float]:
    """Return the unit of compute time, and the number of units per hour."""
    whose = "GPU" if results.on_gpus else "worker"
    return (f"{whose}-minutes", 60.0) if results.hours < 1 else (f"{whose}-hours", 1.0)


def _line(axes: Axes, hours: list[float], values: list[float], end: float, colour: str, title: str) -> None:
    if values:
        axes.step([*hours, max(end, hours[-1])], [*values, values[-1]], where="post", color=colour)
    axes.plot(hours, values, marker="o", markersize=2, linestyle="none", color=colour)
    axes.set_xlim(left=0)
    axes.set_ylabel(title)
    axes.grid()
