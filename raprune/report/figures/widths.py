"""Widths by layer: the fraction of each group's channels that stayed, for some networks of the front."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from raprune.report.figures.canvas import RULE, is_wide, marks, thinned
from raprune.results.rows import CandidateRow
from raprune.results.run_results import RunResults

FEW = 6
"""Maximum number of groups whose names are written horizontally."""

NUMBERED = 12
"""Maximum number of groups for which each bar shows its number of channels."""


def height_in(results: RunResults, *, wide: bool) -> float:
    longest = max((len(name) for name in results.groups), default=0)
    return 0.8 + 0.75 * max(1, len(results.spread)) + 0.055 * min(longest, 30)


def draw(figure: Figure, results: RunResults) -> None:
    """Draw into the empty `figure`: a panel for each network of `RunResults.spread`, groups in the network's order."""
    known = marks(row.method for row in results.rows)
    shown = results.spread
    panels = figure.subplots(max(1, len(shown)), 1, sharex=True, squeeze=False)[:, 0]
    for axes, row in zip(panels, shown, strict=False):
        _panel(axes, row, results.groups, known[row.method].colour, numbered=is_wide(figure))
        axes.set_title(_title(row, results), loc="left")
    labels = thinned([_short(name) for name in results.groups], 44 if is_wide(figure) else 22)
    panels[-1].set_xticks(list(labels), labels=list(labels.values()), rotation=90 if len(labels) > FEW else 0)
    figure.supylabel("channels that stayed, %", fontsize=panels[0].yaxis.label.get_fontsize())


def _panel(axes: Axes, row: CandidateRow, groups: dict[str, int], colour: str, *, numbered: bool) -> None:
    places = range(len(groups))
    shares = [100 * row.width_of(name, dense) / dense for name, dense in groups.items()]
    axes.bar(places, [100] * len(groups), width=0.8, color=RULE)
    axes.bar(places, shares, width=0.8, color=colour)
    is_numbered = numbered and len(groups) <= NUMBERED
    for place, (name, dense) in enumerate(groups.items()) if is_numbered else ():
        axes.annotate(f"{row.width_of(name, dense)} of {dense}", (place, 104), ha="center", va="bottom")
    # With few groups the bars must not become too wide.
    beside = max(0.6, 0.6 + (FEW - len(groups)) / 2)
    axes.set_xlim(-beside, len(groups) - 1 + beside)
    axes.set_ylim(0, 135 if is_numbered else 100)
    axes.set_yticks([0, 50, 100])


def _title(row: CandidateRow, results: RunResults) -> str:
    is_chosen = results.chosen is not None and row.candidate == results.chosen.candidate
    costs = f"{100 * row.flops_fraction:.1f} % FLOPs, {100 * row.val_accuracy:.1f} % {results.run.metric}"
    return f"{'chosen: ' if is_chosen else ''}{row.method}, {costs}"


def _short(name: str) -> str:
    """Return the end of a long name, because names of groups differ at the end."""
    return name if len(name) <= 30 else f"…{name[-29:]}"
