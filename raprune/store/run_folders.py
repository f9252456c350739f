"""The runs in a folder: where they lie, from a few listings, without reading one of them."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from raprune.errors import StoreError
from raprune.store.address import last_part
from raprune.store.folder import READERS, Store

LEVELS = 2
"""Levels of folders below the given one in which runs are looked for: `runs/NAME`, and `runs/PROJECT/NAME`."""


@dataclass(frozen=True)
class FoundRun:
    """A run in a folder of runs."""

    name: str
    """Path of the run relative to the folder; the folder's own name where the folder is a run."""
    store: Store


@dataclass(frozen=True)
class LostFolder:
    """A folder in a folder of runs that cannot be read."""

    name: str
    error: StoreError


def find_runs(folder: Store) -> list[FoundRun | LostFolder]:
    """The runs in the folder and in its folders, sorted by name. Hidden folders, and folders in a run, are passed over.

    Raises:
        StoreError: if the folder does not exist, or cannot be read.
    """
    if folder.is_run():
        return [FoundRun(last_part(folder.name), folder)]
    names = folder.folders()
    if names is None:
        raise StoreError(
            f"{folder.name}: no such folder.",
            hint="Give a folder that holds runs, such as runs/, or the folder of one run: the --output of its search.",
        )
    found: list[FoundRun | LostFolder] = []
    level = [(name, folder.inside(name)) for name in names if not name.startswith(".")]
    with ThreadPoolExecutor(READERS) as readers:
        for depth in range(1, LEVELS + 1):
            deeper: list[tuple[str, Store]] = []
            for inside in readers.map(lambda place, last=depth == LEVELS: list(_look(*place, last=last)), level):
                found += [one for one in inside if not isinstance(one, tuple)]
                deeper += [one for one in inside if isinstance(one, tuple)]
            level = deeper
    return sorted(found, key=lambda one: one.name)


def _look(name: str, folder: Store, *, last: bool) -> Iterator[FoundRun | LostFolder | tuple[str, Store]]:
    """The folder itself if it is a run or is lost; else its folders, by their names below the folder of runs."""
    try:
        if folder.is_run():
            yield FoundRun(name, folder)
        elif not last:
            inside = folder.folders() or []
            yield from ((f"{name}/{inner}", folder.inside(inner)) for inner in inside if not inner.startswith("."))
    except StoreError as error:
        yield LostFolder(name, error)
