"""A bench whose clock the test moves."""

from __future__ import annotations

import math
from pathlib import Path

from acceptance.bench import Bench
from acceptance.results import Results
from acceptance.sizes import DRY


class Clock:
    """A clock that stands still unless it is moved."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def bench_in(folder: Path, *, deadline_s: float = math.inf, clock: Clock | None = None, device: str = "cpu") -> Bench:
    """A bench in a dry run without data."""
    return Bench(
        device=device,
        sizes=DRY,
        data=None,
        out=folder,
        work=folder,
        file=folder / "results.json",
        results=Results({"card": "none", "device": device, "mode": "dry", "date": "2026-11-28 04:00 UTC"}),
        deadline_s=deadline_s,
        clock=clock or Clock(),
    )
