"""Trials that workers have reported while their records were still on their way to the coordinator.

A worker takes its next task without waiting for the record of the one before. A record on its way survives a restart of
the coordinator, to which Ray sends it again, but not the end of its worker. A trial whose record never arrived is tried
again: before finalists are chosen if the driver lives, else when the run is resumed, as the store does not have it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from raprune.orchestration.tasks import CandidateTask


class ReportedTasks:
    """The tasks of a search that were reported. `missing` returns the ids of those whose records will not arrive."""

    def __init__(self, missing: Callable[[Sequence[str]], list[str]]) -> None:
        self._missing = missing
        self._reported: dict[str, CandidateTask] = {}
        self._again: deque[CandidateTask] = deque()
        self._out: set[str] = set()

    def add(self, task: CandidateTask) -> bool:
        """Note that a worker reported the task; False if its trial was tried again, so that its result is known."""
        self._reported[task.trial_id] = task
        is_new = task.trial_id not in self._out
        self._out.discard(task.trial_id)
        return is_new

    def all_recorded(self) -> bool:
        """True if every reported trial is recorded, or about to be; else `next` has tasks, or some are under way."""
        if not self._again and not self._out and self._reported:
            lost = self._missing(list(self._reported))
            self._again = deque(self._reported[trial_id] for trial_id in lost)
            self._out = set(lost)
            self._reported = {}
        return not self._out

    def next(self) -> CandidateTask | None:
        """The next task to be tried again."""
        return self._again.popleft() if self._again else None
