"""What the terminal shows while a search runs: one block that renews itself, or a line now and then."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from raprune.front import Progress as Standing
from raprune.tables import render_progress
from raprune.training import Epoch

_REFRESH_S = 1.0
_LINE_S = 5.0


@contextmanager
def standing(console: Console, read: Callable[[], Standing]) -> Iterator[None]:
    """Shows what `read` gives for the time of the block: a live block on a terminal, else a line every few seconds.

    Reading and drawing happen in a thread of their own; what goes wrong there is not shown and harms nothing.
    """
    done = threading.Event()
    show = _block if console.is_terminal else _lines
    thread = threading.Thread(target=show, args=(console, read, done), daemon=True, name="raprune-status")
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(timeout=5.0)


class Training:
    """The progress of one training after another; `epoch` for each one that ended."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._said_at = 0.0
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("epochs, training accuracy {task.fields[accuracy]:.2%}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("training", total=None, accuracy=0.0)

    def __enter__(self) -> Training:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def epoch(self, epoch: Epoch, what: str = "training the dense network") -> None:
        self._bar.update(
            self._task, description=what, completed=epoch.number, total=epoch.epochs, accuracy=epoch.accuracy
        )
        if not self._console.is_terminal and time.monotonic() - self._said_at > _LINE_S:
            self._said_at = time.monotonic()
            self._console.print(
                f"{what}: epoch {epoch.number} of {epoch.epochs:g}, training accuracy {epoch.accuracy:.2%}"
            )


def line(now: Standing) -> str:
    """Where a search stands, in one line of plain text."""
    best = "-" if now.best is None else f"{now.best['val_accuracy']:.2%} at {now.best['flops_fraction']:.1%} FLOPs"
    failed = f", {now.states['FAILED']} failed" if now.states.get("FAILED") else ""
    tuned = f", {now.finetuned} fine-tuned" if now.finetuned else ""
    return (
        f"[{now.elapsed_s:.0f} s] {now.searched} of {now.trials} candidates{failed}{tuned}, front {now.front}, "
        f"hypervolume {now.hypervolume:.4f}, best {best}"
    )


def _block(console: Console, read: Callable[[], Standing], done: threading.Event) -> None:
    try:
        with Live(console=console, auto_refresh=False, transient=True) as live:
            while not done.is_set():
                live.update(render_progress(read()), refresh=True)
                done.wait(_REFRESH_S)
    except Exception:
        return


def _lines(console: Console, read: Callable[[], Standing], done: threading.Event) -> None:
    said = ""
    try:
        while not done.wait(_LINE_S):
            now = line(read())
            if now.partition("]")[2] != said:
                said = now.partition("]")[2]
                console.print(now, markup=False, highlight=False)
    except Exception:
        return
