"""Metrics of a run for Prometheus: pure functions from its records to numbers, and an exporter to Ray's metrics.

Ray's exporter sends a gauge once for each time that it is set, and drops a series two of its report intervals after
the last value came. So all gauges are set again in every beat, and the gauge of a candidate that left the front
disappears because it is no longer set. Ray adds counters up by process and never drops them: a counter that is counted
from the store again, after its coordinator was lost, is a second series, and the larger of the two is right. So every
query takes `max by (run, ...)`, or a rate.
"""

from __future__ import annotations

import threading
import time
from collections import Counter as Multiset
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ray.util.metrics import Counter, Gauge

from raprune import pareto
from raprune.orchestration.ray_private import dashboard_url, metrics_report_interval_s
from raprune.records import Trial, TrialState
from raprune.results.front import budget_of, floor_of, front
from raprune.results.progress import progress
from raprune.results.rows import CandidateRow
from raprune.spec.budget import Budget
from raprune.store.record import RunRecord

BEAT_S = 2.0
"""Maximum time between two settings of all gauges; Ray sends them every ten seconds, unless configured otherwise."""

RESTED = 20
"""Ratio of the pause after a measurement to its duration, so that a run of many trials keeps its CPU."""

MAX_FRONT = 64
"""Maximum number of candidates of the front that are exported; of a longer front, so many spread over it."""

COSTS = ("flops", "params", "latency", "memory")

Tags = tuple[tuple[str, str], ...]
"""Labels and their values, without the run, which is a label of every metric."""

Values = dict[str, dict[Tags, float]]
"""Metric -> tags -> value."""


@dataclass(frozen=True)
class Metric:
    """A name for Prometheus. Accuracies, costs and the hypervolume are in [0, 1]; a cost is one of `COSTS`, as a
    fraction of the dense network's."""

    description: str
    tags: tuple[str, ...] = ()


GAUGES = {
    "raprune_trials": Metric("Trials that were asked for, by where they stand.", ("state",)),
    "raprune_front_points": Metric("Candidates on the Pareto front within the budget."),
    "raprune_hypervolume": Metric("Share of the area between no error and no cost, and error 1 and the budget."),
    "raprune_best_accuracy": Metric("Best value of the task's metric on the validation split within the budget."),
    "raprune_best_cost": Metric("What the candidate of that value costs.", ("cost",)),
    "raprune_dense_accuracy": Metric("The task's metric of the dense network on the validation split."),
    "raprune_accuracy_floor": Metric("The task's metric that was asked for."),
    "raprune_budget": Metric("What may remain.", ("cost",)),
    "raprune_finalists": Metric("Fine-tunings, `trained` and, once they are chosen, `wanted`.", ("state",)),
    "raprune_front_accuracy": Metric("The task's metric of a candidate on the front.", ("candidate", "method")),
    "raprune_front_cost": Metric("What a candidate on the front costs.", ("candidate", "method", "cost")),
    "raprune_front_seen": Metric("When it was on the front last; seconds since the epoch.", ("candidate", "method")),
    "raprune_driver_silent_seconds": Metric("Since the last sign of life of the run's driver."),
    "raprune_store_waits": Metric("Processes that wait for the run's storage."),
}
"""Ray exports them with the prefix `ray_`, the label `run`, and labels of its own."""

COUNTERS = {
    "raprune_recorded_trials": Metric("Trials that have ended.", ("stage", "rung", "state")),
    "raprune_trial_seconds": Metric("Seconds that trials took, of workers and of GPUs.", ("stage", "device")),
}
"""Likewise, with the suffix `_total`."""


@dataclass(frozen=True, kw_only=True)
class RunMeasurement:
    """The numbers of a run at one time."""

    gauges: Values = field(default_factory=dict)
    counters: Values = field(default_factory=dict)
    """From the run's beginning, over all of its drivers and coordinators."""


def measure(run: RunRecord, trials: Sequence[Trial], *, running: int = 0) -> RunMeasurement:
    """Metrics of the run with these records, with `running` trials under way."""
    budget = budget_of(run)
    now = progress(run, trials, running=running)
    floor = floor_of(run)
    gauges: Values = {
        "raprune_trials": {(("state", state.value),): float(now.states.get(state.value, 0)) for state in TrialState},
        "raprune_front_points": {(): float(now.front)},
        "raprune_hypervolume": {(): now.hypervolume},
        "raprune_best_accuracy": {} if now.best is None else {(): now.best.val_accuracy},
        "raprune_best_cost": {} if now.best is None else _costs(now.best),
        "raprune_dense_accuracy": {} if now.dense_accuracy is None else {(): now.dense_accuracy},
        "raprune_accuracy_floor": {} if floor is None else {(): floor},
        "raprune_budget": {(("cost", cost),): limit for cost in COSTS if (limit := getattr(budget, cost)) is not None},
        "raprune_finalists": {
            (("state", state),): float(number)
            for state, number in (("trained", now.finetuned), ("wanted", now.finetunings))
            if number is not None
        },
    }
    return RunMeasurement(gauges=gauges | _front(front(trials, budget), budget), counters=_counts(trials))


def signs_of_life(measured: RunMeasurement, *, now: float, silent_s: float, store_waits: int) -> Values:
    """The gauges that change although nothing is recorded; `now` is in seconds since the epoch."""
    return {
        "raprune_front_seen": dict.fromkeys(measured.gauges.get("raprune_front_accuracy", {}), now),
        "raprune_driver_silent_seconds": {(): silent_s},
        "raprune_store_waits": {(): float(store_waits)},
    }


def _front(rows: Sequence[CandidateRow], budget: Budget) -> Values:
    fractions = [row.fraction(budget.cost) for row in rows]
    points = [
        (1.0 - row.val_accuracy, 1.0 if fraction is None else fraction)
        for row, fraction in zip(rows, fractions, strict=True)
    ]
    accuracies: dict[Tags, float] = {}
    costs: dict[Tags, float] = {}
    for row in (rows[index] for index in pareto.spread(points, MAX_FRONT)):
        name: Tags = (("candidate", row.candidate), ("method", row.method))
        accuracies[name] = row.val_accuracy
        costs |= {(*name, *tags): value for tags, value in _costs(row).items()}
    return {"raprune_front_accuracy": accuracies, "raprune_front_cost": costs}


def _costs(row: CandidateRow) -> dict[Tags, float]:
    known = {cost: row.fraction(cost) for cost in COSTS}
    return {(("cost", cost),): value for cost, value in known.items() if value is not None}


def _counts(trials: Sequence[Trial]) -> Values:
    recorded: Multiset[Tags] = Multiset()
    seconds: dict[Tags, float] = {}
    for trial in trials:
        stage, rung = ("stage", trial.proposal.stage.value), ("rung", str(trial.proposal.rung))
        recorded[stage, rung, ("state", trial.state.value)] += 1
        for device, spent in (("worker", trial.seconds), ("gpu", trial.gpu_seconds)):
            tags = (stage, ("device", device))
            seconds[tags] = seconds.get(tags, 0.0) + spent
    return {
        "raprune_recorded_trials": {tags: float(count) for tags, count in recorded.items()},
        "raprune_trial_seconds": {tags: spent for tags, spent in seconds.items() if spent > 0},
    }


class Exporter:
    """Hands a run's numbers to Ray's metrics, in the process that they are to live as long as."""

    def __init__(self, run: str) -> None:
        self._gauges = {name: Gauge(name, m.description, ("run", *m.tags)) for name, m in GAUGES.items()}
        self._counters = {name: Counter(name, m.description, ("run", *m.tags)) for name, m in COUNTERS.items()}
        self._counted: dict[tuple[str, Tags], float] = {}
        self._run = run

    def set(self, gauges: Values) -> None:
        """Set these gauges, to be exported once."""
        for name, values in gauges.items():
            for tags, value in values.items():
                self._gauges[name].set(value, self._labels(tags))

    def count(self, counters: Values) -> None:
        """Let the counters stand where these values say; they never fall."""
        for name, values in counters.items():
            for tags, value in values.items():
                more = value - self._counted.get((name, tags), 0.0)
                if more > 0:
                    self._counters[name].inc(more, self._labels(tags))
                    self._counted[name, tags] = value

    def _labels(self, tags: Tags) -> dict[str, str]:
        return {"run": self._run, **dict(tags)}


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Sources of a run's metrics. A source that did not change is the same object."""

    run: RunRecord
    trials: Sequence[Trial]
    running: int
    silent_s: float
    store_waits: int


class Heart:
    """Measures a run and exports it in every beat, in a thread of its own, as long as the process lives."""

    def __init__(self, run: str, read: Callable[[], Facts]) -> None:
        self._exporter = Exporter(run)
        self._read = read
        self._report_s = metrics_report_interval_s()
        # Several settings within the time after which Ray drops a series, even if one is late.
        self._beat_s = min(BEAT_S, self._report_s / 2)
        self._known: Facts | None = None
        self._measured_at = self._rested_at = time.monotonic()
        threading.Thread(target=self._beat, daemon=True, name="raprune-metrics").start()

    def unexported_s(self) -> float:
        """Seconds until all current metrics have surely left the process."""
        now = time.monotonic()
        sent_s = self._beat_s + max(1.0, self._report_s)
        if self._known is None or not _same(self._known, self._read()):
            return max(0.0, self._rested_at - now) + self._beat_s + sent_s
        return max(0.0, self._measured_at + sent_s - now)

    def _beat(self) -> None:
        measured = RunMeasurement()
        while True:
            began, facts = time.monotonic(), self._read()
            if began >= self._rested_at and (self._known is None or not _same(self._known, facts)):
                measured = measure(facts.run, facts.trials, running=facts.running)
                self._known, self._measured_at = facts, time.monotonic()
                self._rested_at = self._measured_at + RESTED * (self._measured_at - began)
            self._exporter.set(measured.gauges)
            self._exporter.count(measured.counters)
            self._exporter.set(
                signs_of_life(measured, now=time.time(), silent_s=facts.silent_s, store_waits=facts.store_waits)
            )
            time.sleep(self._beat_s)


def _same(known: Facts, facts: Facts) -> bool:
    return known.run is facts.run and known.trials is facts.trials and known.running == facts.running


def see_off(unexported_s: Callable[[], float]) -> None:
    """Wait until the last metrics of a run are exported, if the cluster is one that Prometheus can know.

    Ray tells Prometheus of a cluster's nodes by its dashboard; without a dashboard this does not wait.
    """
    if dashboard_url():
        time.sleep(unexported_s())
