"""The known state of a run for its page: the store is read whenever a page is open, each trial once, without channels.

An error is kept beside the state known before it.
"""

from __future__ import annotations

import hashlib
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from raprune.errors import RapruneError
from raprune.records import Trial
from raprune.results.front import budget_of
from raprune.results.progress import Growth, Progress, progress
from raprune.results.run_results import RunResults
from raprune.results.stages import RunStages, is_live, read_stages
from raprune.results.test_split import UNTESTED, read_test
from raprune.results.timings import Times, read_times
from raprune.spec.budget import Budget
from raprune.store.folder import Store
from raprune.store.new_trials import TrialReader
from raprune.store.record import RunRecord


@dataclass(frozen=True)
class Pulse:
    """A sign of life: whether a driver works on the run, and the number of trials under way."""

    live: bool
    running: int = 0


@dataclass(frozen=True)
class Away:
    """The reason why the store cannot be read, and the time since when (seconds since the epoch)."""

    error: str
    hint: str
    since: float


@dataclass(frozen=True, kw_only=True)
class KnownRun(RunResults):
    """The known state of a run at one moment."""

    history: Sequence[HistoryPoint]
    """One point for each trial."""
    complete: bool
    """True if all existing parts were read."""
    generation: str
    """Mark of the run; it changes if another run is stored in the folder."""
    pulse: Pulse
    version: int
    """Number that grows with every change of the other fields."""

    @cached_property
    def progress(self) -> Progress:
        return progress(self.run, self.trials, running=self.pulse.running, live=self.pulse.live)

    @cached_property
    def counting(self) -> frozenset[str]:
        """Ids of the trials that represent their candidates, including each repeat of a fine-tuning."""
        return frozenset(trial_id for row in self.rows for trial_id in row.trials)

    @cached_property
    def positions(self) -> dict[str, int]:
        """Trial id -> its position among the trials."""
        return {trial.trial_id: position for position, trial in enumerate(self.trials)}


@dataclass(frozen=True)
class HistoryPoint:
    """The progress of a run at the time when a trial was recorded."""

    t_s: float
    """Seconds since the run began."""
    gpu_hours: float
    hours: float
    """Worker-hours."""
    hypervolume: float
    """As in `raprune.results.front.Progress`."""
    best: float | None
    """Validation accuracy of the best network within the budget."""


class RunHistory:
    """The history of a run, one trial after another."""

    def __init__(self, budget: Budget, started_at: float) -> None:
        self.budget = budget
        self.points: list[HistoryPoint] = []
        self._started_at = started_at
        self._growth = Growth(budget)
        self._last = HistoryPoint(0.0, 0.0, 0.0, 0.0, None)

    def add(self, trial: Trial) -> None:
        last = self._last
        self._last = replace(
            last,
            t_s=max(last.t_s, trial.started_at + trial.seconds - self._started_at),
            gpu_hours=last.gpu_hours + trial.gpu_seconds / 3600,
            hours=last.hours + trial.seconds / 3600,
        )
        self._growth.add(trial)
        self._last = replace(self._last, hypervolume=self._growth.hypervolume, best=self._growth.best)
        self.points.append(self._last)


class Feed:
    """The known state of the run in `store`, kept up to date by looking at the store.

    `pulse` tells if a driver works on the run; without `pulse` the feed judges by the records. All methods may be
    called by several threads.
    """

    def __init__(
        self,
        store: Store,
        *,
        pulse: Callable[[], Pulse] | None = None,
        every_s: float | None = None,
    ) -> None:
        self.store = store
        self.away: Away | None = None
        self.stages: RunStages | None = None
        """The run's stages as its driver wrote them last; None if it wrote none."""
        self._pulse = pulse
        # Each request to an object store costs money.
        self._every_s = every_s if every_s is not None else 2.0 if "://" in store.uri else 0.5
        self._known: KnownRun | None = None
        self._working = threading.Lock()
        self._looked_at = float("-inf")
        self._resets = 0
        self._run = RunRecord()
        self._test = UNTESTED
        self._times = Times()
        self._reports_due = False
        self._reader = TrialReader(store)
        self._course = RunHistory(Budget(), 0.0)
        self._generation = ""

    @property
    def known(self) -> KnownRun | None:
        """The state after the last look, or None before the first look."""
        return self._known

    @property
    def is_due(self) -> bool:
        """True if a look at the store is due."""
        return time.monotonic() - self._looked_at >= self._every_s

    def look(self) -> None:
        """Read the new records, unless another thread is reading or no look is due. An error is kept in `away`."""
        if not self.is_due or not self._working.acquire(blocking=False):
            return
        try:
            self._look()
            self.away = None
        except RapruneError as error:
            self._note(error.message, error.hint)
        except Exception as error:
            # A run that another version wrote. The page keeps showing the state known before.
            self._note(f"{self.store.name} is not understood: {type(error).__name__}: {error}", "See the page's log.")
            traceback.print_exc()
        finally:
            self._looked_at = time.monotonic()
            self._working.release()

    def _note(self, error: str, hint: str) -> None:
        since = time.time() if self.away is None else self.away.since
        self.away = Away(error, hint, since)

    def _look(self) -> None:
        run = self.store.record()
        # The stages are kept apart: they change every second, and nothing is computed from them.
        self.stages = read_stages(self.store, run)
        parts = self.store.parts()
        if run.created_at != self._run.created_at or not self._reader.covers(parts):
            # Another run, or a run whose parts were removed.
            self._forget()
        if run != self._run:
            self._begin(run)
            self._reports_due = True
        for trials, more in self._reader.read_new(parts):
            for trial in trials:
                self._course.add(trial)
            if more:
                self._publish(complete=False)
        if self._reports_due:
            # Both are written before `run.json` says that the run is finished.
            self._test = read_test(self.store, self._reader.trials)
            self._times = read_times(self.store, self._reader.trials)
            self._reports_due = False
        self._publish(complete=True)

    def _forget(self) -> None:
        self._run, self._generation = RunRecord(), ""
        self._reader.forget()

    def _begin(self, run: RunRecord) -> None:
        if not self._generation:
            self._resets += 1
            identity = f"{run.created_at} {self._resets}"
            self._generation = hashlib.sha256(identity.encode()).hexdigest()[:8]
        self._run = run
        if not self._reader.trials or self._course.budget != budget_of(run):
            self._course = RunHistory(budget_of(run), run.started_at or run.created_at or 0.0)
            for trial in self._reader.trials:
                self._course.add(trial)

    def _publish(self, *, complete: bool) -> None:
        before = self._known
        known = KnownRun(
            name=self.store.name,
            run=self._run,
            test=self._test,
            times=self._times,
            trials=tuple(self._reader.trials),
            history=tuple(self._course.points),
            complete=complete,
            generation=self._generation,
            pulse=self._judge() if self._pulse is None else self._pulse(),
            version=0 if before is None else before.version,
        )
        if before is None or known != before:
            self._known = replace(known, version=known.version + 1)

    def _judge(self) -> Pulse:
        ended_at = max((trial.started_at + trial.seconds for trial in self._reader.trials), default=0.0)
        longest_s = max((trial.seconds for trial in self._reader.trials), default=0.0)
        return Pulse(live=is_live(self._run, self.stages, ended_at=ended_at, longest_s=longest_s))
