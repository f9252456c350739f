"""One driver for a run: the coordinator grants the run to the driver that it hears of, for as long as it does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import ray
from rich.console import Console

from raprune.errors import UsageError

BEAT_S = 1.0
"""Between two signs of life of a driver."""

LEASE_S = 10.0
"""So long after a driver's last sign of life another may take its run over."""

SILENT_S = 20.0
"""So long without an answer of the coordinator, and the user is told."""

ORPHANED_S = 600.0
"""So long after any driver's last sign of life a coordinator ends: nobody came to resume the run."""


@dataclass
class Lease:
    """Who has the run. Times are seconds of one monotonic clock."""

    heard_at: float
    holder: str | None = None

    def take(self, session: str, now: float) -> float | None:
        """Grant the run to `session`: None, or else how many seconds ago its holder was last heard of."""
        if self.holder not in (None, session) and now - self.heard_at < LEASE_S:
            return now - self.heard_at
        self.holder, self.heard_at = session, now
        return None

    def is_orphaned(self, now: float, after_s: float) -> bool:
        """Whether no driver was heard of for so long."""
        return now - self.heard_at > after_s


@dataclass(frozen=True)
class LeaseAnswer:
    """What the coordinator says to a sign of life."""

    silent_s: float | None
    """None: the run is the driver's that asks. Else seconds since its holder was last heard of."""
    outages: Mapping[str, str] = field(default_factory=dict)
    """Who waits for a filesystem -> why."""


@contextmanager
def held(coordinator: Any, session: str, name: str, *, console: Console) -> Iterator[None]:
    """The run `name` for `session` alone, for the time of the block; says on `console` what its processes wait for.

    Raises:
        UsageError: if another driver has the run, and is alive.
    """
    _take(lambda: ray.get(coordinator.hold.remote(session)), name, console=console)
    done = threading.Event()
    thread = threading.Thread(
        target=_beat, args=(coordinator, session, console, done), daemon=True, name="raprune-lease"
    )
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(timeout=2 * BEAT_S)


def _take(ask: Callable[[], LeaseAnswer], name: str, *, console: Console) -> None:
    answer, before = ask(), float("-inf")
    if answer.silent_s is not None:
        console.print("Another driver has this run; looking whether it is alive.", markup=False)
    while answer.silent_s is not None:
        if answer.silent_s < before:
            raise UsageError(
                f"{name}: another driver works on this run.",
                hint=f"See how far it is: raprune status {name}   End it before you resume the run elsewhere.",
            )
        before = answer.silent_s
        time.sleep(BEAT_S / 2)
        answer = ask()


def _beat(coordinator: Any, session: str, console: Console, done: threading.Event) -> None:
    said: Mapping[str, str] = {}
    silent = False
    while not done.wait(BEAT_S):
        reference = coordinator.hold.remote(session)
        while not ray.wait([reference], timeout=SILENT_S)[0] and not done.is_set():
            if not silent:
                console.print("The run's coordinator does not answer; it may be coming up again.", markup=False)
            silent = True
        try:
            answer: LeaseAnswer = ray.get(reference, timeout=0)
            silent = False
        except ray.exceptions.RayError:
            # Whoever needs an answer of the coordinator says it.
            continue
        for message in dict.fromkeys(answer.outages.values()):
            if message not in said.values():
                console.print(message, markup=False, highlight=False)
        if said and not answer.outages:
            console.print("The store answers again.", markup=False)
        said = answer.outages
