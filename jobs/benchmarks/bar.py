"""One line a bar; times that a busy machine does not bend, by turns and medians; the commit of a table."""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

Action = Callable[[], object]


def show(name: str, *, figure: float, bar: float, unit: str, more_is_better: bool) -> bool:
    """Print `name: figure (bar)  met|missed`; whether it was met."""
    met = figure >= bar if more_is_better else figure <= bar
    relation = "at least" if more_is_better else "at most"
    print(
        f"{name}: {_number(figure)} {unit} (bar: {relation} {_number(bar)} {unit})  {'met' if met else 'missed'}",
        flush=True,
    )
    return met


def times_by_turns(sides: Sequence[Action], *, repeats: int, warm_up: int = 1) -> list[list[float]]:
    """Seconds of each run of each side, `repeats` of them, run A B A B; `warm_up` rounds go before, untimed."""
    seconds: list[list[float]] = [[] for _ in sides]
    for turn in range(warm_up + repeats):
        for side, runs in zip(sides, seconds, strict=True):
            started = time.perf_counter()
            side()
            if turn >= warm_up:
                runs.append(time.perf_counter() - started)
    return seconds


def medians(seconds: Sequence[Sequence[float]]) -> list[float]:
    """The median of each side."""
    return [statistics.median(runs) for runs in seconds]


def commit() -> str:
    """Return the commit of these sources, with `-dirty` if they were changed since."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
