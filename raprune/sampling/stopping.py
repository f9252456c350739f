"""The stop rule of a search: a pure function from facts to a reason, and the class that gathers the facts."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from raprune.pareto import Front
from raprune.records import Stage, Trial, TrialState
from raprune.sampling.point import Point
from raprune.spec.job import SamplerSpec

GROWTH = 1e-6
"""Smallest relative growth of the hypervolume that counts; a smaller one may be a rounding error."""


@dataclass(frozen=True, kw_only=True)
class Spent:
    """The resources that a search has used so far."""

    elapsed_s: float
    """Seconds of search, over all drivers that worked on the run."""
    device_s: float
    """Device seconds of trials: GPU-seconds, or CPU-seconds if there is no GPU."""


def reason_to_stop(spec: SamplerSpec, spent: Spent, *, stagnant: bool) -> str | None:
    """Reason why nothing new should be proposed, in words for the user; None if the search should go on.

    `stagnant` is true if the last `spec.patience` results did not enlarge the front.
    """
    if spec.time_limit_s is not None and spent.elapsed_s >= spec.time_limit_s:
        return f"the time limit of {spec.time_limit_s:g} s is reached"
    if spec.gpu_hours is not None and spent.device_s >= 3600 * spec.gpu_hours:
        return f"{spec.gpu_hours:g} device-hours are spent"
    if spec.patience is not None and stagnant:
        return f"the last {spec.patience} results did not enlarge the front"
    return None


class Stagnation:
    """The growth of the front by the last `patience` results, kept while results come one after another.

    Objectives are to be minimised, each in [0, 1].
    """

    def __init__(self, patience: int) -> None:
        self._patience = patience
        self._front, self._front_before = Front(), Front()
        self._last: deque[tuple[float, float]] = deque()
        """The results of `_front` that are not in `_front_before`."""
        self._reached = self._reached_before = 0.0
        self._is_full = False
        """True once there were more than `patience` results."""

    def add(self, objectives: tuple[float, float]) -> None:
        """Take the next result. O(log N), and O(front) if the result enlarges a front."""
        self._last.append(objectives)
        if self._front.add(objectives):
            self._reached = self._front.hypervolume((1.0, 1.0))
        if len(self._last) > self._patience:
            self._is_full = True
            if self._front_before.add(self._last.popleft()):
                self._reached_before = self._front_before.hypervolume((1.0, 1.0))

    @property
    def is_reached(self) -> bool:
        """True if there are more than `patience` results, and the last ones did not enlarge the front."""
        return self._is_full and self._reached <= self._reached_before * (1 + GROWTH)


class Enough:
    """The stop rule of one search: called before each new proposal, true once the search should end.

    The results that the next proposal may use are heard before.

    The seconds of the `stored` trials count as if this driver had run them. A search that had ended before, for the
    reason `already`, stays ended. `devices` is the number of devices, or the fraction of one, that a trial uses.
    """

    def __init__(
        self,
        spec: SamplerSpec,
        stored: Sequence[Trial],
        *,
        workers: int,
        devices: float,
        cost: str,
        already: str | None = None,
    ) -> None:
        self.reason = already
        """Reason of the end; None while the search should go on."""
        self._spec = spec
        self._cost = cost
        self._devices = devices
        searched = [trial.seconds for trial in stored if trial.proposal.stage is Stage.SEARCH]
        self._device_s = sum(searched) * self._devices
        self._stagnation = None if spec.patience is None else Stagnation(spec.patience)
        self._started = time.monotonic() - sum(searched) / workers

    def spend(self, point: Point) -> None:
        """Count the seconds of a trial, on whichever rung it ran."""
        self._device_s += point.seconds * self._devices

    def hear(self, point: Point) -> None:
        """Take the next result, in the order of proposal."""
        if self._stagnation is not None and point.state is TrialState.COMPLETE:
            self._stagnation.add(point.objectives(self._cost))

    def __call__(self) -> bool:
        if self.reason is not None:
            return True
        spent = Spent(elapsed_s=time.monotonic() - self._started, device_s=self._device_s)
        stagnant = self._stagnation is not None and self._stagnation.is_reached
        self.reason = reason_to_stop(self._spec, spent, stagnant=stagnant)
        return self.reason is not None
