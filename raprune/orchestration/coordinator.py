"""The run's actor: single writer of its trials, holder of its front, source of its gauges.

Named, detached and restartable: it outlives a worker and, on a cluster that was joined, a driver that was killed; a
resumed driver finds it by its name. Its memory is the store, from which it is rebuilt.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.util.metrics import Gauge

from raprune.front import Progress, progress
from raprune.store import Store
from raprune.trial import Trial, TrialState

NAMESPACE = "raprune"

_EXPORT_PERIOD_S = 2.0

GAUGES = {
    "raprune_trials": "Recorded trials by state.",
    "raprune_front_points": "Candidates on the Pareto front of accuracy and FLOPs.",
    "raprune_hypervolume": "Area that the front dominates, from (error 1, the budget's FLOPs).",
    "raprune_best_accuracy": "Best validation accuracy within the budget.",
}
"""Name -> description. Ray exports them with the prefix `ray_`, and the tags `run` and (for trials) `state`."""


class Coordinator:
    """See the module. Use it through `find_coordinator`."""

    def __init__(self, uri: str) -> None:
        self._store = Store(uri)
        self._run = self._store.run()
        self._trials = {trial.trial_id: trial for trial in self._store.trials()}
        self._gauges = {
            name: Gauge(name, text, tag_keys=("run", "state") if name == "raprune_trials" else ("run",))
            for name, text in GAUGES.items()
        }
        self._workers: dict[str, set[str]] = {}
        self._exported_at = 0.0
        self._export()

    def record(self, trials: Sequence[Trial]) -> None:
        """Write the trials of one task, all or none; they are durable when this returns.

        A trial that is there already stays as it is: a worker that was lost right after its trial was written runs it
        again.
        """
        new = [trial for trial in trials if trial.trial_id not in self._trials]
        self._store.append(new)
        self._trials |= {trial.trial_id: trial for trial in new}
        if time.monotonic() - self._exported_at > _EXPORT_PERIOD_S:
            self._export()

    def join(self, session: str, worker: str) -> int:
        """How many workers of this driver's session have come up, `worker` among them."""
        self._workers.setdefault(session, set()).add(worker)
        return len(self._workers[session])

    def trial(self, trial_id: str) -> Trial:
        """One recorded trial."""
        return self._trials[trial_id]

    def trials(self) -> list[Trial]:
        """All recorded trials, in the order of their records."""
        return list(self._trials.values())

    def progress(self, running: int = 0) -> Progress:
        """Where the run stands, with `running` trials under way."""
        self._export()
        return progress(self._run, self.trials(), running=running, live=True)

    def _export(self) -> None:
        self._exported_at = time.monotonic()
        now = progress(self._run, self.trials())
        tags = {"run": self._store.name}
        for state in (TrialState.COMPLETE, TrialState.FAILED):
            self._gauges["raprune_trials"].set(now.states.get(state.value, 0), {**tags, "state": state.value})
        self._gauges["raprune_front_points"].set(now.front, tags)
        self._gauges["raprune_hypervolume"].set(now.hypervolume, tags)
        if now.best is not None:
            self._gauges["raprune_best_accuracy"].set(now.best["val_accuracy"], tags)


def find_coordinator(store: Store) -> ActorHandle[Any]:
    """The coordinator of the run in `store`, ready: the one that is alive, else a new one."""
    actor: Any = ray.remote(Coordinator)
    handle: ActorHandle[Any] = actor.options(
        name=coordinator_name(store.uri),
        namespace=NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        num_cpus=0,
        max_restarts=-1,
        max_task_retries=-1,
    ).remote(store.uri)
    ready: Any = handle.progress
    ray.get(ready.remote())
    return handle


def coordinator_name(uri: str) -> str:
    """One name for each run."""
    return f"raprune-coordinator-{hashlib.sha256(uri.encode()).hexdigest()[:12]}"
