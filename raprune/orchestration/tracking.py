"""The trackers of a run under way: fed from the run's folder by a thread of the driver."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager

from raprune.errors import RapruneError
from raprune.orchestration.progress import watched
from raprune.orchestration.run import Run
from raprune.report.trackers import begin_tracking
from raprune.report.trackers.feed import TrackerFeed
from raprune.store.retry import AT_ONCE

FEED_S = 5.0
"""Time between two looks for new trials."""


@contextmanager
def tracked(run: Run) -> Iterator[None]:
    """Tell the trackers of the job about the run during the block, and about its finalists at the end."""
    if not run.spec.track:
        yield
        return

    def say(text: str) -> None:
        run.console.print(text, style="yellow", markup=False, highlight=False)

    # Without the patience of the run's own store, which another thread would wait for.
    store = run.store.patient(AT_ONCE)
    feed = TrackerFeed(store, begin_tracking(run.spec.track, store), say=say)
    try:
        with watched(feed.tell_new, every_s=FEED_S):
            yield
    finally:
        with contextlib.suppress(RapruneError):
            feed.end()
