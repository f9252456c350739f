"""Progress of a run, and the growth of its front with the work that was spent.

Numbers and records only.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import mean
from typing import Any

from raprune import pareto
from raprune.records import Stage, Trial, TrialState
from raprune.results.front import budget_of, choose, front_of
from raprune.results.rows import COSTS, CandidateRow, candidates, error_of
from raprune.spec.budget import Budget
from raprune.store.record import RunRecord


@dataclass(frozen=True, kw_only=True)
class Progress:
    """The progress of a run."""

    metric: str
    """Name of the task's metric."""
    states: dict[str, int]
    """State -> number of the trials that were asked for; trials that are not yet recorded are WAITING or RUNNING."""
    steps: int
    """Networks on the paths to those trials."""
    searched: int
    """Search trials that have ended."""
    trials: int
    """Search trials asked for."""
    finetuned: int
    """Fine-tunings that have ended, failed ones included."""
    finetunings: int | None
    """Fine-tunings in all: of each finalist one for each seed. None until the finalists are chosen."""
    front: int
    """Candidates on the front."""
    hypervolume: float
    """Share of the area between (error 0, no FLOPs) and (error 1, the budget) that the networks dominate, in [0, 1].

    Each repeat of a fine-tuning is a network of its own here, so that it never falls."""
    best: CandidateRow | None
    """Candidate with the star: that of `choose`."""
    dense_accuracy: float | None
    elapsed_s: float
    left_s: float | None
    """Estimated seconds for the search trials to come. None: not known yet."""
    gpu_hours: float
    finished: bool = False
    """True if the run has ended with its report."""

    # A JSON edge: `raprune status --json`.
    def to_json(self) -> dict[str, Any]:
        """Plain data under the keys that `raprune status --json` prints."""
        return vars(self) | {"best": None if self.best is None else self.best.to_json()}


def progress(
    run: RunRecord, trials: Sequence[Trial], *, running: int = 0, live: bool = False, now: float | None = None
) -> Progress:
    """Progress of the run `run`, from its recorded trials.

    `running` trials are under way. A run that is not `live` lasted until its last trial ended.
    """
    budget = budget_of(run)
    asked_for = [trial for trial in trials if trial.proposal.step is None]
    searched = [trial for trial in asked_for if trial.proposal.stage is Stage.SEARCH and trial.proposal.rung == 0]
    continued = {trial.proposal.parent for trial in asked_for if trial.proposal.rung}
    asked = len(searched) if run.job.search.trials is None else run.job.search.trials
    finetuned = sum(trial.proposal.stage is Stage.FINETUNE for trial in asked_for)
    rows = candidates(trials)
    admitted = front_of(rows, budget)
    # A candidate that was continued on the next rung counts with its last trial.
    states = Counter(trial.state.value for trial in asked_for if trial.trial_id not in continued)
    states[TrialState.RUNNING.value] += running
    states[TrialState.WAITING.value] += max(0, asked - len(searched) - running)
    started = float(run.started_at or min((t.started_at for t in trials), default=0.0))
    ended = (
        run.finished_at
        if run.finished and run.finished_at is not None
        else max((trial.started_at + trial.seconds for trial in trials), default=started)
    )
    elapsed = max(0.0, (time.time() if now is None else now) - started if live else ended - started)
    return Progress(
        metric=run.metric,
        states={state: count for state, count in sorted(states.items()) if count},
        steps=len(trials) - len(asked_for),
        searched=len(searched),
        trials=asked,
        finetuned=finetuned,
        # A finished run of a version without this field has ended with all of its fine-tunings.
        finetunings=run.finetunings if run.finetunings is not None or not run.finished else finetuned,
        front=len(admitted),
        hypervolume=_hypervolume([point for trial in trials if (point := _point(trial, budget))], budget),
        best=choose(rows, run),
        dense_accuracy=run.dense_accuracy,
        elapsed_s=elapsed,
        left_s=_time_left(run, searched, asked=asked, elapsed=elapsed),
        gpu_hours=sum(trial.gpu_seconds for trial in trials) / 3600,
        finished=run.finished,
    )


class Growth:
    """The front within a budget as networks are added, one after another."""

    def __init__(self, budget: Budget) -> None:
        self.hypervolume = 0.0
        """As in `Progress`."""
        self.best: float | None = None
        """Validation accuracy of the best candidate within the budget; of several seeds their mean so far."""
        self.points: list[tuple[float, float]] = []
        """Error and cost of the networks on the front."""
        self._budget = budget
        self._accuracies: dict[str, list[float]] = {}

    def add(self, trial: Trial) -> bool:
        """Add a trial; True if it enlarged the front."""
        point = _point(trial, self._budget)
        if point is None or trial.metrics is None:
            return False
        self._note(trial.name, trial.metrics.accuracy, is_mean=trial.proposal.stage is Stage.FINETUNE)
        # Thousands of trials are dominated, and need no more than this.
        if not point[0] < 1.0 or any(error <= point[0] and cost <= point[1] for error, cost in self.points):
            return False
        points = [*self.points, point]
        self.points = [points[index] for index in pareto.non_dominated(points)]
        before, self.hypervolume = self.hypervolume, _hypervolume(self.points, self._budget)
        return self.hypervolume > before

    def _note(self, name: str, accuracy: float, *, is_mean: bool) -> None:
        seen = self._accuracies.setdefault(name, [])
        if is_mean or not seen:
            seen.append(accuracy)
        else:
            seen[0] = max(seen[0], accuracy)
        if self.best is None or mean(seen) >= self.best:
            self.best = mean(seen)
        elif len(seen) > 1:
            # The mean of the best may have fallen.
            self.best = max(mean(accuracies) for accuracies in self._accuracies.values())


@dataclass(frozen=True, kw_only=True)
class SpentRow:
    """The front after a trial that enlarged it."""

    trial_id: str
    gpu_hours: float
    """GPU-hours of all trials until then, failed and stopped ones included."""
    hours: float
    """Hours of workers, likewise."""
    hypervolume: float
    """As in `Progress`."""
    val_accuracy: float | None
    """Validation accuracy of the best candidate within the budget."""
    points: int
    """Networks on the front."""
    stage: Stage
    """Stage of the trial."""

    # A JSON edge: `report/spent.json`.
    def to_json(self) -> dict[str, Any]:
        """Plain data under the keys of `report/spent.json`."""
        row = asdict(self)
        del row["stage"]
        return row


def spent(trials: Sequence[Trial], budget: Budget) -> list[SpentRow]:
    """The growth of the front with the work: one row for each trial that enlarged it, ordered by the trials' ends."""
    growth = Growth(budget)
    gpu_s = worker_s = 0.0
    table: list[SpentRow] = []
    for trial in sorted(trials, key=lambda t: (t.started_at + t.seconds, t.trial_id)):
        gpu_s, worker_s = gpu_s + trial.gpu_seconds, worker_s + trial.seconds
        if growth.add(trial):
            table.append(
                SpentRow(
                    trial_id=trial.trial_id,
                    gpu_hours=gpu_s / 3600,
                    hours=worker_s / 3600,
                    hypervolume=growth.hypervolume,
                    val_accuracy=growth.best,
                    points=len(growth.points),
                    stage=trial.proposal.stage,
                )
            )
    return table


def _point(trial: Trial, budget: Budget) -> tuple[float, float] | None:
    """Error and cost of the trial's network; None if it does not count or the budget does not admit it."""
    metrics = trial.metrics
    if not trial.counts or metrics is None or math.isnan(metrics.accuracy):
        return None
    costs = {f"{cost}_fraction": getattr(metrics, f"{cost}_fraction") for cost in COSTS}
    if not budget.admits(**costs):
        return None
    share = costs[f"{budget.cost}_fraction"]
    return error_of(trial), 1.0 if share is None else share


def _hypervolume(points: Sequence[tuple[float, float]], budget: Budget) -> float:
    return pareto.hypervolume(points, (1.0, budget.limit)) / budget.limit


def _time_left(run: RunRecord, searched: Sequence[Trial], *, asked: int, elapsed: float) -> float | None:
    if len(searched) >= asked:
        return 0.0
    if not searched:
        return None
    begun = min(trial.started_at for trial in searched)
    ended = max(trial.started_at + trial.seconds for trial in searched)
    left = (ended - begun) / len(searched) * (asked - len(searched))
    limit = run.job.search.time_limit_s
    return left if limit is None else max(0.0, min(left, limit - elapsed))
