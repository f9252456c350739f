"""The report of a run: one HTML file to send to someone, figures for a paper, tables for programs. No torch, no ray.

front.html                       the whole report; it fetches nothing and runs nothing
front.png                        the front
front.json ablation.json spent.json
figures/front.pdf, front-wide.pdf, ...   `raprune.report.figures.files`: written by `raprune report` alone
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console

from raprune.report import figures
from raprune.report.html import sections
from raprune.report.html.markup import page
from raprune.results.run_results import Findings, read_findings
from raprune.store.folder import Store

FOLDER = "report"
PAGE = "front.html"


def html(findings: Findings) -> str:
    """The report as one page."""
    parts = (
        sections.asked,
        sections.front,
        sections.chosen,
        sections.widths,
        sections.methods,
        sections.cost,
        sections.repeat,
    )
    return page(sections.title(findings), sections.lead(findings), *(part(findings) for part in parts))


def write_report(store: Store, *, run: Mapping[str, Any] | None = None) -> None:
    """Writes the page, the picture of the front and the tables into the run's folder `report`.

    `run` is the content of `run.json` as it will be once the report is there; without it, as it is.
    """
    for name, content in _files(store, read_findings(store, run=run)):
        store.write_bytes(f"{FOLDER}/{name}", content)


def report(uri: str, *, folder: str | None = None, console: Console) -> None:
    """Writes all of that and the figures to `folder`, a path or a URI, or into the run's own.

    Raises:
        StoreError: if there is no run, or the folder cannot be written to.
    """
    store = Store(uri)
    findings = read_findings(store)
    into, below = (store, f"{FOLDER}/") if folder is None else (Store(folder), "")
    number = 0
    for name, content in (*_files(store, findings), *((f"figures/{n}", c) for n, c in figures.files(findings))):
        into.write_bytes(below + name, content)
        number += 1
    where = f"{into.name}/{below}".rstrip("/")
    unfinished = "" if findings.progress.finished else " The run is not finished; the report says so."
    console.print(
        f"Wrote {where}/{PAGE}, one page to send to someone, and {number - 1} files beside it: figures for a paper in "
        f"figures/, tables as JSON.{unfinished}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def _files(store: Store, findings: Findings) -> Iterator[tuple[str, bytes]]:
    yield PAGE, html(findings).encode()
    yield "front.png", figures.picture(findings)
    tables = {
        "front": [row.to_json() for row in findings.listed],
        "ablation": [row.to_json() for row in findings.ablation],
        "spent": [row.to_json() for row in findings.spent],
    }
    for name, rows in tables.items():
        yield f"{name}.json", (json.dumps(rows, indent=2) + "\n").encode()
