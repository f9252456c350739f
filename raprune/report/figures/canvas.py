"""Common parts of a report's figures: sizes, colours, marks, and the files."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

COLUMN_IN = 3.35
PAGE_IN = 6.9
"""Widths of a column and of a page of text in the two-column formats of IEEE and ACM, in inches."""

KINDS = ("pdf", "svg", "png")

# Okabe and Ito (2008): distinguishable with every kind of colour vision, on white and on black.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "D", "^", "v", "P", "X")
BASELINE = "random"

INK = "#1a1a1b"
FAINT = "#7a7a7b"
RULE = "#dcdcdd"
PAPER = "#fefefe"
"""Colours of text, secondary elements, grid lines and background. No other part of a figure has these colours, so that
a page can replace them by its own."""


@dataclass(frozen=True)
class Mark:
    """Colour and marker of a method in all figures of a run."""

    colour: str
    marker: str


def marks(methods: Iterable[str]) -> dict[str, Mark]:
    """Return the mark of each method; no two methods have the same colour and shape. The baseline is grey."""
    names = sorted(set(methods))
    others = [name for name in names if name != BASELINE]
    found = {
        name: Mark(PALETTE[place % len(PALETTE)], MARKERS[place % len(MARKERS)]) for place, name in enumerate(others)
    }
    return found | ({BASELINE: Mark("#8c8c8c", "x")} if BASELINE in names else {})


def is_wide(figure: Figure) -> bool:
    return figure.get_figwidth() > COLUMN_IN


@contextmanager
def canvas(width_in: float, height_in: float) -> Iterator[Figure]:
    """Yield an empty figure, which must be drawn and saved within the context: it sets the lines and fonts."""
    size = 8.0 if width_in > COLUMN_IN else 7.0
    settings: Any = {
        # A font that comes with matplotlib, so that a figure is the same on every machine.
        "font.family": "DejaVu Sans",
        "font.size": size,
        "axes.labelsize": size,
        "axes.titlesize": size,
        "legend.fontsize": size - 0.5,
        "xtick.labelsize": size - 0.5,
        "ytick.labelsize": size - 0.5,
        "axes.linewidth": 0.6,
        "xtick.major.width": 0.6,
        "ytick.major.width": 0.6,
        "xtick.major.size": 2.5,
        "ytick.major.size": 2.5,
        "lines.linewidth": 1.0,
        "grid.linewidth": 0.5,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "legend.frameon": False,
        "legend.handletextpad": 0.3,
        "legend.columnspacing": 1.2,
        "text.color": INK,
        "axes.edgecolor": INK,
        "axes.labelcolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "grid.color": RULE,
        "figure.facecolor": PAPER,
        "axes.facecolor": PAPER,
        "savefig.facecolor": PAPER,
        "pdf.fonttype": 42,  # TrueType: journals refuse Type 3, the default
        "svg.hashsalt": "raprune",
        "axes.unicode_minus": False,
        "text.parse_math": False,  # a name may contain a dollar sign
    }
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(width_in, height_in), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure


def save(figure: Figure, kind: str, *, letters: bool = False) -> bytes:
    """Save the figure as a file of `KINDS`: the same bytes for the same figure. PNG has 300 dots per inch.

    `letters` keeps the text of an SVG as text, in the reader's font; otherwise the text is drawn as paths.
    """
    buffer = io.BytesIO()
    undated = {"pdf": {"CreationDate": None}, "svg": {"Date": None}, "png": {"Software": None}}
    with matplotlib.rc_context({"svg.fonttype": "none" if letters else "path"}):
        figure.savefig(buffer, format=kind, dpi=300, metadata=undated[kind])
    return buffer.getvalue()


def error_axis(axis: Axis, errors: Sequence[float]) -> None:
    """Turn an axis of errors in percent into an axis of accuracies, the best accuracy at the end.

    The scale is the logarithm of the error, because each further point of accuracy is worth more.
    """
    worst, best = 1.2 * max(errors, default=100.0), min(errors, default=1.0) / 1.35
    ticks = accuracy_ticks(best, worst)
    axis.axes.set(**{f"{axis.axis_name}scale": "log", f"{axis.axis_name}lim": (worst, best)})  # type: ignore[attr-defined]
    axis.set_ticks(list(ticks), labels=list(ticks.values()))
    axis.set_ticks([], minor=True)


def accuracy_ticks(smallest: float, largest: float) -> dict[float, str]:
    """Return the labels of an axis of the error's logarithm: the accuracy for each error in percent."""
    for steps in ((1, 1.5, 2, 3, 4, 5, 6, 8), (1, 2, 3, 5), (1, 2, 5), (1, 5), (1,)):
        errors = [step * 10.0**power for power in range(-3, 3) for step in steps]
        ticks = [error for error in errors if smallest <= error <= min(largest, 100.0)]
        if len(ticks) <= 7:
            break
    return {error: f"{100 - error:.10g}" for error in ticks}


def thinned(labels: list[str], most: int) -> dict[int, str]:
    """Return at most `most` of the labels, at equal distances, by their positions."""
    step = max(1, math.ceil(len(labels) / most))
    return {place: label for place, label in enumerate(labels) if place % step == 0}
