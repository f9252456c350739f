"""Comparison of the methods: the best network of each within the budget, after repair and after fine-tuning."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from raprune.report import formats
from raprune.report.figures.canvas import FAINT, INK, PAPER, Mark, error_axis, is_wide, marks
from raprune.results.ablation import SHARES, AblationRow
from raprune.results.run_results import RunResults


def height_in(results: RunResults, *, wide: bool) -> float:
    return 1.2 + 0.2 * len({row.method for row in results.ablation})


def draw(figure: Figure, results: RunResults) -> None:
    """Draw into the empty `figure`: a panel per fraction of the budget (only one in a column)."""
    shares = SHARES if is_wide(figure) else SHARES[:1]
    known = marks(row.method for row in results.rows)
    order = _by_accuracy(results.ablation)
    panels = figure.subplots(1, len(shares), sharey=True, sharex=True, squeeze=False)[0]
    for axes, share in zip(panels, shares, strict=True):
        rows = [row for row in results.ablation if row.share == share]
        _panel(axes, rows, results, order, known)
        dense = results.run.dense_accuracy
        if dense is not None:
            axes.axvline(results.error(dense), color=INK, linewidth=0.7, linestyle=":")
        if rows:
            axes.set_title(_up_to(rows[0]), loc="left")
    panels[0].set_yticks(range(len(order)), labels=order)
    panels[0].set_ylim(max(1, len(order)) - 0.5, -0.5)
    shown = [row.best.val_accuracy for row in results.ablation if row.share in shares]
    dense = results.run.dense_accuracy
    error_axis(panels[0].xaxis, [results.error(value) for value in (shown if dense is None else [*shown, dense])])
    panels[len(panels) // 2].set_xlabel(f"validation {results.run.metric}, %")
    _legend(figure, panels[0], results)


def _up_to(row: AblationRow) -> str:
    """Return the budget of a row of the ablation in words."""
    return f"up to {100 * row.limit:.3g} % of the {row.cost_in_words}"


def _by_accuracy(rows: list[AblationRow]) -> list[str]:
    """Return the methods, the best within the budget first."""
    best: dict[str, tuple[float, float]] = {}
    for row in rows:
        best[row.method] = max(best.get(row.method, (0.0, 0.0)), (row.share, row.best.val_accuracy))
    return sorted(best, key=lambda method: (*(-value for value in best[method]), method))


def _panel(axes: Axes, rows: list[AblationRow], results: RunResults, order: list[str], known: dict[str, Mark]) -> None:
    for place, method in enumerate(order):
        own = sorted((row for row in rows if row.method == method), key=lambda row: row.finetuning_epochs)
        values = [results.error(row.best.val_accuracy) for row in own]
        mark = known[method]
        axes.plot(values, [place] * len(own), color=mark.colour, linewidth=0.8, alpha=0.6)
        for row, value in zip(own, values, strict=True):
            axes.plot(
                [value],
                [place],
                marker="o" if mark.marker == "x" else mark.marker,
                markersize=5,
                markerfacecolor=mark.colour if row.finetuning_epochs else PAPER,
                markeredgecolor=mark.colour,
                linestyle="none",
            )
    axes.grid(axis="x")


def _legend(figure: Figure, axes: Axes, results: RunResults) -> None:
    tuned = sorted({row.finetuning_epochs for row in results.ablation if row.finetuning_epochs})
    handles = list(axes.plot([], [], "o", color=FAINT, markerfacecolor=PAPER, label="repaired"))
    if tuned:
        epochs = " or ".join([*(f"{number:g}" for number in tuned[:-1]), formats.epochs_in_words(tuned[-1])])
        handles += axes.plot([], [], "o", color=FAINT, label=f"fine-tuned, {epochs}")
    if results.run.dense_accuracy is not None:
        handles += axes.plot([], [], ":", color=INK, linewidth=0.8, label="dense network")
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
