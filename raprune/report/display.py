"""Display of the stages of a command while they run: one block that is redrawn, or single lines.

On a terminal the block shows the current stage as a bar, the progress of the trials, and the whole run as a bar. In a
pipe, a file or the log of a job, a line is printed when a stage begins, and then every few seconds.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from raprune.report.formats import about, duration, shortened
from raprune.report.tables import render_standing
from raprune.results.progress import Progress
from raprune.results.stages import RunStage, RunStages, Stages

REFRESH_S = 0.5
"""Seconds between two drawings of the block, or between two checks if a line is due."""
LINE_S = 8.0
"""Maximum time in seconds between two lines."""
BRIEF_S = 1.0
"""Minimum duration in seconds of a stage that has its own line."""

_NAME_COLUMNS = 22
_TEXT_COLUMNS = 42
_WIDEST_BAR = 40


@contextmanager
def shown(console: Console, stages: Stages | None = None) -> Iterator[Stages]:
    """Show stages within the context. Given `stages` are displayed by the caller already, and are returned unchanged.

    A thread of its own draws them; an error in this thread ends the display and nothing else.
    """
    if stages is not None:
        yield stages
        return
    stages, done = Stages(), threading.Event()
    draw = _block if is_redrawn(console) else _lines
    thread = threading.Thread(target=draw, args=(console, stages, done), daemon=True, name="raprune-display")
    thread.start()
    try:
        yield stages
    finally:
        done.set()
        thread.join(timeout=5.0)


def is_redrawn(console: Console) -> bool:
    """True if the console can redraw a block of lines."""
    return console.is_terminal and not console.is_dumb_terminal


def render_stages(now: RunStages, standing: Progress | None = None, *, width: int = 80) -> RenderableType:
    """The block: a few lines, whatever the number of stages and trials."""
    grid = Table.grid(padding=(0, 1))
    # The column of names has the same width in every stage, so that the bars do not move.
    grid.add_column(no_wrap=True, width=_NAME_COLUMNS)
    grid.add_column(no_wrap=True)
    grid.add_column(no_wrap=True, overflow="ellipsis")
    bar_columns = max(8, min(_WIDEST_BAR, width - _NAME_COLUMNS - _TEXT_COLUMNS))
    parts: list[RenderableType] = [grid]
    stage = now.current
    if stage is not None:
        bar = ProgressBar(
            total=stage.total,
            completed=stage.done,
            width=bar_columns,
            pulse=stage.total is None,
            animation_time=now.elapsed_s,
        )
        grid.add_row(Text(stage.name, style="bold"), bar, _how_far(stage))
        if stage.detail:
            parts.append(Text(shortened(f"  {stage.detail}", width - 1), style="dim"))
    if now.left_s is not None and now.fraction is not None:
        bar = ProgressBar(total=1.0, completed=now.fraction, width=bar_columns)
        grid.add_row(Text("whole run"), bar, f"{duration(now.elapsed_s)}, about {about(now.left_s)} left")
    elif stage is not None and now.elapsed_s - stage.seconds >= BRIEF_S:
        grid.add_row(Text("whole run"), "", duration(now.elapsed_s))
    if standing is not None:
        parts.append(render_standing(standing))
    return Group(*parts)


def line(now: RunStages, standing: Progress | None = None) -> str:
    """The current stage and the standing of the trials as one line of plain text."""
    stage = now.current
    if stage is None:
        return ""
    said = f"[{now.elapsed_s:.0f} s] {stage.name}"
    if stage.total is not None or stage.seconds >= LINE_S / 2:
        said += f": {_how_far(stage)}"
    if stage.detail:
        said += f" ({stage.detail})"
    if now.left_s is not None:
        said += f"; whole run: about {about(now.left_s)} left"
    if standing is not None and standing.searched:
        failed = f", {standing.states['FAILED']} failed" if standing.states.get("FAILED") else ""
        said += f"; front {standing.front}{failed}, hypervolume {standing.hypervolume:.4f}"
        if standing.best is not None:
            best = standing.best
            said += f", best {best.val_accuracy:.2%} at {best.flops_fraction:.1%} FLOPs"
    return said


class Lines:
    """Decision when a line is due: once for each stage that lasts `BRIEF_S`, then every `LINE_S`."""

    def __init__(self) -> None:
        self._stage = -1
        self._said_at = float("-inf")

    def due(self, now: RunStages) -> bool:
        """True if a line is due now; the line then counts as printed."""
        stage = now.current
        if stage is None:
            return False
        number = sum(other.state == "ended" for other in now.stages)
        is_new = number != self._stage and stage.seconds >= BRIEF_S
        if not is_new and now.elapsed_s - self._said_at < LINE_S:
            return False
        self._stage, self._said_at = number, now.elapsed_s
        return True


def _how_far(stage: RunStage) -> str:
    parts = []
    if stage.total is not None:
        parts.append(f"{stage.done:g} of {stage.total:g} {stage.unit}".rstrip())
    if stage.rate:
        parts.append(_rate(stage))
    else:
        parts.append(duration(stage.seconds))
    if stage.left_s is not None:
        parts.append(f"{about(stage.left_s)} left")
    return ", ".join(parts)


def _rate(stage: RunStage) -> str:
    """Units per second, or seconds per unit if one unit takes longer."""
    assert stage.rate
    return f"{stage.rate:.1f}/s" if stage.rate >= 1 else f"{duration(1 / stage.rate)} each"


def _block(console: Console, stages: Stages, done: threading.Event) -> None:
    try:
        with Live(console=console, auto_refresh=False, transient=True) as live:
            while not done.wait(REFRESH_S):
                live.update(render_stages(stages.now(), stages.standing, width=console.width), refresh=True)
    except Exception:
        return


def _lines(console: Console, stages: Stages, done: threading.Event) -> None:
    lines = Lines()
    try:
        while not done.wait(REFRESH_S):
            now = stages.now()
            if lines.due(now):
                console.print(line(now, stages.standing), markup=False, highlight=False, soft_wrap=True)
    except Exception:
        return
