"""The view of a run that a tracker gets, in plain data: the run, its trials one by one, and its finalists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from raprune.records import Trial
from raprune.results.run_results import RunResults

Value = bool | int | float | str


@dataclass(frozen=True, kw_only=True)
class TrackedTrial:
    """One trial as a row."""

    number: int
    """Position among the trials that were told, from 0: the step of its metrics."""
    trial_id: str
    ended_at: float
    """Seconds since the epoch."""
    settings: Mapping[str, Value]
    """Everything that was chosen, by name."""
    metrics: Mapping[str, float]
    """Everything that was measured, by name with its unit; empty for a trial that failed."""

    def row(self) -> dict[str, Value]:
        """The trial as one row of a table."""
        return {"trial": self.trial_id, **self.settings, **self.metrics}


@dataclass(frozen=True, kw_only=True)
class TrackedFinalist:
    """One fine-tuned network."""

    network: str
    trial: TrackedTrial
    curve: Sequence[Mapping[str, float]] = field(default_factory=tuple)
    """Metrics of each epoch; `epoch` is its number from 1."""


@dataclass(frozen=True, kw_only=True)
class TrackedRun:
    """The run, for the head of its page in a tracker."""

    name: str
    """Last part of the run's address."""
    address: str
    """The run's address without credentials."""
    settings: Mapping[str, Value]


class Tracker(Protocol):
    """Protocol of a tracker. A call that is repeated after a resume must not write a row twice."""

    def begin(self, run: TrackedRun) -> None:
        """Open the run of the search, or the one that an earlier driver opened."""

    def trial(self, trial: TrackedTrial) -> None:
        """Write one row."""

    def finalist(self, finalist: TrackedFinalist) -> None:
        """Write the run of one finalist."""

    def end(self, rows: Sequence[TrackedTrial], summary: Mapping[str, float]) -> None:
        """Write the table of all trials and the figures of the whole run, and close the search's run."""


def tracked_trial(trial: Trial, number: int, *, test_accuracy: float | None = None) -> TrackedTrial:
    """The trial as a row."""
    proposal, found = trial.proposal, trial.metrics
    settings: dict[str, Value] = {
        "method": proposal.method,
        "allocation": proposal.allocation,
        "stage": proposal.stage.value,
        "rung": proposal.rung,
        "cuts": proposal.cuts,
        "seed": proposal.seed,
        "state": trial.state.value,
        **{f"target_{name}": value for name, value in proposal.target.fractions.items() if value is not None},
        **{f"{proposal.method}.{name}": value for name, value in proposal.settings.items()},
    }
    if trial.candidate is not None:
        settings["network"] = trial.network
    if trial.error:
        settings["error"] = trial.error.splitlines()[0]
    measured: dict[str, float | None] = {"seconds": trial.seconds, "epochs": trial.epochs}
    if found is not None:
        measured |= {
            "val_accuracy": found.accuracy,
            "val_loss": found.loss,
            "flops": float(found.flops),
            "params": float(found.params),
            "flops_fraction": found.flops_fraction,
            "params_fraction": found.params_fraction,
            "latency_ms": found.latency_ms,
            "latency_fraction": found.latency_fraction,
            "memory_bytes": None if found.memory_bytes is None else float(found.memory_bytes),
            "memory_fraction": found.memory_fraction,
            "accuracy_after_cut": trial.accuracy_after_cut,
            "accuracy_after_repair": trial.accuracy_after_repair,
            "test_accuracy": test_accuracy,
        }
    return TrackedTrial(
        number=number,
        trial_id=trial.trial_id,
        ended_at=trial.started_at + trial.seconds,
        settings=settings,
        metrics={name: float(value) for name, value in measured.items() if value is not None},
    )


def tracked_run(results: RunResults) -> TrackedRun:
    """The run for the head of its page."""
    job, data, dense = results.run.job, results.run.data, results.dense
    settings: dict[str, Value | None] = {
        "model": job.model.name,
        "data": data.name,
        "methods": ", ".join(job.methods),
        "seed": job.seed,
        "dense_flops": None if dense is None else dense.flops,
        "dense_params": None if dense is None else dense.params,
        **{f"budget_{name}": value for name, value in results.budget.fractions.items()},
    }
    return TrackedRun(
        name=results.name.rstrip("/").rpartition("/")[2],
        address=results.name,
        settings={name: value for name, value in settings.items() if value is not None},
    )


def summary_of(results: RunResults) -> dict[str, float]:
    """Figures of the whole run: the dense network's accuracies, and those of the recommended network."""
    chosen, dense = results.chosen, results.run.dense_accuracy
    figures: dict[str, float | None] = {"dense_val_accuracy": dense, "dense_test_accuracy": results.test.dense}
    if chosen is not None:
        figures |= {
            "best_val_accuracy": chosen.val_accuracy,
            "best_test_accuracy": chosen.test_accuracy,
            "best_flops_fraction": chosen.flops_fraction,
            "best_params_fraction": chosen.params_fraction,
        }
    return {name: value for name, value in figures.items() if value is not None}
