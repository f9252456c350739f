"""The coordinator of a simulated search."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self
from unittest import mock

from raprune.orchestration import coordinator as coordinators
from raprune.orchestration.coordinator import SENDERS, Coordinator
from raprune.records import Trial
from raprune.store.folder import Store
from raprune.store.record import RunRecord
from simulation.clock import Clock

STORED_RUN = RunRecord.model_validate(
    {"spec": {"budget_flops": 0.5, "search": {"trials": 20}}, "dense": {"val_accuracy": 0.93}, "started_at": 0.0}
)


def undisturbed() -> float:
    """A clock for this thread that stands while the thread waits for a CPU that other processes have, in seconds."""
    _, waited_ns, _ = Path("/proc/thread-self/schedstat").read_text().split()
    return time.perf_counter() - int(waited_ns) / 1e9


class TimedStore(Store):
    """The store of the coordinator, with the time that it took."""

    taken_s = 0.0

    def told(self, on_wait: Callable[[str | None], None]) -> Self:
        return self

    def append(self, trials: Sequence[Trial]) -> None:
        began = undisturbed()
        super().append(trials)
        self.taken_s += undisturbed() - began


class Writer:
    """The coordinator on the virtual clock: it writes all records that wait, then those that came meanwhile."""

    def __init__(self, clock: Clock, store: Store) -> None:
        store.create(STORED_RUN)
        self._store = TimedStore(store.uri)
        with (
            # Nothing is exported to Prometheus, and no actor ends.
            mock.patch.object(coordinators, "Heart"),
            mock.patch.object(Coordinator, "_end_when_orphaned"),
        ):
            # Untyped: to mypy, a method that Ray is told of can only be called by `remote`.
            self._coordinator: Any = Coordinator(self._store)
        self._clock = clock
        self._waiting: deque[tuple[Trial, Callable[[], None]]] = deque()
        self._looks: deque[int] = deque()
        self._is_busy = False

    def take(self, trial: Trial, then: Callable[[], None]) -> None:
        """Write a record with those that wait; `then` is called once it is durable."""
        self._waiting.append((trial, then))
        self._serve()

    def look(self, running: int) -> None:
        """Tell the progress in its turn, as the driver asks for it."""
        self._looks.append(running)
        self._serve()

    def _serve(self) -> None:
        if self._is_busy or not (self._waiting or self._looks):
            return
        self._is_busy = True
        if self._looks:
            began = time.thread_time()
            self._coordinator.progress(self._looks.popleft(), exact=False)
            seconds = time.thread_time() - began
            self._clock.parts["progress"] += seconds
        else:
            seconds = self._write([self._waiting.popleft() for _ in range(min(len(self._waiting), SENDERS))])
        self._clock.at(self._clock.now + seconds, self._next)

    def _next(self) -> None:
        self._is_busy = False
        self._serve()

    def _write(self, records: Sequence[tuple[Trial, Callable[[], None]]]) -> float:
        """Write records as one part; the seconds that it takes."""
        before, began = self._store.taken_s, time.thread_time()
        self._coordinator.record([trial for trial, _ in records])
        sent, stored = time.thread_time() - began, self._store.taken_s - before
        for _, then in records:
            self._clock.at(self._clock.now + sent + stored, then)
        self._clock.parts["store"] += stored
        self._clock.parts["record"] += sent
        return sent + stored
