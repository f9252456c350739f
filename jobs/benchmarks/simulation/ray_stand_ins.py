"""Stand-ins for Ray's part of Tune: references, actors that are workers, resources."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from ray.air.execution import AcquiredResources, ResourceManager, ResourceRequest
from ray.tune.trainable import Trainable

from raprune.orchestration.tasks import Assignment, Report


class Cluster(Protocol):
    """The world that the workers are in."""

    def sent(self) -> None:
        """Charge a task that the driver sends."""

    def work(self, worker: Worker, assignment: Assignment, answer: Answer) -> None:
        """Have a worker carry out an assignment."""


@dataclass(eq=False)
class Answer:
    """Stands for a reference of Ray."""

    value: Any = None
    is_ready: bool = False

    def give(self, value: Any) -> None:
        self.value, self.is_ready = value, True


class Waiting(Trainable):
    """Makes the results that Tune gets of a worker: one object for all workers, as it keeps nothing of a trial."""

    report: Report

    def step(self) -> dict[str, Report | bool]:
        return self.report.to_result()

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        return True


class Worker:
    """Stands for the handle of an actor that runs `Waiting`."""

    def __init__(self, cluster: Cluster, config: Mapping[str, Any]) -> None:
        self._cluster, self._config = cluster, config

    def __getattr__(self, name: str) -> Any:
        return Method(partial(self._call, name))

    def _call(self, name: str, *args: Any, **kwargs: Any) -> Answer:
        self._cluster.sent()
        answer = Answer()
        if name == "reset":
            [self._config] = args
            answer.give(True)
        elif name == "train":
            self._cluster.work(self, Assignment.of(self._config), answer)
        else:
            # What Tune asks a new actor: whether it is there, and where.
            answer.give({})
        return answer


@dataclass(frozen=True)
class Method:
    """Stands for a method of the handle."""

    remote: Callable[..., Any]


class Room(ResourceManager):
    """Stands for the resources of the cluster, which has room for every worker that is asked for."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def request_resources(self, resource_request: ResourceRequest) -> None:
        pass

    def cancel_resource_request(self, resource_request: ResourceRequest) -> None:
        pass

    def has_resources_ready(self, resource_request: ResourceRequest) -> bool:
        return True

    def acquire_resources(self, resource_request: ResourceRequest) -> AcquiredResources:
        return Place(resource_request, self._cluster)

    def free_resources(self, acquired_resource: AcquiredResources) -> None:
        pass

    def get_resource_futures(self) -> list[Any]:
        return []

    def clear(self) -> None:
        pass


@dataclass
class Place(AcquiredResources):
    """Stands for the resources of one worker."""

    cluster: Cluster

    def annotate_remote_entities(self, entities: Sequence[Any]) -> list[Any]:
        return [Method(lambda config, **kwargs: Worker(self.cluster, config)) for _ in entities]
