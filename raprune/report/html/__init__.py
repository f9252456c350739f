"""The report of a run: one self-contained HTML file, figures for a paper, tables for programs. No torch, no ray.

front.html                       the whole report; it loads no other file and runs no script
front.png                        the figure of the front
front.json ablation.json spent.json
figures/front.pdf, front-wide.pdf, ...   `raprune.report.figures.files`: only `raprune report` writes them
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace

from rich.console import Console

from raprune.report import figures
from raprune.report.html import sections
from raprune.report.html.markup import page
from raprune.report.summary import compared
from raprune.results.run_results import RunResults, read_run_results
from raprune.results.siblings import Sibling, keep_siblings, with_siblings
from raprune.store.folder import Store
from raprune.store.record import RunRecord

FOLDER = "report"
PAGE = "front.html"


def html(results: RunResults) -> str:
    """Return the report as one page."""
    parts = (
        sections.asked,
        sections.front,
        sections.chosen,
        sections.widths,
        sections.methods,
        sections.cost,
        sections.repeat,
    )
    return page(sections.title(results), sections.lead(results), *(part(results) for part in parts))


def write_report(store: Store, *, run: RunRecord | None = None) -> None:
    """Write the page, the figure of the front and the tables into the run's folder `report`.

    `run` is the record that `run.json` will have once the report is written; without `run` it is read.
    """
    for name, content in _files(store, read_run_results(store, run=run)):
        store.write_bytes(f"{FOLDER}/{name}", content)


def report(uri: str, *, folder: str | None = None, siblings: Sequence[Sibling] = (), console: Console) -> None:
    """Write the report and all figures to `folder`, a path or a URI, or into the run's own folder.

    `siblings` are smaller dense networks beside those that the run was compared with before; the run keeps them.

    Raises:
        StoreError: if there is no run, or the folder cannot be written to.
    """
    store = Store(uri)
    results = read_run_results(store)
    if siblings:
        results = replace(results, siblings=with_siblings(results.siblings, siblings))
        keep_siblings(store, results.siblings)
    into, below = (store, f"{FOLDER}/") if folder is None else (Store(folder), "")
    number = 0
    for name, content in (*_files(store, results), *((f"figures/{n}", c) for n, c in figures.files(results))):
        into.write_bytes(below + name, content)
        number += 1
    where = f"{into.name}/{below}".rstrip("/")
    unfinished = "" if results.progress.finished else " The run is not finished, and the report notes this."
    for comparison in results.comparisons:
        style = "yellow" if comparison.is_beaten else ""
        console.print(compared(comparison, results.run), style=style, markup=False, highlight=False)
    console.print(
        f"Wrote {where}/{PAGE}, a self-contained page, and {number - 1} other files: figures for a paper in figures/, "
        f"tables as JSON.{unfinished}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def _files(store: Store, results: RunResults) -> Iterator[tuple[str, bytes]]:
    yield PAGE, html(results).encode()
    yield "front.png", figures.picture(results)
    tables = {
        "front": [row.to_json() for row in results.listed],
        "ablation": [row.to_json() for row in results.ablation],
        "spent": [row.to_json() for row in results.spent],
    }
    for name, rows in tables.items():
        yield f"{name}.json", (json.dumps(rows, indent=2) + "\n").encode()
