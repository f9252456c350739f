"""The page's knowledge of the runs in a folder: looked at as often as somebody asks."""

from __future__ import annotations

import hashlib
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

from raprune.errors import StoreError
from raprune.page.feed import Away
from raprune.results.run_list import ListedRun, RunList
from raprune.store.folder import Store


@dataclass(frozen=True)
class KnownRuns:
    """The runs of a folder at one moment."""

    runs: tuple[ListedRun, ...]
    """Newest first, those that cannot be read last."""
    away: Away | None = None
    """Reason why the folder cannot be read; the runs are then those of before."""

    def find(self, run_id: str) -> ListedRun | None:
        """The run of that id; None if there is none."""
        return next((run for run in self.runs if id_of(run) == run_id), None)


class Overview:
    """The known runs in `folder`. All methods may be called by several threads."""

    def __init__(self, folder: Store, *, cache: Path | None = None, every_s: float | None = None) -> None:
        self.folder = folder
        self._list = RunList(folder, cache=cache)
        # Each look at an object store is paid for.
        self._every_s = every_s if every_s is not None else 10.0 if "://" in folder.uri else 1.0
        self._working = threading.Lock()
        self._looked_at = float("-inf")
        self._known: KnownRuns | None = None

    @property
    def known(self) -> KnownRuns | None:
        """The runs after the last look; None before the first look."""
        return self._known

    def store_of(self, run: ListedRun) -> Store:
        """The folder of a run of the last look."""
        return self._list.store_of(run)

    def look(self) -> KnownRuns | None:
        """Look if a look is due and no other thread does; the runs as they are known then."""
        if time.monotonic() - self._looked_at >= self._every_s and self._working.acquire(blocking=False):
            try:
                self._known = KnownRuns(tuple(self._list.look()))
            except StoreError as error:
                before = self._known or KnownRuns(())
                since = time.time() if before.away is None else before.away.since
                self._known = replace(before, away=Away(error.message, error.hint, since))
            finally:
                self._looked_at = time.monotonic()
                self._working.release()
        return self._known


def id_of(run: ListedRun) -> str:
    """The run's id in addresses of the page: the same each time, and no path."""
    return hashlib.sha256(run.name.encode()).hexdigest()[:10]
