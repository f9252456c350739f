"""The stages of a run: their names, their progress, the time to their end. `display` draws them.

One process (the driver, or a command that works alone) goes from stage to stage. Other processes tell it of their
`Work`. Without a forecast of all stages to come, no time to the end of the run is given.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from raprune.errors import StoreError
from raprune.results.progress import Progress
from raprune.store.folder import Store
from raprune.store.record import RunRecord

LOAD_LIBRARIES = "load PyTorch"
LOAD_DATA = "load data"
LOAD_NETWORK = "load network"
PROVE = "prove channels"
START_RAY = "start Ray"
CHECK_NODES = "check the nodes"
START_RUN = "start the run"
LAYER_TIMES = "measure layer times"
FIRST_CANDIDATES = "time first candidates"
TRAIN_DENSE = "train dense network"
JUDGE_DENSE = "evaluate dense network"
PHASES = "train for methods"
SCORES = "score channels"
SEARCH = "search"
PRUNE = "prune"
FINETUNE = "fine-tune"
TEST = "test the front"
LATENCY = "measure latency"
REPORT = "write the report"
STOP_RAY = "stop Ray"
EXPORT = "export"
COMPARE = "compare networks"

FILE = "progress.json"
"""File of the stages in the run's folder while a driver works on it, for other processes."""

FRESH_S = 60.0
"""Seconds after it was written for which `progress.json` shows that a driver works on the run."""
_QUIET_S = 180.0
"""A run that is not finished and records nothing for so long, and for three times its longest trial, is at rest."""

_MARKS = 16
"""Number of latest steps over which the rate of a stage is computed."""
_FEWEST_MARKS = 3
"""Minimum number of steps for a rate: two workers that end together make two steps in no time."""
_LATE = 0.25
"""A stage that takes longer than forecast is estimated to need this fraction of its time so far."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """One piece of work in some process: the epochs of a training, the groups of a method's scores."""

    what: str
    """Name of the method or the trial; empty in a process with only one piece of work."""
    done: float
    total: float
    unit: str
    """Plural: epochs."""

    def __str__(self) -> str:
        return (
            f"{self.what}: " if self.what else ""
        ) + f"{self.unit.removesuffix('s')} {self.done:g} of {self.total:g}"


OnWork = Callable[[Work], None]


@dataclass(frozen=True, kw_only=True)
class RunStage:
    """One stage of a run."""

    name: str
    state: str = "running"
    """waiting, running or ended."""
    started_at: float | None = None
    """Seconds since the epoch; None while it waits."""
    seconds: float = 0.0
    """So far, or in all."""
    done: float = 0.0
    total: float | None = None
    unit: str = ""
    """Plural: trials."""
    detail: str = ""
    rate: float | None = None
    """Units a second over the latest steps."""
    expected_s: float | None = None
    """Seconds that were forecast for all of it."""
    limit_s: float | None = None
    """Seconds after which it ends by itself, finished or not."""

    @property
    def left_s(self) -> float | None:
        """Estimated seconds to its end; None: not known."""
        if self.state == "ended":
            return 0.0
        if self.rate and self.total is not None:
            left: float | None = (self.total - self.done) / self.rate
        elif self.expected_s is not None:
            # The remaining units take their part of the forecast, however long the others took.
            undone = 0.0 if self.total is None else self.expected_s * (1 - self.done / self.total)
            left = max(self.expected_s - self.seconds, undone, _LATE * self.seconds)
        else:
            left = None
        if left is None or self.limit_s is None:
            return left
        return max(0.0, min(left, self.limit_s - self.seconds))


@dataclass(frozen=True, kw_only=True)
class RunStages:
    """All stages of a run at one moment, in their order: those that ended, the one under way, those to come."""

    stages: Sequence[RunStage] = ()
    elapsed_s: float = 0.0
    left_s: float | None = None
    """Estimated seconds to the end of the run. None: not known, because those of a stage are not."""
    written_at: float = 0.0

    @property
    def current(self) -> RunStage | None:
        """The stage under way."""
        return next((stage for stage in self.stages if stage.state == "running"), None)

    @property
    def fraction(self) -> float | None:
        """Fraction of the run's time that is over, in [0, 1]; None: not known."""
        if self.left_s is None:
            return None
        return self.elapsed_s / max(self.elapsed_s + self.left_s, 1e-9)

    # A JSON edge: `progress.json`, the page.
    def to_json(self) -> dict[str, Any]:
        """Plain data, with the estimates that `from_json` makes again."""
        stages = [asdict(stage) | {"left_s": stage.left_s} for stage in self.stages]
        return asdict(self) | {"stages": stages}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> RunStages:
        """The stages that `to_json` wrote."""
        stages = tuple(
            RunStage(**{name: value for name, value in stage.items() if name != "left_s"})
            for stage in content.get("stages", [])
        )
        return cls(**(dict(content) | {"stages": stages}))


class Stages:
    """The stages of this process, one after another; any thread may update and read them."""

    def __init__(
        self, *, clock: Callable[[], float] = time.monotonic, wall_clock: Callable[[], float] = time.time
    ) -> None:
        self._clock = clock
        self._wall_clock = wall_clock
        self._lock = threading.Lock()
        self._begun_at = clock()
        self._ended: list[RunStage] = []
        self._current: _Current | None = None
        self._expected: dict[str, float] | None = None
        self._standing: Progress | None = None

    @contextmanager
    def stage(
        self, name: str, *, total: float | None = None, unit: str = "", limit_s: float | None = None
    ) -> Iterator[None]:
        """One stage during the block; a stage that begins inside the block ends this one."""
        self.begin(name, total=total, unit=unit, limit_s=limit_s)
        try:
            yield
        finally:
            self.end()

    def begin(self, name: str, *, total: float | None = None, unit: str = "", limit_s: float | None = None) -> None:
        """Begin a stage of `total` units, of which none is done, and end the stage before it."""
        with self._lock:
            self._end()
            expected_s = None
            if self._expected is not None and name in self._expected:
                # Forecast stages before it that were not entered had nothing to do.
                while expected_s is None:
                    first = next(iter(self._expected))
                    seconds = self._expected.pop(first)
                    expected_s = seconds if first == name else None
            stage = RunStage(
                name=name,
                started_at=self._wall_clock(),
                total=total,
                unit=unit,
                expected_s=expected_s,
                limit_s=limit_s,
            )
            self._current = _Current(stage, self._clock())

    def end(self) -> None:
        """Leave the current stage, if there is one."""
        with self._lock:
            self._end()

    def update(self, *, done: float | None = None, total: float | None = None, detail: str | None = None) -> None:
        """Update the progress and the detail of the current stage; the number of units done never falls."""
        with self._lock:
            if self._current is None:
                return
            if detail is not None:
                self._current.stage = replace(self._current.stage, detail=detail)
            if total is not None:
                self._current.stage = replace(self._current.stage, total=total)
            if done is not None and done > self._current.stage.done:
                self._current.stage = replace(self._current.stage, done=done)
                self._current.marks.append((self._clock(), done))

    def step(self) -> None:
        """One more unit of the current stage is done."""
        with self._lock:
            done = 0.0 if self._current is None else self._current.stage.done
        self.update(done=done + 1)

    def hear(self, works: Sequence[Work], *, done_before: float = 0.0) -> None:
        """Take the progress of processes in the unit of the current stage; `done_before` units were done before."""
        with self._lock:
            unit = None if self._current is None else self._current.stage.unit
        done = done_before + sum(work.done for work in works if work.unit == unit)
        open_ones = [str(work) for work in works if work.done < work.total]
        self.update(done=done, detail="; ".join(open_ones[:2]) + (", ..." if len(open_ones) > 2 else ""))

    def expect(self, forecast: Mapping[str, float]) -> None:
        """Take a forecast: seconds of all stages to come, in their order."""
        with self._lock:
            self._expected = dict(forecast)

    def stand(self, standing: Progress | None) -> None:
        """Take the progress of the trials."""
        with self._lock:
            self._standing = standing

    @property
    def standing(self) -> Progress | None:
        """Latest progress of the trials."""
        return self._standing

    def now(self) -> RunStages:
        """All stages at this moment."""
        with self._lock:
            now = self._clock()
            current = None if self._current is None else self._current.at(now)
            waiting = [
                RunStage(name=name, state="waiting", expected_s=seconds)
                for name, seconds in (self._expected or {}).items()
            ]
            left: float | None = None
            if self._expected is not None:
                rest = 0.0 if current is None else current.left_s
                left = None if rest is None else rest + sum(self._expected.values())
            return RunStages(
                stages=(*self._ended, *([] if current is None else [current]), *waiting),
                elapsed_s=now - self._begun_at,
                left_s=left,
                written_at=self._wall_clock(),
            )

    def _end(self) -> None:
        if self._current is not None:
            stage = self._current.at(self._clock())
            self._ended.append(replace(stage, state="ended", detail=""))
            self._current = None


@dataclass
class _Current:
    """The stage under way, and its latest steps."""

    stage: RunStage
    began: float
    marks: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=_MARKS))
    """Time and units done, after each step."""

    def at(self, now: float) -> RunStage:
        rate = None
        if len(self.marks) >= _FEWEST_MARKS:
            # From the first step, not from the stage's start, as workers start before it. To this moment, not to the
            # last step, so that the rate of a stage without progress falls.
            began, before = self.marks[0]
            rate = (self.stage.done - before) / max(now - began, 1e-9)
        return replace(self.stage, seconds=now - self.began, rate=rate)


def is_live(
    run: RunRecord, stages: RunStages | None, *, ended_at: float, longest_s: float, now: float | None = None
) -> bool:
    """True if something works on the run, as far as its records tell.

    `ended_at` is when its last recorded trial ended, in seconds since the epoch, `longest_s` the time of its longest.
    """
    if run.state is None or run.finished:
        return False
    moment = time.time() if now is None else now
    if stages is not None and moment - stages.written_at < FRESH_S:
        return True
    return moment - max(ended_at, run.started_at or 0.0) < max(_QUIET_S, 3 * longest_s)


def read_stages(store: Store, run: RunRecord) -> RunStages | None:
    """The stages of the run `run`: from its record once it has ended, else from `progress.json`.

    None if no stages were written, or `progress.json` cannot be read.
    """
    if run.finished:
        return None if run.stages is None else RunStages.from_json({"stages": run.stages})
    try:
        return RunStages.from_json(store.read_json(FILE)) if store.exists(FILE) else None
    except (StoreError, TypeError, AttributeError):
        # Damaged, or written by a version with other stages.
        return None
