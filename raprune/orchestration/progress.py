"""Progress of a run under way: from its processes to the driver, and from the driver to the run's folder."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from raprune.errors import RapruneError
from raprune.results.stages import FILE, Stages, Work
from raprune.store.folder import Store
from raprune.store.retry import AT_ONCE

LOOK_S = 1.0
"""Time between two looks at the progress of processes."""
TELL_S = 0.5
"""Minimum time between two reports of one process on one piece of work."""
WRITE_S, WRITE_REMOTE_S = 1.0, 5.0
"""Time between two writes of the stages, on a disk and on an object store, where each write costs money."""


@contextmanager
def watched(look: Callable[[], None], *, every_s: float = LOOK_S) -> Iterator[None]:
    """Call `look` again and again during the block, in a thread. A call that fails is ignored."""

    def work() -> None:
        # Not only RapruneError: a coordinator that restarts answers with an error of Ray's.
        with contextlib.suppress(Exception):
            look()

    with _again_and_again(work, every_s, "raprune-watch"):
        yield


@contextmanager
def published(stages: Stages, store: Store) -> Iterator[None]:
    """Write the stages into the run's folder again and again during the block. A store that is away stops nothing.

    The file is removed when the run has ended well: `run.json` then has the duration of each stage.
    """
    # Without the patience of the run's own store: progress is soon out of date.
    at_once = store.patient(AT_ONCE)

    def write() -> None:
        # Not into a folder that is gone: on a disk that is no longer mounted this would make a new folder.
        with contextlib.suppress(RapruneError):
            if at_once.is_run():
                at_once.write_json(FILE, stages.now().to_json())

    with _again_and_again(write, WRITE_REMOTE_S if "://" in store.uri else WRITE_S, "raprune-news"):
        yield
    with contextlib.suppress(RapruneError):
        at_once.remove(FILE)


@contextmanager
def _again_and_again(work: Callable[[], None], every_s: float, name: str) -> Iterator[None]:
    done = threading.Event()

    def run() -> None:
        while not done.is_set():
            work()
            done.wait(every_s)

    thread = threading.Thread(target=run, daemon=True, name=name)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(timeout=5.0)


class Teller:
    """Tells the coordinator the progress of this process, without waiting for an answer, and not too often."""

    def __init__(
        self, coordinator: Any, key: str, *, title: str = "", clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._coordinator = coordinator
        self._key = key
        self._title = title
        self._clock = clock
        self._told_at = float("-inf")

    def __call__(self, work: Work) -> None:
        """Tell the progress of `work`; its end is always told."""
        now = self._clock()
        if work.done < work.total and now - self._told_at < TELL_S:
            return
        self._told_at = now
        what = ", ".join(part for part in (self._title, work.what) if part)
        self._coordinator.tell.remote(self._key, replace(work, what=what))
