"""The order in which Tune gives tasks to workers. `sampling/halving.py` decides which candidate reaches which rung."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ray.tune.schedulers import FIFOScheduler

from raprune.orchestration.ray_private import has_actor, keep_idle_actors

if TYPE_CHECKING:
    from ray.tune.experiment import Trial as TuneTrial


class KeepWorkers(FIFOScheduler):
    """First in, first out, and no worker is ended: a new one takes seconds (a process, torch, the data).

    Tune keeps one idle worker and ends the others; here all are kept. Tune also gives a task that waits for its own new
    worker to an idle one, and ends the new one before it ever ran; here a task without a worker comes first.
    """

    def __init__(self, workers: int) -> None:
        super().__init__()
        self._workers = workers
        self._told = False

    def on_trial_add(self, tune_controller: Any, trial: TuneTrial) -> None:
        super().on_trial_add(tune_controller, trial)
        if not self._told:
            self._told = True
            keep_idle_actors(tune_controller, trial, self._workers)

    def choose_trial_to_run(self, tune_controller: Any) -> TuneTrial | None:
        waiting = [trial for trial in tune_controller.get_live_trials() if trial.status == "PENDING"]
        return min(waiting, key=lambda trial: has_actor(tune_controller, trial), default=None)
