"""The single writer of a run's trials: all that wait to be recorded are written together, as one part of the store.

A part costs the same time whether it holds one trial or a hundred (two fsyncs on a disk, two requests on S3), so the
more workers report, the more trials a part holds. A thread of its own writes, another one compacts. No Ray.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from raprune.errors import RapruneError, StoreError
from raprune.records import Trial
from raprune.store.folder import Store
from raprune.store.parts import SMALL_PARTS


@dataclass(frozen=True)
class _Request:
    """Trials of one task, which are recorded together or not at all."""

    trials: Sequence[Trial]
    session: str | None
    done: Future[None] = field(default_factory=Future)


class Recorder:
    """The recorded trials of the run in `store`, in memory and on disk. This process becomes the run's writer.

    `check` is called with the session of each request before it is written, and raises to refuse it. All methods may be
    called by several threads.
    """

    def __init__(self, store: Store, *, check: Callable[[str | None], None] = lambda session: None) -> None:
        self._store = store
        self._check = check
        self._recorded = {trial.trial_id: trial for trial in store.claim()}
        self._snapshot: tuple[Trial, ...] = tuple(self._recorded.values())
        self._order = list(self._snapshot)
        self._waiting: dict[str, Trial] = {}
        self._requests: queue.SimpleQueue[_Request] = queue.SimpleQueue()
        self._is_due = threading.Event()
        for work in (self._write_all, self._compact_all):
            threading.Thread(target=work, daemon=True, name=f"raprune{work.__name__}").start()

    def record(self, trials: Sequence[Trial], session: str | None = None) -> None:
        """Record the trials of one task; they are durable when this returns. A recorded trial is never replaced.

        Raises:
            RapruneError: if `check` refuses the session.
            StoreError: if they could not be written.
        """
        request = _Request(trials, session)
        self._waiting |= {trial.trial_id: trial for trial in trials}
        self._requests.put(request)
        request.done.result()

    @property
    def trials(self) -> tuple[Trial, ...]:
        """All recorded trials, in the order of their records; the same object until another one is recorded."""
        if len(self._snapshot) != len(self._order):
            self._snapshot = tuple(self._order)
        return self._snapshot

    def find(self, trial_id: str) -> Trial | None:
        """The trial, recorded or about to be; None if nobody has sent it."""
        return self._recorded.get(trial_id) or self._waiting.get(trial_id)

    def is_recorded(self, trial_id: str) -> bool:
        """True if the trial is durable."""
        return trial_id in self._recorded

    def missing(self, trial_ids: Collection[str]) -> list[str]:
        """Those of the trials that nobody has sent."""
        return [trial_id for trial_id in trial_ids if self.find(trial_id) is None]

    def _write_all(self) -> None:
        while True:
            group = [self._requests.get()]
            while not self._requests.empty():
                group.append(self._requests.get())
            self._write(group)
            if self._store.small_parts > SMALL_PARTS:
                self._is_due.set()

    def _write(self, group: Sequence[_Request]) -> None:
        admitted = [request for request in group if self._is_admitted(request)]
        # A worker that was lost right after its trial was written runs it again, and so does a task whose coordinator
        # was lost before it could answer.
        new = {
            trial.trial_id: trial
            for request in reversed(admitted)
            for trial in reversed(request.trials)
            if trial.trial_id not in self._recorded
        }
        trials = list(new.values())[::-1]
        try:
            self._store.append(trials)
        except Exception as error:
            if len(admitted) > 1 and not isinstance(error, StoreError):
                # One trial that cannot be written takes no other with it.
                for request in admitted:
                    self._write([request])
                return
            self._end(admitted, error)
            return
        self._recorded.update(new)
        self._order += trials
        self._end(admitted)

    def _is_admitted(self, request: _Request) -> bool:
        try:
            self._check(request.session)
        except RapruneError as error:
            self._end([request], error)
            return False
        return True

    def _end(self, requests: Sequence[_Request], error: Exception | None = None) -> None:
        for request in requests:
            for trial in request.trials:
                self._waiting.pop(trial.trial_id, None)
            if error is None:
                request.done.set_result(None)
            else:
                request.done.set_exception(error)

    def _compact_all(self) -> None:
        while True:
            self._is_due.wait()
            self._is_due.clear()
            try:
                self._store.compact()
            except StoreError:
                # Nothing is lost by it, and a run that cannot write says so by its records. The next parts come first.
                self._store.small_parts = 0
