"""The point of a finished trial: the shape of a trial that samplers, halving, warm start and the stop rule use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from raprune.records import Candidate, CandidateOutline, Proposal, Setting, Trial, TrialState


@dataclass(frozen=True, kw_only=True)
class Point:
    """A finished trial as a sampler sees it: its cost, its accuracy, and the recipe behind them.

    A worker sends the results alone (`of`). The search, which made the proposal, adds the recipe (`with_recipe`).
    Channel indices are left out: a point is sent between processes, and a search holds thousands of points.
    """

    trial_id: str
    state: TrialState
    method: str = ""
    candidate: str = ""
    """Id of the candidate; empty if the trial failed."""
    accuracy: float = 0.0
    """Top-1 accuracy on the validation split, in [0, 1]."""
    flops_fraction: float = 1.0
    params_fraction: float = 1.0
    latency_fraction: float | None = None
    memory_fraction: float | None = None
    """Fractions of the dense network's costs, in [0, 1]; None if latency is not part of the budget, and where a trial
    does not know its memory."""
    widths: Mapping[str, int] = field(default_factory=dict)
    """Group name -> number of channels that stay; 0 for the name of a block that is gone."""
    error: str | None = None
    rung: int = 0
    """Rung of successive halving after which `accuracy` was measured."""
    seconds: float = 0.0
    """Seconds that the worker spent on the trial on this rung."""
    settings: Mapping[str, Setting] = field(default_factory=dict)
    """Hyper-parameters of the proposal."""
    allocation: str = ""
    keep_ratios: Mapping[str, float] = field(default_factory=dict)
    """Group name -> fraction of its channels to keep, in (0, 1], before the projection onto the target; 0 for the name
    of a block that goes."""
    target: float | None = None
    """Target of the proposal, in the cost that the search targets; None if its target is another cost."""
    run: str = ""
    """Name of the earlier run that the trial belongs to; empty for a trial of this run."""

    @classmethod
    def of(cls, trial: Trial) -> Point:
        """The results of a finished trial."""
        method, rung = trial.proposal.method, trial.proposal.rung
        if trial.metrics is None or trial.candidate is None:
            return cls(
                trial_id=trial.trial_id,
                state=TrialState.FAILED,
                method=method,
                error=trial.error,
                rung=rung,
                seconds=trial.seconds,
            )
        return cls(
            trial_id=trial.trial_id,
            state=trial.state,
            method=method,
            candidate=trial.candidate.id,
            accuracy=trial.metrics.accuracy,
            flops_fraction=trial.metrics.flops_fraction,
            params_fraction=trial.metrics.params_fraction,
            latency_fraction=trial.metrics.latency_fraction,
            memory_fraction=trial.metrics.memory_fraction,
            widths=widths_of(trial.candidate),
            error=trial.error,
            rung=rung,
            seconds=trial.seconds,
        )

    def with_recipe(self, proposal: Proposal, *, target: float | None) -> Point:
        """The point with the recipe of its proposal."""
        return replace(
            self,
            settings=proposal.settings,
            allocation=proposal.allocation,
            keep_ratios=proposal.keep_ratios,
            target=target,
        )

    def fraction(self, cost: str) -> float:
        """The fraction of the dense network's `flops`, `params`, `latency` or `memory`; 1 where it is not known."""
        fraction: float | None = getattr(self, f"{cost}_fraction")
        return 1.0 if fraction is None else fraction

    def with_fraction(self, cost: str, fraction: float) -> Point:
        """The point with another fraction of the dense network's cost `cost`."""
        if cost == "flops":
            return replace(self, flops_fraction=fraction)
        if cost == "params":
            return replace(self, params_fraction=fraction)
        if cost == "memory":
            return replace(self, memory_fraction=fraction)
        return replace(self, latency_fraction=fraction)

    def objectives(self, cost: str = "flops") -> tuple[float, float]:
        """The objectives to minimise: the error, and the fraction of the dense network's cost `cost`."""
        return (1.0 - self.accuracy, self.fraction(cost))


def widths_of(candidate: Candidate | CandidateOutline) -> dict[str, int]:
    """The widths of a candidate's groups, and 0 for each block that is gone: a gate is a group of one."""
    return {**candidate.widths, **dict.fromkeys(candidate.identity, 0)}
