"""The HTML of a report: text, tables, lists, and the page around them. All arguments are text, never markup."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from string import Template

_NUMERIC = "number"


def table(caption: str, head: Sequence[str], rows: Iterable[Sequence[str]], *, ids: Sequence[str] = ()) -> str:
    """Return a table of text cells. Columns whose title begins with `#` are numbers, aligned right.

    `ids` are the ids of the rows. A row whose first cell is a star is highlighted.
    """
    numeric = [title.startswith("#") for title in head]
    titles = "".join(
        f'<th scope="col"{_class(number)}>{escape(title.removeprefix("#"))}</th>'
        for title, number in zip(head, numeric, strict=True)
    )
    lines = []
    for place, cells in enumerate(rows):
        names = f' id="{ids[place]}"' if ids else ""
        names += ' class="chosen"' if cells[0] == "★" else ""
        body = "".join(f"<td{_class(number)}>{escape(cell)}</td>" for cell, number in zip(cells, numeric, strict=True))
        lines.append(f"<tr{names}>{body}</tr>")
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{escape(caption)}"><table>'
        f"<caption>{escape(caption)}</caption><thead><tr>{titles}</tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _class(number: bool) -> str:
    return f' class="{_NUMERIC}"' if number else ""


def facts(entries: Mapping[str, str]) -> str:
    """Return a list of terms and their descriptions; a term without a description is left out."""
    items = "".join(f"<dt>{escape(term)}</dt><dd>{escape(text)}</dd>" for term, text in entries.items() if text)
    return f"<dl>{items}</dl>"


def paragraph(*sentences: str, name: str = "") -> str:
    """Return a paragraph, or nothing if no sentence has text; `name` is the paragraph's class."""
    text = " ".join(sentence for sentence in sentences if sentence)
    named = f' class="{name}"' if name else ""
    return f"<p{named}>{escape(text)}</p>" if text else ""


def notice(*sentences: str) -> str:
    return f'<div class="notice" role="note">{paragraph(*sentences)}</div>'


def listing(text: str) -> str:
    return f"<pre>{escape(text)}</pre>"


def figure(svg: str, caption: str) -> str:
    return f'<figure tabindex="0">{svg}<figcaption>{escape(caption)}</figcaption></figure>'


def section(title: str, *parts: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{''.join(parts)}</section>"


def page(title: str, lead: str, *sections: str) -> str:
    return _PAGE.substitute(title=escape(title), lead=lead, sections="\n".join(part for part in sections if part))


# The policy forbids loading other files and running scripts: only the content of the file is shown.
_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>$title</title>
<style>
:root { color-scheme: light dark; --ink: #1a1a1b; --faint: #5f6368; --rule: #dcdcdd; --paper: #fefefe; --lit: #fff3d6; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e6; --faint: #a0a4aa; --rule: #3a3d44; --paper: #16181c; --lit: #3a3116; }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 0 auto;
  max-width: 62rem; padding: 1.5rem 1rem; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 .5rem; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .5rem; border-bottom: 1px solid var(--rule); padding-bottom: .2rem; }
p { max-width: 46rem; margin: .5rem 0; }
.lead { font-size: 1.05rem; }
.notice { border-left: 4px solid #d55e00; padding: .3rem .8rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1.2rem; margin: .8rem 0; }
dt { color: var(--faint); }
dd { margin: 0; overflow-wrap: anywhere; }
figure { margin: 1rem 0; }
figure svg { width: 100%; height: auto; display: block; }
figure svg text, figure svg tspan { font-family: system-ui, sans-serif !important; }
svg a:focus-visible { outline: 2px solid var(--ink); outline-offset: 2px; }
figcaption, caption { color: var(--faint); font-size: .87rem; text-align: left; }
caption { padding-bottom: .3rem; }
.wide { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .87rem; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .5rem; border-bottom: 1px solid var(--rule); text-align: left; white-space: nowrap; }
th { font-weight: 600; vertical-align: bottom; white-space: normal; line-height: 1.25; }
.number { text-align: right; }
tr.chosen { font-weight: 600; }
tr:target, tr:target td { background: var(--lit); }
pre { overflow-x: auto; padding: .6rem .8rem; border: 1px solid var(--rule); border-radius: 4px; font-size: .82rem; }
pre { font-family: ui-monospace, monospace; }
@page { size: A4; margin: 14mm; }
@media print {
  :root { color-scheme: light; --ink: #1a1a1b; --faint: #55585c; --rule: #c8c8c9; --paper: #ffffff; }
  body { font-size: 9.5pt; max-width: none; padding: 0; }
  table { font-size: 7.4pt; }
  th, td { padding: .12rem .3rem; }
  .wide, pre { overflow: visible; }
  pre { white-space: pre-wrap; overflow-wrap: anywhere; }
  h2, caption { break-after: avoid; }
  figure, tr, dl { break-inside: avoid; }
  thead { display: table-header-group; }
}
@media (max-width: 36rem) {
  figure { overflow-x: auto; }
  figure svg { min-width: 36rem; }
  dl { grid-template-columns: 1fr; }
  dt { margin-top: .3rem; }
}
</style>
</head>
<body>
<main>
<h1>$title</h1>
$lead
$sections
</main>
</body>
</html>
""")
