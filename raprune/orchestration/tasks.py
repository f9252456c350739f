"""Frozen dataclasses that travel between the driver and the workers of a search.

    driver -> Shared (once a worker), Assignment (a task at a time) -> worker -> Report -> driver

Tune passes dictionaries in both directions: each of them holds one entry, with the object.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import ray
from ray.actor import ActorHandle

from raprune.channels.graph import ChannelGraph
from raprune.checks.symptoms import Accuracy
from raprune.cost.latency import LatencyTable
from raprune.data.dataset import Dataset, Split
from raprune.errors import RapruneError
from raprune.orchestration.cluster.placement import Placement
from raprune.pruning.workload import WeightArrays
from raprune.records import Proposal
from raprune.results.forecast import Pace
from raprune.results.test_split import SplitAccuracies
from raprune.sampling.point import Point
from raprune.spec.job import SearchSpec
from raprune.store.folder import Store
from raprune.store.scores import Arrays
from raprune.training.epoch import Epoch
from raprune.training.evaluate import Evaluation

_ASSIGNMENT, _REPORT = "assignment", "report"


@dataclass(frozen=True)
class Shared:
    """Inputs that all workers of a run share; the arrays are in the object store, once on each node."""

    spec: SearchSpec
    graph: ChannelGraph
    placement: Placement
    data: ray.ObjectRef[Dataset]
    """Without the test split."""
    weights: ray.ObjectRef[WeightArrays]
    statistics: ray.ObjectRef[dict[str, Arrays]]
    """Arrays that were computed before the search, by key."""
    coordinator: ActorHandle[Any]
    store: Store
    session: str
    """Tells the workers of this driver from those of an earlier driver."""
    provenance: dict[str, Any]
    """JSON: written into the recipe of each exported network."""
    latency: LatencyTable | None = None
    teacher: ray.ObjectRef[WeightArrays] | None = None
    """Weights of the teacher; None where the dense network teaches."""
    meeting: ActorHandle[Any] | None = None
    """Meeting of the search's first workers; None outside of the search."""


@dataclass(frozen=True)
class CandidateTask:
    """Try a proposal; a proposal that is fine-tuned, at the end or on a rung, continues the proposal `parent`."""

    proposal: Proposal
    parent: Proposal | None = None

    @property
    def trial_id(self) -> str:
        return self.proposal.trial_id


@dataclass(frozen=True, kw_only=True)
class Look:
    """Final work on the network of one trial."""

    proposal: Proposal
    """Proposal of its trial."""
    keep: bool
    """Store the network under its name, because it is on the front."""
    test: bool
    """Evaluate the network on the test split."""


@dataclass(frozen=True)
class TestTask:
    """Store and evaluate networks of the final front, and evaluate the dense network on the test split."""

    number: int
    split: list[ray.ObjectRef[Split]]
    """At most one reference, in a list so that only the task fetches it; empty where nothing is tested."""
    dense: bool
    """Evaluate the dense network too."""
    looks: tuple[Look, ...]

    @property
    def trial_id(self) -> str:
        return f"test-{self.number:05d}"


WorkerTask = CandidateTask | TestTask


@dataclass(frozen=True)
class Assignment:
    """Tasks for a worker of the search: one, or several candidates of short trials, as each answer costs Tune 8 ms.

    With `together` above 1 the task waits until that many workers have come up: otherwise a quick first worker would
    take the tasks for which Tune is starting the other workers, and Tune would end those workers.
    """

    task: WorkerTask
    together: int = 0
    further: tuple[CandidateTask, ...] = ()
    """Tasks for after `task`, in this order."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # Tune copies each configuration twice, which takes as long as the rest of its work for a trial.
        return self

    def __str__(self) -> str:
        # Tune makes a name of it.
        return self.task.trial_id

    @property
    def tasks(self) -> tuple[WorkerTask, ...]:
        """All tasks, in order."""
        return (self.task, *self.further)

    def to_config(self) -> dict[str, Self]:
        """The assignment as a configuration of Tune."""
        return {_ASSIGNMENT: self}

    @classmethod
    def of(cls, config: Mapping[str, Self]) -> Self:
        """The assignment in a configuration of Tune."""
        return config[_ASSIGNMENT]


@dataclass(frozen=True, kw_only=True)
class Report:
    """The end of an assignment, as its worker tells it. Exactly one field is set."""

    points: tuple[Point, ...] | None = None
    """Result of each `CandidateTask`, without the recipe. The trials are recorded already; they may have failed."""
    test: SplitAccuracies | None = None
    """Accuracies of a `TestTask`."""
    failure: RapruneError | None = None
    """Error of the run, not of the candidate: the store failed, or another driver took the run over."""
    setup_error: str | None = None
    """Error that kept the worker from building the workload; it ran no task."""

    def __post_init__(self) -> None:
        values = (self.points, self.test, self.failure, self.setup_error)
        assert sum(value is not None for value in values) == 1, "an assignment ends in one way"

    def to_result(self) -> dict[str, Self | bool]:
        """The report as the last result that Tune takes of a trial."""
        return {"done": True, _REPORT: self}

    @classmethod
    def of(cls, result: Mapping[str, Any]) -> Self:
        """The report in a result that Tune hands on."""
        return result[_REPORT]


@dataclass(frozen=True)
class Dense:
    """The dense network, trained if no weights were given, with its accuracy on the validation split."""

    weights: WeightArrays
    weights_hash: str
    validation: Evaluation
    training: Accuracy
    """Accuracy on a sample of the training images."""
    pace: Pace
    history: Sequence[Epoch] = field(default=())
    """Metrics of each epoch, if the network was trained."""
