"""The stop rule of a search: a pure function from facts to a reason, and the class that gathers the facts."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from raprune import pareto
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


def reason_to_stop(spec: SamplerSpec, spent: Spent, objectives: Sequence[tuple[float, float]]) -> str | None:
    """Reason why nothing new should be proposed, in words for the user; None if the search should go on.

    `objectives` are those of the complete trials in the order of proposal, to be minimised, each in [0, 1].
    """
    if spec.time_limit_s is not None and spent.elapsed_s >= spec.time_limit_s:
        return f"the time limit of {spec.time_limit_s:g} s is reached"
    if spec.gpu_hours is not None and spent.device_s >= 3600 * spec.gpu_hours:
        return f"{spec.gpu_hours:g} device-hours are spent"
    if spec.patience is not None and _stagnant(objectives, spec.patience):
        return f"the last {spec.patience} results did not enlarge the front"
    return None


class Enough:
    """The stop rule of one search: called before each new proposal, true once the search should end.

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
        self._started = time.monotonic() - sum(searched) / workers

    def spend(self, point: Point) -> None:
        """Count the seconds of a trial, on whichever rung it ran."""
        self._device_s += point.seconds * self._devices

    def __call__(self, points: Sequence[Point]) -> bool:
        if self.reason is not None:
            return True
        spent = Spent(elapsed_s=time.monotonic() - self._started, device_s=self._device_s)
        objectives = [point.objectives(self._cost) for point in points if point.state is TrialState.COMPLETE]
        self.reason = reason_to_stop(self._spec, spent, objectives)
        return self.reason is not None


def _stagnant(objectives: Sequence[tuple[float, float]], patience: int) -> bool:
    if len(objectives) <= patience:
        return False
    before, now = (pareto.hypervolume(part, (1.0, 1.0)) for part in (objectives[:-patience], objectives))
    return now <= before * (1 + GROWTH)
