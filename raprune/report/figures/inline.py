"""A figure inside an HTML page: its colours are the page's, its points say what they are and lead to their rows."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping

from raprune.report.figures.canvas import FAINT, INK, PAPER, RULE

VARIABLES = {INK: "--ink", FAINT: "--faint", RULE: "--rule", PAPER: "--paper"}
"""Colour of a figure -> the variable of the page's style that takes its place."""


def inline(svg: bytes, name: str, *, label: str, hovers: Mapping[str, str] | None = None) -> str:
    """The `<svg>` element of a figure. `label` is read out in its place.

    `name` sets its ids apart from those of other figures. `hovers` maps a candidate to what its point says; the point
    becomes a link to the page's `#candidate-...`.
    """
    text = svg.decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\b(id="|href="#|url\(#)', rf"\g<1>{name}-", text)
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    for candidate, words in (hovers or {}).items():
        said = html.escape(words)
        opened = f'<a href="#candidate-{candidate}" aria-label="{said}"><title>{said}</title>'
        text = re.sub(
            rf'(<g id="{name}-point-{candidate}">.*?</g>\s*</g>)',
            lambda match, opened=opened: f"{opened}{match[1]}</a>",  # type: ignore[misc]
            text,
            count=1,
            flags=re.DOTALL,
        )
    size = re.search(r'viewBox="[^"]*"', text)
    assert size is not None
    # What is an image has nothing inside for those who hear it.
    role = "group" if hovers else "img"
    head = f'<svg {size[0]} role="{role}" aria-label="{html.escape(label)}" xmlns:xlink="http://www.w3.org/1999/xlink">'
    return re.sub(r"<svg[^>]*>", lambda _: head, text, count=1)
