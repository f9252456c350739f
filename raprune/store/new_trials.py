"""The trials of a run, read as they are recorded: each once, without the channels that stay."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from raprune.records import Trial
from raprune.store.files import MissingFileError
from raprune.store.folder import Store
from raprune.store.parts import TrialFile
from raprune.store.rows import OUTLINE, from_rows

BATCH = 256
"""Files that are read before their trials are given out."""


class TrialReader:
    """The trials that were read so far. `covers` and `read_new` take a listing of the store, `Store.parts`."""

    def __init__(self, store: Store) -> None:
        self.trials: list[Trial] = []
        """In the order in which they were read."""
        self._store = store
        self._numbers: set[int] = set()
        self._ids: set[str] = set()

    def forget(self) -> None:
        """Read all from the beginning the next time."""
        self.trials, self._numbers, self._ids = [], set(), set()

    def covers(self, parts: Sequence[TrialFile]) -> bool:
        """False if parts that were read are not there any more: another run, or one of which parts were taken away.

        A part that was compacted is there, in its compact file.
        """
        return self._numbers <= {number for part in parts for number in part.numbers}

    def read_new(self, parts: Sequence[TrialFile]) -> Iterator[tuple[list[Trial], bool]]:
        """Trials that are new, `BATCH` files at a time, each time with True if more follow.

        Raises:
            StoreError: if a file cannot be read; what was given out before stays known.
        """
        while True:
            new = [part for part in parts if not self._numbers.issuperset(part.numbers)]
            try:
                for start in range(0, len(new), BATCH):
                    yield self._take(new[start : start + BATCH]), start + BATCH < len(new)
                return
            except MissingFileError:
                # Compacted since it was listed.
                before, parts = parts, self._store.parts()
                if before == parts:
                    raise

    def _take(self, parts: Sequence[TrialFile]) -> list[Trial]:
        rows = self._store.rows(OUTLINE, parts)
        # A compact file may hold trials that were read from its parts.
        trials = from_rows(row for row in rows if row["trial_id"] not in self._ids)
        self._numbers.update(number for part in parts for number in part.numbers)
        self._ids.update(trial.trial_id for trial in trials)
        self.trials += trials
        return trials
