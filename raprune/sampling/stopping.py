"""When nothing new is proposed any more: a pure rule, facts to a reason, and who gathers the facts."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from raprune import pareto
from raprune.records import Stage, Trial, TrialState
from raprune.sampling.promotion import Outcome
from raprune.spec.job import SamplerSpec

GROWTH = 1e-6
"""Smallest relative growth of the hypervolume that counts; less is rounding."""


@dataclass(frozen=True, kw_only=True)
class Spent:
    """The resources that a search has used so far."""

    elapsed_s: float
    """Seconds of search, over all drivers that worked on the run."""
    device_s: float
    """Device seconds of trials: GPU-seconds, or CPU-seconds if there is no GPU."""


def reason_to_stop(spec: SamplerSpec, spent: Spent, points: Sequence[tuple[float, float]]) -> str | None:
    """Why nothing new should be proposed, in words for the user; None: go on.

    `points` are those of the complete trials in the order of proposal, to be minimised, each in [0, 1].
    """
    if spec.time_limit_s is not None and spent.elapsed_s >= spec.time_limit_s:
        return f"the time limit of {spec.time_limit_s:g} s is reached"
    if spec.gpu_hours is not None and spent.device_s >= 3600 * spec.gpu_hours:
        return f"{spec.gpu_hours:g} device-hours are spent"
    if spec.patience is not None and _stagnant(points, spec.patience):
        return f"the last {spec.patience} results did not enlarge the front"
    return None


class Enough:
    """Asked before each new proposal: whether the search should end. Remembers why.

    What the `stored` trials took counts, as if they had just run. A search that had ended, `already` for some reason,
    stays so.
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
        self._spec = spec
        self._cost = cost
        self._share = devices
        searched = [trial.seconds for trial in stored if trial.proposal.stage is Stage.SEARCH]
        self._device_s = sum(searched) * self._share
        self._started = time.monotonic() - sum(searched) / workers

    def spend(self, outcome: Outcome) -> None:
        """Count what a trial took, at whatever rung."""
        self._device_s += outcome.seconds * self._share

    def __call__(self, outcomes: Sequence[Outcome]) -> bool:
        if self.reason is not None:
            return True
        spent = Spent(elapsed_s=time.monotonic() - self._started, device_s=self._device_s)
        points = [outcome.point(self._cost) for outcome in outcomes if outcome.state is TrialState.COMPLETE]
        self.reason = reason_to_stop(self._spec, spent, points)
        return self.reason is not None


def _stagnant(points: Sequence[tuple[float, float]], patience: int) -> bool:
    if len(points) <= patience:
        return False
    before, now = (pareto.hypervolume(part, (1.0, 1.0)) for part in (points[:-patience], points))
    return now <= before * (1 + GROWTH)
