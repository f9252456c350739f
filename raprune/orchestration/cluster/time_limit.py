"""Decide how long a trial may go without progress. Pure: durations in, a limit out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

from raprune.records import Stage, Trial, TrialState

TIMES_MEDIAN = 20.0
"""Limit as a multiple of the median duration: no honest trial takes so much longer than the others."""

SHORTEST_S = 120.0
"""Shortest limit from durations: a worker may have to read data or scores again."""

ENOUGH = 8
"""Number of finished trials from which on their median counts."""

_LATEST = 64

FIRST_S = 4 * 3600.0
"""Limit while fewer are finished."""


def durations(trials: Sequence[Trial]) -> list[float]:
    """Seconds of the recorded trials of a search that count for the limit: as `TimeLimit.finished` is told them."""
    return [
        trial.seconds
        for trial in trials
        if trial.proposal.stage is Stage.SEARCH
        and trial.proposal.step is None
        and trial.proposal.rung == 0
        and trial.state is not TrialState.FAILED
    ]


@dataclass
class TimeLimit:
    """The limit of the trials of one search, in seconds since the last sign of progress."""

    asked_s: float | None
    """`trial_timeout_s` of the job."""
    epoch_s: float | None
    """Expected seconds of an epoch of the dense network; None: not known."""
    durations_s: list[float] = field(default_factory=list)
    """Durations of the trials of the search that did not fail."""

    def finished(self, seconds: float) -> None:
        """Note the duration of a trial of the search that did not fail."""
        self.durations_s.append(seconds)

    @property
    def typical_s(self) -> float | None:
        """Median duration of the latest trials; None while few have finished."""
        return None if len(self.durations_s) < ENOUGH else median(self.durations_s[-_LATEST:])

    def limit_s(self, *, trains: bool) -> float:
        """Seconds without progress after which a trial is ended. A trial that `trains` tells of each epoch's end."""
        limit_s = self._limit_s()
        if not trains:
            return limit_s
        return max(limit_s, FIRST_S) if self.epoch_s is None else limit_s + TIMES_MEDIAN * self.epoch_s

    def reason(self, passed_s: float) -> str:
        """Why a trial was ended that made no progress for so many seconds, for its record."""
        if self.asked_s is not None:
            origin = f"{self.asked_s:g}"
        elif len(self.durations_s) >= ENOUGH:
            origin = f"by default {TIMES_MEDIAN:g} times the median of {len(self.durations_s)} trials"
        else:
            origin = f"by default {FIRST_S:g} until {ENOUGH} trials are finished"
        passed = f"no progress for {passed_s:.0f} s"
        return f"{passed}: over resources.trial_timeout_s ({origin}); raise it if the method needs longer"

    def _limit_s(self) -> float:
        if self.asked_s is not None:
            return self.asked_s
        if len(self.durations_s) < ENOUGH:
            return FIRST_S
        return max(SHORTEST_S, TIMES_MEDIAN * median(self.durations_s))
