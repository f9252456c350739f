"""Display of the stages on a terminal and in a pipe."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from raprune.report.display import LINE_S, Lines, is_redrawn, line, render_stages, shown
from raprune.results import stages
from raprune.results.progress import Progress
from raprune.results.stages import RunStage, RunStages, Stages
from tests.factories import candidate_row

STANDING = Progress(
    metric="accuracy",
    states={"COMPLETE": 12, "FAILED": 1, "WAITING": 51},
    steps=0,
    searched=13,
    trials=64,
    finetuned=0,
    finetunings=16,
    front=5,
    hypervolume=0.5123,
    best=candidate_row(val_accuracy=0.91, flops_fraction=0.28),
    dense_accuracy=0.95,
    elapsed_s=43.0,
    left_s=27.0,
    gpu_hours=0.0,
)
SCORING = RunStage(
    name="score channels",
    started_at=1e9,
    seconds=43.0,
    done=12,
    total=55,
    unit="groups",
    rate=0.25,
    detail="reconstruction, scores: group 12 of 55",
)
WAITING = RunStage(name="search", state="waiting", expected_s=60.0)
NOW = RunStages(stages=(SCORING, WAITING), elapsed_s=60.0, left_s=232.0, written_at=1e9)


def drawn(now: RunStages, standing: Progress | None = None, *, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    console.print(render_stages(now, standing, width=width))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [80, 120])
def test_block_shows_stage_and_run_with_done_all_rate_and_time_left(width: int) -> None:
    text = drawn(NOW, STANDING, width=width)
    assert "12 of 55 groups, 4 s each, 3 min left" in text
    assert "reconstruction, scores: group 12 of 55" in text
    assert "60 s, about 4 min left" in text
    assert "91.00% validation at 28.0% of the FLOPs" in " ".join(text.split())
    names = [value for key, value in vars(stages).items() if key.isupper() and isinstance(value, str) and key != "FILE"]
    assert all(name in drawn(replace(NOW, stages=[replace(SCORING, name=name)]), width=width) for name in names)
    assert all(len(row) <= width for row in text.splitlines())
    assert "…" not in text


def test_block_without_a_forecast_shows_no_time_left_of_the_run() -> None:
    text = drawn(replace(NOW, left_s=None))
    assert text.count("left") == 1 and "whole run" in text


def test_block_of_a_stage_of_unknown_size_shows_its_time() -> None:
    now = RunStages(stages=(RunStage(name="start Ray", started_at=1e9, seconds=9.0),), elapsed_s=12.0)
    assert "start Ray" in drawn(now) and "9 s" in drawn(now)


def test_line_has_all_that_the_block_has() -> None:
    assert line(NOW, STANDING) == (
        "[60 s] score channels: 12 of 55 groups, 4 s each, 3 min left (reconstruction, scores: group 12 of 55)"
        "; whole run: about 4 min left; front 5, 1 failed, hypervolume 0.5123, best 91.00% at 28.0% FLOPs"
    )


def test_line_is_due_for_each_stage_that_is_not_brief_and_then_every_few_seconds() -> None:
    lines = Lines()

    def due(seconds: float, elapsed_s: float, before: int = 0) -> bool:
        ended = tuple(RunStage(name="before", state="ended") for _ in range(before))
        stage = RunStage(name="now", started_at=1e9, seconds=seconds)
        return lines.due(RunStages(stages=(*ended, stage), elapsed_s=elapsed_s))

    assert not lines.due(RunStages())
    assert due(1.0, 1.0)
    assert not due(2.0, 2.0)
    assert not due(0.5, 3.0, before=1), "perhaps it is brief"
    assert due(1.0, 3.5, before=1)
    assert not due(LINE_S, 3.5 + LINE_S - 0.5, before=1)
    assert due(LINE_S + 1, 3.5 + LINE_S, before=1)


def test_lines_are_printed_at_least_every_few_seconds() -> None:
    """Seen: 20 minutes without a word while a network was scored."""
    lines, silent, longest = Lines(), 0.0, 0.0
    for half_seconds in range(2400):
        elapsed = half_seconds / 2
        stage = RunStage(name="score channels", started_at=1e9, seconds=elapsed)
        silent = 0.0 if lines.due(RunStages(stages=(stage,), elapsed_s=elapsed)) else silent + 0.5
        longest = max(longest, silent)
    assert longest < 10


def test_given_stages_are_returned_without_a_display() -> None:
    given = Stages()
    with shown(Console(file=io.StringIO()), given) as passed:
        assert passed is given


def test_block_is_gone_when_the_stages_are_over_and_after_an_interruption() -> None:
    console = Console(file=io.StringIO(), width=80, force_terminal=True)

    def interrupted() -> None:
        with shown(console) as new:
            new.begin("search", total=3, unit="trials")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert isinstance(console.file, io.StringIO)
    # The cursor is shown again, and nothing is left below it.
    assert console.file.getvalue().endswith(("\x1b[?25h", "\x1b[2K"))


@pytest.mark.parametrize(
    ("terminal", "kind", "expected"), [(True, "xterm", True), (True, "dumb", False), (False, "xterm", False)]
)
def test_block_is_drawn_only_where_it_can_be_redrawn(
    monkeypatch: pytest.MonkeyPatch, terminal: bool, kind: str, expected: bool
) -> None:
    monkeypatch.setenv("TERM", kind)
    assert is_redrawn(Console(file=io.StringIO(), force_terminal=terminal)) is expected
