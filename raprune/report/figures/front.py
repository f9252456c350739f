"""The front: accuracy over cost, with the budget, the dense network, and all other candidates faded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from raprune.report.figures.canvas import FAINT, INK, PAPER, Mark, error_axis, is_wide, marks
from raprune.report.formats import shortened
from raprune.results.rows import CandidateRow
from raprune.results.run_results import RunResults

MANY = 400
"""Number of dominated candidates above which they become one raster image: a file of thousands of marks is slow."""

TEST = "_"
"""Marker of an accuracy on the test split."""

SIBLING = "D"
"""Marker of a smaller dense network."""

LONGEST_NAME = 22
"""Letters of its name beside it: half of the narrowest figure."""


def height_in(results: RunResults, *, wide: bool) -> float:
    return 3.9 if wide else 3.0


def draw(figure: Figure, results: RunResults) -> None:
    """Draw into the empty `figure`. A front without candidates gives empty axes."""
    axes = figure.add_subplot()
    known = marks(row.method for row in results.rows)
    front = {row.candidate for row in results.front}
    _others(axes, results, [row for row in results.rows if row.candidate not in front], known)
    _front(axes, results, known)
    _limits(axes, results)
    _scales(axes, results)
    _siblings(axes, results)
    _legend(figure, axes, results, known)


def cost_of(row: CandidateRow, results: RunResults) -> float:
    """Return the cost on the axis, in percent of the dense network's; an unknown latency counts as 100 %."""
    fraction = row.fraction(results.budget.cost)
    return 100.0 if fraction is None else 100 * fraction


def cost_title(results: RunResults) -> str:
    what = "predicted latency" if results.budget.cost == "latency" else "FLOPs"
    return f"{what}, % of the dense network"


def _others(axes: Axes, results: RunResults, rows: Sequence[CandidateRow], known: dict[str, Mark]) -> None:
    for method, mark in known.items():
        part = [row for row in rows if row.method == method]
        axes.scatter(
            [cost_of(row, results) for row in part],
            [results.error(row.val_accuracy) for row in part],
            s=10,
            marker=mark.marker,
            c=mark.colour,
            alpha=0.4,
            linewidths=0.6 if mark.marker == "x" else 0,
            rasterized=len(rows) > MANY,
            zorder=2,
        )


def _front(axes: Axes, results: RunResults, known: dict[str, Mark]) -> None:
    rows = sorted(results.front, key=lambda row: cost_of(row, results))
    costs = [cost_of(row, results) for row in rows]
    errors = [results.error(row.val_accuracy) for row in rows]
    if rows:
        end = 100 * results.budget.limit
        axes.step([*costs, end], [*errors, errors[-1]], where="post", color=FAINT, linewidth=0.8, zorder=3)
    for row, cost, error in zip(rows, costs, errors, strict=True):
        mark = known[row.method]
        interval = 100 * (row.val_interval or 0.0)
        if interval:
            # The axis is logarithmic, so a bar must not reach an error of 0.
            spread = [[min(interval, 0.9 * error)], [interval]]
            axes.errorbar([cost], [error], yerr=spread, color=mark.colour, linewidth=0.8, capsize=2, zorder=3)
        axes.plot(
            [cost],
            [error],
            gid=f"point-{row.candidate}",
            marker=mark.marker,
            markersize=5,
            markerfacecolor=mark.colour if row.epochs else PAPER,
            markeredgecolor=mark.colour,
            markeredgewidth=1.0,
            linestyle="none",
            zorder=5,
        )
        if row.test_accuracy is not None:
            tested = results.error(row.test_accuracy)
            axes.plot([cost], [tested], marker=TEST, markersize=5, color=INK, linestyle="none", zorder=6)
    if (chosen := results.chosen) is not None:
        place = [cost_of(chosen, results)], [results.error(chosen.val_accuracy)]
        axes.plot(*place, marker="o", markersize=11, color=INK, fillstyle="none", linestyle="none", zorder=4)


def _sibling_costs(results: RunResults) -> list[float]:
    """Costs of the smaller dense networks on the axis; none on an axis of latency, which nobody measured for them."""
    if results.budget.cost != "flops" or results.dense is None or not results.dense.flops:
        return []
    return [100 * sibling.flops / results.dense.flops for sibling in results.siblings]


def _siblings(axes: Axes, results: RunResults) -> None:
    for cost, sibling in zip(_sibling_costs(results), results.siblings, strict=False):
        error = results.error(sibling.val_accuracy)
        axes.plot([cost], [error], marker=SIBLING, markersize=5, color=INK, linestyle="none", zorder=6)
        # Beside the mark: above and below it is that of the test accuracy.
        side = 1 if cost < sum(axes.get_xlim()) / 2 else -1
        axes.annotate(
            shortened(sibling.name, LONGEST_NAME),
            (cost, error),
            xytext=(6 * side, 0),
            textcoords="offset points",
            ha="left" if side > 0 else "right",
            va="center",
            color=INK,
            zorder=6,
        )
        if sibling.test_accuracy is not None:
            tested = results.error(sibling.test_accuracy)
            axes.plot([cost], [tested], marker=TEST, markersize=5, color=INK, linestyle="none", zorder=6)


def _limits(axes: Axes, results: RunResults) -> None:
    limit = getattr(results.budget, results.budget.cost)
    top = axes.get_xaxis_transform()
    if limit is not None:
        axes.axvline(100 * limit, color=INK, linewidth=0.7, linestyle=(0, (4, 2)))
        axes.text(100 * limit, 1.0, f"budget {100 * limit:g} % ", transform=top, ha="right", va="bottom")
    dense = results.run.dense_accuracy
    if dense is not None:
        axes.axhline(results.error(dense), color=INK, linewidth=0.7, linestyle=":")
    if results.test.dense is not None:
        axes.axhline(results.error(results.test.dense), color=FAINT, linewidth=0.7, linestyle=(0, (1, 3)))
    if results.floor is not None:
        axes.axhline(results.error(results.floor), color=FAINT, linewidth=0.7, linestyle="-.")


def _scales(axes: Axes, results: RunResults) -> None:
    accuracies = [row.val_accuracy for row in results.rows]
    accuracies += [row.test_accuracy for row in results.front if row.test_accuracy is not None]
    lines = results.run.dense_accuracy, results.test.dense, results.floor
    accuracies += [value for value in lines if value is not None]
    if _sibling_costs(results):
        accuracies += [sibling.val_accuracy for sibling in results.siblings]
        accuracies += [sibling.test_accuracy for sibling in results.siblings if sibling.test_accuracy is not None]
    error_axis(axes.yaxis, [results.error(accuracy) for accuracy in accuracies])
    axes.set_ylabel(f"validation {results.run.metric}, %")
    costs = [cost_of(row, results) for row in results.rows] or [0.0, 100.0]
    costs += _sibling_costs(results)
    end = max([*costs, 100 * results.budget.limit])
    start = min(costs)
    margin = 0.05 * (end - start) or 1.0
    axes.set_xlim(max(0.0, start - margin), end + margin)
    axes.set_xlabel(cost_title(results))
    axes.grid(axis="y")


def _legend(figure: Figure, axes: Axes, results: RunResults, known: dict[str, Mark]) -> None:
    def sign(marker: str, colour: str, label: str, *, filled: bool = True, size: float = 5.0, line: Any = "") -> None:
        face = colour if filled else PAPER
        handles.extend(
            axes.plot([], [], marker=marker, color=colour, markerfacecolor=face, markersize=size, linestyle=line,
                      linewidth=0.8, label=label)
        )  # fmt: skip

    handles: list[object] = []
    for method, mark in known.items():
        sign(mark.marker, mark.colour, method)
    sign("", FAINT, "front", line="-")
    if any(not row.epochs for row in results.front) and any(row.epochs for row in results.front):
        sign("o", FAINT, "hollow: not fine-tuned", filled=False)
    if results.chosen is not None:
        sign("o", INK, "chosen", filled=False, size=8)
    if any(row.test_accuracy is not None for row in results.front):
        sign(TEST, INK, f"its test {results.run.metric}")
    if _sibling_costs(results):
        sign(SIBLING, INK, "smaller dense network")
    if results.run.dense_accuracy is not None:
        sign("", INK, "dense network", line=":")
    if results.test.dense is not None:
        sign("", FAINT, "dense, test", line=(0, (1, 3)))
    if results.floor is not None:
        sign("", FAINT, f"required {results.run.metric}", line="-.")
    if any(row.val_interval for row in results.front):
        sign("|", FAINT, "95 % interval")
    figure.legend(handles=handles, loc="outside lower center", ncols=5 if is_wide(figure) else 3)
