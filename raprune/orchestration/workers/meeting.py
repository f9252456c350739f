"""The meeting of a search's first workers: each makes one call, which is answered when all of them have come up."""

from __future__ import annotations

import asyncio
from typing import Any

import ray
from ray.actor import ActorHandle

MEETING_S = 30.0
"""Time for which the workers of a node wait, at most, for workers that do not come up on another node."""

SPARE_CALLS = 8
"""Number of calls that the actor takes beside one of each worker."""


class Meeting:
    """The actor of the module. Its calls wait side by side in one thread."""

    def __init__(self) -> None:
        self._workers: set[str] = set()
        self._waiting: dict[int, asyncio.Event] = {}
        """Number of workers -> the event that so many have come up."""

    def come(self, worker: str) -> None:
        """Note that a worker has come up."""
        self._workers.add(worker)
        for count, event in self._waiting.items():
            if len(self._workers) >= count:
                event.set()

    async def wait(self, worker: str, count: int, patience_s: float = MEETING_S) -> bool:
        """Note that `worker` has come up, and wait for `count` workers; false if they do not come in `patience_s`."""
        event = self._waiting.setdefault(count, asyncio.Event())
        self.come(worker)
        try:
            await asyncio.wait_for(event.wait(), patience_s)
        except TimeoutError:
            return False
        return True


def start_meeting(workers: int) -> ActorHandle[Any]:
    """A new meeting of so many workers; it ends with its driver."""
    remote: Any = ray.remote
    handle: ActorHandle[Any] = remote(num_cpus=0, max_concurrency=workers + SPARE_CALLS)(Meeting).remote()
    return handle
