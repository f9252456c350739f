"""Figures inside an HTML page, in the page's colours; points have descriptions and link to their table rows."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping

from raprune.report.figures.canvas import FAINT, INK, PAPER, RULE

VARIABLES = {INK: "--ink", FAINT: "--faint", RULE: "--rule", PAPER: "--paper"}
"""Variable of the page's style that replaces each colour of a figure."""


def inline(svg: bytes, name: str, *, label: str, hovers: Mapping[str, str] | None = None) -> str:
    """Return the `<svg>` element of a figure. A screen reader reads `label` instead of the figure.

    `name` is the prefix of the element's ids. `hovers` maps a candidate to the description of its point, which becomes
    a link to the page's `#candidate-...`.
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
    # A screen reader skips the content of an image.
    role = "group" if hovers else "img"
    head = f'<svg {size[0]} role="{role}" aria-label="{html.escape(label)}" xmlns:xlink="http://www.w3.org/1999/xlink">'
    return re.sub(r"<svg[^>]*>", lambda _: head, text, count=1)
