"""Tables of candidates as a session shows them: rows, a text that fits a terminal, HTML, and a DataFrame."""

from __future__ import annotations

import html
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, overload

from rich.console import Console

from raprune.errors import UsageError
from raprune.report import formats
from raprune.report.tables import WIDE, render_rows
from raprune.results.rows import CandidateRow
from raprune.results.run_results import RunResults

if TYPE_CHECKING:
    from pandas import DataFrame

MOST = 40
"""Rows that a notebook shows; the others are counted."""


@dataclass(frozen=True, eq=False, repr=False)
class CandidateTable(Sequence[CandidateRow]):
    """Candidates of a run, as a sequence of typed rows; it shows itself as a table."""

    rows: tuple[CandidateRow, ...]
    results: RunResults
    """Results of the run, for the dense network and the times beside the rows."""

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> CandidateRow: ...

    @overload
    def __getitem__(self, index: slice) -> CandidateTable: ...

    def __getitem__(self, index: int | slice) -> CandidateRow | CandidateTable:
        if isinstance(index, slice):
            return CandidateTable(self.rows[index], self.results)
        return self.rows[index]

    def to_pandas(self) -> DataFrame:
        """The rows as a pandas DataFrame: one column for each field, fractions in [0, 1].

        Raises:
            UsageError: if pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError:
            raise UsageError("to_pandas: pandas is not installed.", hint="pip install 'raprune[pandas]'") from None
        return pd.DataFrame([row.to_json() for row in self.rows])

    def __repr__(self) -> str:
        file = io.StringIO()
        console = Console(file=file, width=WIDE, force_jupyter=False)
        results = self.results
        shown = list(self.rows[:MOST])
        console.print(render_rows(shown, results.run, results.test, times=results.times, width=WIDE))
        return file.getvalue().rstrip() + self._left_out()

    def _repr_html_(self) -> str:
        return self.to_html()

    def to_html(self) -> str:
        """The table in HTML, as a notebook shows it: the starred row in bold."""
        if not self.rows:
            return "<p>No candidate yet.</p>"
        columns = [column for column in _COLUMNS if any(column.cell(row) for row in self.rows)]
        head = "".join(
            f'<th style="text-align:{column.align}">{html.escape(self._title(column))}</th>' for column in columns
        )
        body = "".join(_row_html(row, columns) for row in self.rows[:MOST])
        note = f"<p>{html.escape(self._left_out().strip())}</p>" if self._left_out() else ""
        dense = _dense_html(self.results, columns)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}{dense}</tbody></table>{note}"

    def _title(self, column: _ShownColumn) -> str:
        """Title of a column, with the name of the task's metric."""
        return column.title.replace("accuracy", self.results.run.metric)

    def _left_out(self) -> str:
        more = len(self.rows) - MOST
        return f"\n... and {more} more of {len(self.rows)} rows" if more > 0 else ""


@dataclass(frozen=True)
class _ShownColumn:
    """A column of the HTML table."""

    title: str
    align: str
    cell: Callable[[CandidateRow], str]
    """Text of a row; empty where it has no value."""
    dense: Callable[[RunResults], str] = lambda results: ""
    """Text of the dense network."""


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.2%}"


def _spread(value: float | None, interval: float | None) -> str:
    return _percent(value) + ("" if interval is None or value is None else f" ± {interval:.2%}")


_COLUMNS = (
    _ShownColumn("", "left", lambda row: "★" if row.starred else "", lambda results: ""),
    _ShownColumn("candidate", "left", lambda row: row.candidate, lambda results: "dense network"),
    _ShownColumn("method", "left", lambda row: row.method),
    _ShownColumn("FLOPs", "right", lambda row: f"{row.flops_fraction:.1%}", lambda results: "100.0%"),
    _ShownColumn("parameters", "right", lambda row: f"{row.params_fraction:.1%}", lambda results: "100.0%"),
    _ShownColumn("latency", "right", lambda row: "" if row.latency_fraction is None else f"{row.latency_fraction:.1%}"),
    _ShownColumn("memory", "right", lambda row: "" if row.memory_fraction is None else f"{row.memory_fraction:.1%}"),
    _ShownColumn("faster", "right", lambda row: "" if row.speedup is None else formats.times_as_fast(row.speedup)),
    _ShownColumn("epochs", "right", lambda row: f"{row.epochs:g}"),
    _ShownColumn(
        "validation accuracy",
        "right",
        lambda row: _spread(row.val_accuracy, row.val_interval),
        lambda results: _percent(results.run.dense_accuracy),
    ),
    _ShownColumn(
        "test accuracy",
        "right",
        lambda row: _spread(row.test_accuracy, row.test_interval),
        lambda results: _percent(results.test.dense),
    ),
)


def _row_html(row: CandidateRow, columns: Sequence[_ShownColumn]) -> str:
    style = f"font-weight:{'bold' if row.starred else 'normal'};white-space:nowrap"
    cells = "".join(
        f'<td style="text-align:{column.align};{style}">{html.escape(column.cell(row))}</td>' for column in columns
    )
    return f"<tr>{cells}</tr>"


def _dense_html(results: RunResults, columns: Sequence[_ShownColumn]) -> str:
    cells = "".join(
        f'<td style="text-align:{column.align};font-style:italic">{html.escape(column.dense(results))}</td>'
        for column in columns
    )
    return f"<tr>{cells}</tr>"


def described(results: RunResults) -> str:
    """One paragraph about a run: its state, its dense network, the number of its trials."""
    run = results.run
    dense = results.dense
    on_front = f"{len(results.front)} network{'s' * (len(results.front) != 1)} on the front"
    parts = [f"{run.state or 'unknown'}, {len(results.trials)} trials, {on_front}"]
    if dense is not None and dense.flops is not None:
        known = "" if dense.val_accuracy is None else f", {dense.val_accuracy:.2%} validation {run.metric}"
        parts.append(f"dense network {run.job.model.name}: {formats.count(dense.flops)} FLOPs{known}")
    return "; ".join(parts)
