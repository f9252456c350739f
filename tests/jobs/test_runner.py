"""Sections of the acceptance run: guarded, within the deadline, and saved line by line."""

from __future__ import annotations

import math
import time
from pathlib import Path

import pytest
from acceptance import runner
from acceptance.bench import Bench
from acceptance.results import Results, SectionState
from acceptance.runner import Section, run_sections

from tests.jobs.benches import Clock, bench_in


def notes(bench: Bench) -> None:
    bench.record("noted", 1.0, "s")


def fails(bench: Bench) -> None:
    bench.record("before", 1.0)
    raise ValueError("it broke\nin two lines")


def exits(bench: Bench) -> None:
    raise SystemExit("no data")


def section(name: str, run: object = notes, seconds: float = 10.0) -> Section:
    return Section(name=name, seconds=seconds, run=run)  # type: ignore[arg-type]


@pytest.mark.parametrize(("run", "error"), [(fails, "ValueError: it broke"), (exits, "SystemExit: no data")])
def test_section_that_raises_is_recorded_and_the_rest_runs(tmp_path: Path, run: object, error: str) -> None:
    bench = bench_in(tmp_path)
    assert run_sections(bench, [section("first", run), section("second")]) == []
    first, second = Results.load(bench.file).sections
    assert (first.state, first.reason) == (SectionState.FAILED, error)
    assert "Traceback" in first.traceback
    assert second.state is SectionState.PASSED
    assert not bench.results.passed


def test_section_without_enough_time_is_skipped_as_a_whole(tmp_path: Path) -> None:
    clock = Clock()

    def works(bench: Bench) -> None:
        clock.now += 60
        notes(bench)

    bench = bench_in(tmp_path, deadline_s=100, clock=clock)
    run_sections(bench, [section("long", works, 50), section("longer", fails, 50), section("short", works, 30)])
    states = {found.name: found.state for found in bench.results.sections}
    assert states == {"long": SectionState.PASSED, "longer": SectionState.SKIPPED, "short": SectionState.PASSED}
    skipped = bench.results.sections[1]
    assert skipped.lines == []
    assert skipped.reason == "40 s were left, it needs 50 s"
    assert bench.results.passed, "a section that did not run has not failed"


def test_section_that_hangs_is_ended_and_the_rest_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "PATIENCE", 0.02)
    bench = bench_in(tmp_path, deadline_s=100)
    run_sections(bench, [section("hangs", lambda bench: time.sleep(60), 5), section("second")])
    first, second = bench.results.sections
    assert first.reason.startswith("OverTimeError") and second.state is SectionState.PASSED


def test_missed_bar_fails_the_section_and_the_run(tmp_path: Path) -> None:
    bench = bench_in(tmp_path)
    run_sections(bench, [section("slow", lambda bench: bench.at_least("rate", 9.0, 10.0, "x", anywhere=True))])
    assert bench.results.sections[0].state is SectionState.FAILED
    assert not bench.results.passed


@pytest.mark.parametrize("figure", [math.nan, math.inf, -math.inf])
def test_figure_that_is_not_finite_meets_no_bar(tmp_path: Path, figure: float) -> None:
    bench = bench_in(tmp_path)
    bench.begin("odd")
    bench.at_least("rate", figure, -1.0, "x", anywhere=True)
    bench.at_most("time", figure, 1.0, "s", anywhere=True)
    assert [line.passed for line in bench.results.sections[0].lines] == [False, False]


def test_bar_of_a_gpu_judges_nothing_on_a_cpu(tmp_path: Path) -> None:
    bench = bench_in(tmp_path)
    bench.begin("throughput")
    bench.at_least("rate", 1.0, 30_000.0, "images/s")
    (line,) = bench.results.sections[0].lines
    assert line.passed is None and line.bar == 30_000.0


def test_results_are_on_disk_after_each_line(tmp_path: Path) -> None:
    seen = []

    def looks(bench: Bench) -> None:
        notes(bench)
        seen.append(Results.load(bench.file).sections[-1])

    run_sections(bench_in(tmp_path), [section("looks", looks)])
    assert [line.name for line in seen[0].lines] == ["noted"]
    assert seen[0].state is SectionState.RUNNING


def test_sections_behind_a_lost_gpu_are_left_to_a_new_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = bench_in(tmp_path, device="cuda")
    monkeypatch.setattr(Bench, "wait", lambda self: None)
    monkeypatch.setattr(runner, "is_alive", lambda: False)
    sections = [section("first", fails), section("second"), section("third")]
    assert [one.name for one in run_sections(bench, sections)] == ["second", "third"]
    assert [one.name for one in bench.results.sections] == ["first"]
