"""The runs of a folder side by side: a summary of each, and its fronts. Open `RunSummary` first, then `RunList`.

A look at a run costs its `run.json` and a listing of its parts. Its trials are read only if either has changed since
the last look of this process, or of this user: summaries are kept in the user's cache. Of a run that
grows this process reads only the trials that it has not read.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from raprune.errors import RapruneError, StoreError
from raprune.records import Trial
from raprune.results.front import budget_of, floor_of, front_of, starred
from raprune.results.progress import progress
from raprune.results.rows import COSTS, CandidateRow, candidates
from raprune.results.stages import is_live, read_stages
from raprune.spec.budget import Budget
from raprune.store.folder import READERS, RUN_FILE, Store
from raprune.store.local import write_local
from raprune.store.new_trials import TrialReader
from raprune.store.parts import TrialFile
from raprune.store.record import ACCURACY, RunRecord
from raprune.store.run_folders import LostFolder, find_runs

VERSION = 3
"""Version of the summaries in the cache; those of another version are not read."""


class FrontNetwork(BaseModel):
    """A network on the front of a run: fields of `CandidateRow`, with their units."""

    model_config = ConfigDict(frozen=True, from_attributes=True, ser_json_inf_nan="constants")

    candidate: str
    trial_id: str
    method: str
    epochs: float
    val_accuracy: float
    val_interval: float | None
    flops: int
    flops_fraction: float
    params: int
    params_fraction: float
    latency_ms: float | None
    latency_fraction: float | None
    memory_bytes: int | None = None
    memory_fraction: float | None = None


class RunSummary(BaseModel):
    """The summary of one run, from its records at one moment."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="constants")

    state: str | None
    """As in `RunRecord`."""
    created_at: float | None
    """Seconds since the epoch, as `started_at` and `finished_at`."""
    started_at: float | None
    finished_at: float | None
    network: str | None
    """Name of the network, as `dataset` that of its data."""
    dataset: str | None
    metric: str = ACCURACY
    """Name of the task's metric, which the fields named after an accuracy hold."""
    data_fingerprint: str | None
    architecture: str | None
    """Hash of the dense network's graph."""
    budget: Budget
    floor: float | None
    """Validation value of the metric that was asked for."""
    dense_accuracy: float | None
    val_images: int | None
    searched: int
    """Search trials that have ended."""
    trials: int
    """Search trials asked for."""
    finetuned: int
    """Fine-tunings that have ended."""
    best: FrontNetwork | None
    """The network with the star."""
    fronts: Mapping[str, tuple[FrontNetwork, ...]]
    """Cost that is set against accuracy, one of `COSTS` -> the front within the budget, by ascending FLOPs. Latency
    is there only if it was predicted."""
    ended_at: float
    """When the last recorded trial ended, in seconds since the epoch; 0 before the first one."""
    longest_s: float
    """Seconds of the longest trial."""


@dataclass(frozen=True, kw_only=True)
class ListedRun:
    """A run in a list of runs: its summary, or the reason why it cannot be read."""

    name: str
    """Path relative to the folder of runs."""
    place: str
    """Address of the run, without parts that may hold a secret."""
    summary: RunSummary | None = None
    live: bool = False
    """True if something works on the run, as far as its records tell."""
    error: str | None = None
    """Reason why the run is not readable."""
    hint: str = ""

    @property
    def began_at(self) -> float:
        """When the run began, in seconds since the epoch; 0 where that is not known."""
        return 0.0 if self.summary is None else self.summary.started_at or self.summary.created_at or 0.0

    @property
    def state(self) -> str:
        """`finished`, `searching`, `idle` (not finished, and nothing works on it) or `unreadable`."""
        if self.summary is None:
            return "unreadable"
        if self.summary.state == "finished":
            return "finished"
        return (self.summary.state or "searching") if self.live else "idle"

    # A JSON edge: the keys are the contract of `raprune runs --json`.
    def to_json(self) -> dict[str, Any]:
        """Plain data under the keys that `raprune runs --json` prints; all but the fronts."""
        listed = {"name": self.name, "run": self.place, "state": self.state, "error": self.error}
        summary = {} if self.summary is None else self.summary.model_dump(mode="json", exclude={"state", "fronts"})
        return listed | {name: summary.get(name) for name in RunSummary.model_fields if name not in ("state", "fronts")}


class RunList:
    """The runs in `folder`, kept up to date by looking at them. One thread at a time may look.

    Args:
        cache: folder of the summaries of earlier processes; None keeps none.
    """

    def __init__(self, folder: Store, *, cache: Path | None = None) -> None:
        self.folder = folder
        self._cache = cache
        self._readers: dict[str, SummaryReader] = {}

    def store_of(self, run: ListedRun) -> Store:
        """The folder of a run of the list."""
        reader = self._readers.get(run.name)
        return self.folder.inside(run.name) if reader is None else reader.store

    def look(self) -> list[ListedRun]:
        """The runs, newest first, those that cannot be read last.

        Raises:
            StoreError: if there is no such folder, or the folder cannot be read.
        """
        found = find_runs(self.folder)
        runs = [one for one in found if not isinstance(one, LostFolder)]
        self._readers = {
            run.name: self._readers.get(run.name) or SummaryReader(run.name, run.store, cache=self._cache)
            for run in runs
        }
        with ThreadPoolExecutor(READERS) as threads:
            listed = list(threads.map(lambda reader: reader.look(), self._readers.values()))
        listed += [
            ListedRun(name=lost.name, place=self.folder.inside(lost.name).name, error=lost.error.message)
            for lost in found
            if isinstance(lost, LostFolder)
        ]
        return sorted(listed, key=lambda run: (-run.began_at, run.name))


class SummaryReader:
    """The summary of the run in `store`, kept up to date by reading what has changed."""

    def __init__(self, name: str, store: Store, *, cache: Path | None) -> None:
        self._name = name
        self.store = store
        mark = hashlib.sha256(store.uri.encode()).hexdigest()[:24]
        self._cache = None if cache is None else cache / f"{mark}.json"
        self._digest = ""
        self._run = RunRecord()
        self._summary: RunSummary | None = None
        self._reader = TrialReader(store)

    def look(self) -> ListedRun:
        """The run as of now. What goes wrong is told in its place: one broken run hides no other."""
        listed = ListedRun(name=self._name, place=self.store.name)
        try:
            summary = self._look()
            stages = None if self._run.finished else read_stages(self.store, self._run)
            live = is_live(self._run, stages, ended_at=summary.ended_at, longest_s=summary.longest_s)
            return replace(listed, summary=summary, live=live)
        except RapruneError as error:
            return replace(listed, error=error.message, hint=error.hint)
        except Exception as error:
            # A run that another version wrote.
            return replace(listed, error=f"{self.store.name} is not understood: {type(error).__name__}: {error}")

    def _look(self) -> RunSummary:
        written, parts = self.store.read_bytes(RUN_FILE), self.store.parts()
        digest = hashlib.sha256(
            "\n".join([str(VERSION), *(part.name for part in parts)]).encode() + written
        ).hexdigest()
        if self._summary is None or digest != self._digest:
            run = self.store.record()
            if run.created_at != self._run.created_at:
                # Another run in the same folder, whose parts may have the same names.
                self._reader.forget()
            self._run = run
            kept = self._kept(digest) if self._summary is None else None
            if kept is None:
                kept = summarize(self._run, self._all_of(parts))
                self._keep(digest, kept)
            self._digest, self._summary = digest, kept
        return self._summary

    def _all_of(self, parts: Sequence[TrialFile]) -> Sequence[Trial]:
        """The trials of the run; only those are read that were not read before."""
        if not self._reader.covers(parts):
            # A run whose parts were removed.
            self._reader.forget()
        for _ in self._reader.read_new(parts):
            pass
        return self._reader.trials

    def _kept(self, digest: str) -> RunSummary | None:
        """The summary in the cache, if it is that of the same records."""
        try:
            return None if self._cache is None else _Kept.model_validate_json(self._cache.read_bytes()).of(digest)
        except (OSError, ValidationError):
            return None

    def _keep(self, digest: str, summary: RunSummary) -> None:
        if self._cache is not None:
            try:
                kept = _Kept(digest=digest, summary=summary).model_dump_json().encode()
                write_local(self._cache.parent, self._cache.name, kept)
            except OSError:
                # A cache that cannot be written makes the next look slower, and nothing else.
                return


class _Kept(BaseModel):
    """A file of the cache."""

    model_config = ConfigDict(ser_json_inf_nan="constants")

    digest: str
    summary: RunSummary

    def of(self, digest: str) -> RunSummary | None:
        return self.summary if self.digest == digest else None


def list_runs(uri: str) -> list[ListedRun]:
    """The runs in a folder, newest first; the folder of one run is a list of one.

    Raises:
        StoreError: if there is no such folder, if no run is in it, or if it cannot be read.
    """
    folder = Store(uri)
    runs = RunList(folder, cache=cache_folder()).look()
    if not runs:
        raise no_runs(folder)
    return runs


def no_runs(folder: Store) -> StoreError:
    """The error of a folder that holds no run."""
    return StoreError(
        f"{folder.name}: holds no run (none of its folders has a {RUN_FILE}).",
        hint="Give a folder that holds runs, such as runs/, or begin one there: raprune search --output FOLDER/NAME",
    )


def cache_folder() -> Path | None:
    """Folder of this user's summaries; None for a user who has no home."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "raprune" / "runs"
    except RuntimeError:
        return None


def summarize(run: RunRecord, trials: Sequence[Trial]) -> RunSummary:
    """The summary of a run of these trials."""
    budget, now = budget_of(run), progress(run, trials)
    rows = starred(candidates(trials), run)
    best = next((row for row in rows if row.starred), None)
    return RunSummary(
        state=run.state,
        created_at=run.created_at,
        started_at=run.started_at,
        finished_at=run.finished_at,
        network=run.job.model.name,
        dataset=run.data.name or run.job.data.name,
        metric=run.metric,
        data_fingerprint=run.data.fingerprint,
        architecture=run.architecture,
        budget=budget,
        floor=floor_of(run),
        dense_accuracy=run.dense_accuracy,
        val_images=run.val_images,
        searched=now.searched,
        trials=now.trials,
        finetuned=now.finetuned,
        best=None if best is None else FrontNetwork.model_validate(best),
        fronts=_fronts(rows, budget),
        ended_at=max((trial.started_at + trial.seconds for trial in trials), default=0.0),
        longest_s=max((trial.seconds for trial in trials), default=0.0),
    )


def _fronts(rows: Sequence[CandidateRow], budget: Budget) -> Mapping[str, tuple[FrontNetwork, ...]]:
    known = {cost: [row for row in rows if row.fraction(cost) is not None] for cost in COSTS}
    return {
        cost: tuple(FrontNetwork.model_validate(row) for row in front_of(some, budget, cost=cost))
        for cost, some in known.items()
        if some
    }
