"""Which task gets which worker, as Tune asks. Who goes on to which rung is decided in `sampling/halving.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ray.tune.schedulers import FIFOScheduler

from raprune.orchestration.ray_private import has_actor, keep_idle_actors

if TYPE_CHECKING:
    from ray.tune.experiment import Trial as TuneTrial


class KeepWorkers(FIFOScheduler):
    """First in, first out, with as many workers as there are: a new one costs seconds (a process, torch, the data).

    Tune keeps one worker that has nothing to do, and ends the others; here all are kept. And Tune hands a task that
    waits for its own new worker to one that is free, and ends the new one before it ever ran; here a task without a
    worker comes first.
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
