"""The order in which Tune gives tasks to workers. `sampling/halving.py` decides which candidate reaches which rung."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ray.tune import PlacementGroupFactory
from ray.tune.schedulers import FIFOScheduler
from ray.util.placement_group import PlacementGroup, placement_group

from raprune.orchestration.cluster.placement import nodes_but
from raprune.orchestration.ray_private import has_actor, keep_idle_actors

if TYPE_CHECKING:
    from ray.tune.experiment import Trial as TuneTrial


class WorkerResources(PlacementGroupFactory):
    """Resources of a worker, on any node but those that are left out when the worker is placed.

    Equal to the same resources without nodes that are left out, so that Tune uses its living workers on.
    """

    def __init__(self, resources: dict[str, float], left_out: set[str]) -> None:
        """`left_out`: ids of nodes. The set may change."""
        super().__init__([resources])
        self.left_out = left_out

    def to_placement_group(self) -> PlacementGroup:
        """Ask Ray for the resources."""
        if not self.left_out:
            return super().to_placement_group()
        elsewhere = nodes_but(self.left_out)
        return placement_group(self.bundles, strategy=self.strategy, bundle_label_selector=[elsewhere])


class KeepWorkers(FIFOScheduler):
    """First in, first out, and no worker is ended: a new one takes seconds (a process, torch, the data).

    Tune keeps one idle worker and ends the others; here all are kept. Tune also gives a task that waits for its own new
    worker to an idle one, and ends the new one before it ever ran; here a task without a worker comes first.
    """

    def __init__(self, workers: int, resources: WorkerResources) -> None:
        super().__init__()
        self._workers = workers
        self._resources = resources
        self._told = False
        self._waiting: list[TuneTrial] = []
        """Tasks that no worker had at the last look. A task that has begun never waits again."""

    def on_trial_add(self, tune_controller: Any, trial: TuneTrial) -> None:
        super().on_trial_add(tune_controller, trial)
        self._waiting.append(trial)
        # Tune makes copies of the resources that it is given with the trainable.
        trial.update_resources(self._resources)
        if not self._told:
            self._told = True
            keep_idle_actors(tune_controller, trial, self._workers)

    def choose_trial_to_run(self, tune_controller: Any) -> TuneTrial | None:
        # Tune asks at each of its steps: it must not take longer the more workers there are.
        self._waiting = [trial for trial in self._waiting if trial.status == "PENDING"]
        without = (trial for trial in self._waiting if not has_actor(tune_controller, trial))
        return next(without, self._waiting[0] if self._waiting else None)
