"""The figures of a run, for its report and for a paper. No torch, no ray."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import ModuleType

from raprune.report.figures import ablation, cost, front, widths
from raprune.report.figures.canvas import COLUMN_IN, KINDS, PAGE_IN, canvas, save
from raprune.report.figures.inline import inline
from raprune.results.run_results import RunResults

FIGURES: dict[str, ModuleType] = {"front": front, "widths": widths, "ablation": ablation, "cost": cost}
"""Module that draws each figure, by name."""


def files(results: RunResults) -> Iterator[tuple[str, bytes]]:
    """Yield each figure for a column (`front.pdf`) and for a page's width (`front-wide.pdf`), as PDF, SVG and PNG."""
    for name, figure in FIGURES.items():
        for width_in, suffix in ((COLUMN_IN, ""), (PAGE_IN, "-wide")):
            with canvas(width_in, figure.height_in(results, wide=width_in == PAGE_IN)) as drawn:
                figure.draw(drawn, results)
                for kind in KINDS:
                    yield f"{name}{suffix}.{kind}", save(drawn, kind)


def picture(results: RunResults) -> bytes:
    """Draw the front on a page's width, as PNG."""
    with canvas(PAGE_IN, front.height_in(results, wide=True)) as drawn:
        front.draw(drawn, results)
        return save(drawn, "png")


def element(name: str, results: RunResults, *, label: str, hovers: Mapping[str, str] | None = None) -> str:
    """Draw a figure on a page's width as the `<svg>` element of a page."""
    with canvas(PAGE_IN, FIGURES[name].height_in(results, wide=True)) as drawn:
        FIGURES[name].draw(drawn, results)
        return inline(save(drawn, "svg", letters=True), name, label=label, hovers=hovers)
