"""Tables on a terminal: at any width from 60 columns up, ids and figures that count are whole."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import pytest
from rich.console import Console, RenderableType

from raprune.report.tables import GIVE_WAY, render_ablation, render_progress, render_rows
from raprune.results.ablation import AblationRow, ablation
from raprune.results.front import starred
from raprune.results.progress import progress
from raprune.results.rows import CandidateRow, candidates
from raprune.results.test_split import SplitAccuracies
from raprune.results.timings import Times, Timing, with_times
from raprune.spec.budget import Budget
from raprune.store.folder import Store
from tests.factories import make_run

WIDTHS = (60, 72, 80, 100, 120, 200)
METHOD = "mymethods:VeryLongMethodName"
TEST = SplitAccuracies(dense=0.9778, images=360)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_run(tmp_path_factory.mktemp("run"))


def printed(what: RenderableType, width: int) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(what)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def widest_rows(run: Store) -> tuple[list[CandidateRow], Times]:
    """Rows with all columns at their widest: long ids and names, seeds, intervals, times, test accuracies."""
    rows = starred(candidates(run.trials()), run.record())[:12]
    rows = [
        replace(
            row,
            candidate=f"3f2a9c81ab{number:02}-ft-s{number:02}",
            method=METHOD,
            epochs=22.5,
            val_accuracy=0.9123 + number / 1000,
            test_accuracy=0.9023 + number / 1000,
            dense_test_accuracy=0.9778,
            val_interval=0.0123,
            test_interval=0.0234,
            zeros=row.params // 2,
            repeats=(0, 1, 2),
            starred=number == 3,
            latency_fraction=0.512,
        )
        for number, row in enumerate(rows)
    ]
    timings = [
        Timing(
            device="CPU",
            threads=2,
            precision="float32",
            batch_size=size,
            dense_ms=4.0,
            candidates={row.candidate: 1.7 for row in rows},
        )
        for size in (1, 64)
    ]
    times = Times(conditions=tuple(timings))
    return with_times(rows, times), times


@pytest.mark.parametrize("width", WIDTHS)
def test_front_at_any_width_has_ids_flops_accuracies_and_star_whole(run: Store, width: int) -> None:
    rows, times = widest_rows(run)
    shown = printed(render_rows(rows, run.record(), TEST, times=times, width=width), width)
    assert max(map(len, shown.splitlines())) <= width
    for row in rows:
        (line,) = [line for line in shown.splitlines() if row.candidate in line]
        figures = line.split()
        assert row.candidate in figures
        assert row.test_accuracy is not None
        for told in (f"{row.flops_fraction:.1%}", f"{100 * row.val_accuracy:.2f}", f"{100 * row.test_accuracy:.2f}"):
            assert told in figures, line
        assert ("★" in line) == row.starred
    dense = next(line for line in shown.splitlines() if re.match(r" +dense ", line))
    assert {"100.0%", "98.10", "97.78"} <= set(dense.split())


@pytest.mark.parametrize("width", WIDTHS)
def test_front_cuts_nothing_but_names_of_methods(run: Store, width: int) -> None:
    rows, times = widest_rows(run)
    shown = printed(render_rows(rows, run.record(), TEST, times=times, width=width), width)
    for line in shown.splitlines():
        cut = [word for word in line.split() if "…" in word]
        assert all(METHOD.startswith(word.removesuffix("…")) and len(word) >= 8 for word in cut), line


def test_columns_are_left_out_in_the_stated_order(run: Store) -> None:
    rows, times = widest_rows(run)
    headers = {"MACs", "nonzero", "latency", "faster@1", "epochs", "drop", "faster@64"}
    named = {"faster alone": "faster@1", "faster": "faster@64"}
    narrowest = []
    for header in (named.get(name, name) for name in GIVE_WAY):
        if header in headers:
            shown_at = (
                w for w in range(60, 240) if header in head(render_rows(rows, run.record(), TEST, times=times, width=w))
            )
            narrowest.append(next(shown_at))
    assert len(narrowest) == len(headers)
    assert narrowest == sorted(narrowest, reverse=True)


def head(what: RenderableType) -> list[str]:
    """Headers of a table."""
    return next(line for line in printed(what, 240).splitlines() if "candidate" in line).split()


def test_notes_explain_only_the_columns_shown(run: Store) -> None:
    rows, times = widest_rows(run)
    narrow = printed(render_rows(rows, run.record(), TEST, times=times, width=60), 500)
    wide = printed(render_rows(rows, run.record(), TEST, times=times, width=240), 500)
    for note in ("MACs as 1", "Nonzero:", "Epochs:", "Drop:", "Latency:", "Faster:", "95 % confidence"):
        assert note in wide and note not in narrow, note


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("method", ["l2", METHOD])
def test_ablation_at_any_width_has_accuracies_whole(run: Store, width: int, method: str) -> None:
    rows = [
        replace(row, best=replace(row.best, method=f"{method}{number}")) for number, row in enumerate(_compared(run))
    ]
    shown = printed(render_ablation(rows, run.record(), width=width), width)
    assert max(map(len, shown.splitlines())) <= width
    for row in rows:
        told = f"{100 * row.best.val_accuracy:.2f} at {row.best.flops_fraction:.1%}"
        assert told in shown
    assert "…" not in shown or method == METHOD


def _compared(run: Store) -> list[AblationRow]:
    return [row for budget in (0.1, 0.15, 0.2, 0.25, 0.3) for row in ablation(run.trials(), Budget(flops=budget))]


@pytest.mark.parametrize("width", [60, 80])
def test_status_at_any_width_has_all_its_words(run: Store, width: int) -> None:
    now = progress(run.record(), run.trials())
    shown, wide = (printed(render_progress(now), columns) for columns in (width, 200))
    assert max(map(len, shown.splitlines())) <= width
    assert shown.split() == wide.split()


def test_further_figures_of_the_starred_network_are_told_below_the_table(run: Store) -> None:
    rows = starred(candidates(run.trials()), run.record())
    rows = [replace(row, test_further={"top-5 accuracy": 0.987}) for row in rows]
    test = replace(TEST, dense_further={"top-5 accuracy": 0.991})
    name = next(row.candidate for row in rows if row.starred)
    lines = " ".join(printed(render_rows(rows, run.record(), test), 200).split())
    assert f"Test top-5 accuracy: 98.70% of {name}, 99.10% of dense." in lines
    assert "top-5" not in printed(render_rows(starred(candidates(run.trials()), run.record()), run.record(), TEST), 200)
