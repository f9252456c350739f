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
"""Time between two heartbeats of a driver."""

LEASE_S = 10.0
"""Time after a driver's last heartbeat from which another driver may take its run over."""

SILENT_S = 20.0
"""Time without an answer of the coordinator after which the user is told."""

ORPHANED_S = 600.0
"""Time after the last heartbeat of any driver at which a coordinator ends: nobody resumed the run."""


@dataclass
class Lease:
    """The driver that has the run. Times are seconds of one monotonic clock."""

    heard_at: float
    holder: str | None = None

    def take(self, session: str, now: float) -> float | None:
        """Grant the run to `session` and return None, or return the seconds since its holder's last heartbeat."""
        if self.holder not in (None, session) and now - self.heard_at < LEASE_S:
            return now - self.heard_at
        self.holder, self.heard_at = session, now
        return None

    def is_orphaned(self, now: float, after_s: float) -> bool:
        """True if there was no heartbeat for `after_s`."""
        return now - self.heard_at > after_s


@dataclass(frozen=True)
class LeaseAnswer:
    """The coordinator's answer to a heartbeat."""

    silent_s: float | None
    """None: the driver that asks has the run. Else the seconds since the holder's last heartbeat."""
    outages: Mapping[str, str] = field(default_factory=dict)
    """Process that waits for a filesystem -> the reason."""


@contextmanager
def held(coordinator: Any, session: str, name: str, *, console: Console) -> Iterator[None]:
    """Hold the run `name` for `session` during the block; print on `console` what its processes wait for.

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
            # The next caller that needs an answer of the coordinator raises it.
            continue
        for message in dict.fromkeys(answer.outages.values()):
            if message not in said.values():
                console.print(message, markup=False, highlight=False)
        if said and not answer.outages:
            console.print("The store answers again.", markup=False)
        said = answer.outages
