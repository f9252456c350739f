"""Seats of the workers of a search: the node and the last task of each, for when it is lost or makes no progress."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Seat:
    """The place of a worker in the cluster."""

    worker: str
    """Name of the worker: host and process."""
    node: str
    """Ray's id of the node."""
    host: str
    actor: bytes
    """Handle of the worker's actor, packed: the coordinator passes it on and loads neither its class nor torch."""


@dataclass(frozen=True, kw_only=True)
class Seated:
    """The last task of a worker."""

    trial_id: str
    worker: str
    node: str
    host: str
    silent_s: float | None
    """Seconds since the last sign of progress; None while the worker is coming up or waits for a filesystem."""
    fault: str | None = None
    """Reason that the worker told for its end."""


@dataclass(kw_only=True)
class _Entry:
    seat: Seat
    trial_id: str
    heard_at: float | None
    fault: str | None = None
    waits: bool = False
    """True while the worker waits for a filesystem."""


class Seats:
    """Seats of all workers, by what they tell. Any thread may call."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._entries: dict[str, _Entry] = {}
        """Worker -> its last task."""
        self._holders: dict[str, _Entry] = {}
        """Trial -> the entry of the worker that had it last."""
        self._all_wait = False

    def take(self, seat: Seat, trial_id: str, *, is_up: bool) -> None:
        """Note that the worker has this task now; with `is_up` false it is still coming up, which has no time limit."""
        with self._lock:
            before = self._entries.get(seat.worker)
            if before is not None and self._holders.get(before.trial_id) is before:
                del self._holders[before.trial_id]
            entry = _Entry(seat=seat, trial_id=trial_id, heard_at=self._clock() if is_up else None)
            self._entries[seat.worker] = self._holders[trial_id] = entry

    def hear(self, trial_id: str) -> None:
        """Note a sign of progress of a task."""
        with self._lock:
            entry = self._holders.get(trial_id)
            if entry is not None and entry.heard_at is not None:
                entry.heard_at = self._clock()

    def wait(self, worker: str | None, *, waits: bool) -> None:
        """Note that a worker (None: every worker) waits for a filesystem, or no longer; the wait is not its silence."""
        with self._lock:
            if worker is None:
                self._all_wait = waits
            for entry in self._entries.values() if worker is None else [self._entries.get(worker)]:
                if entry is None:
                    continue
                if worker is not None:
                    entry.waits = waits
                if not waits and entry.heard_at is not None:
                    entry.heard_at = self._clock()

    def fault(self, worker: str, text: str) -> None:
        """Note why the worker ends itself."""
        with self._lock:
            entry = self._entries.get(worker)
            if entry is not None:
                entry.fault = text

    def all(self) -> list[Seated]:
        """The seats of the tasks that workers have, or had last."""
        with self._lock:
            now = self._clock()
            return [_seated(entry, now, waits=self._all_wait) for entry in self._holders.values()]

    def last(self, trial_id: str) -> Seated | None:
        """The seat that had this task last; None if no worker told that it had, or the worker has another one."""
        with self._lock:
            entry = self._holders.get(trial_id)
            return None if entry is None else _seated(entry, self._clock(), waits=self._all_wait)

    def actor(self, worker: str) -> bytes | None:
        """Handle of the worker's actor, packed; None for a worker that is not known."""
        with self._lock:
            entry = self._entries.get(worker)
            return None if entry is None else entry.seat.actor


def _seated(entry: _Entry, now: float, *, waits: bool) -> Seated:
    seat, heard_at = entry.seat, entry.heard_at
    return Seated(
        trial_id=entry.trial_id,
        worker=seat.worker,
        node=seat.node,
        host=seat.host,
        silent_s=None if heard_at is None or waits or entry.waits else now - heard_at,
        fault=entry.fault,
    )
