"""What a worker does: hold network and data on its device, and take one task after another."""

from __future__ import annotations

import os
import queue
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import ray
import torch
from ray import tune
from ray.actor import ActorHandle
from torch import nn

from raprune import artifact
from raprune.data.batches import DeviceSplit
from raprune.data.dataset import Dataset, Split
from raprune.evaluate import Evaluation, evaluate
from raprune.orchestration.failures import error_text
from raprune.orchestration.placement import Placement
from raprune.orchestration.promotion import Outcome
from raprune.prune import Pruner
from raprune.spec import SearchSpec
from raprune.store import Store
from raprune.tracing.graph import ChannelGraph
from raprune.training import Epoch
from raprune.trial import Proposal, Trial, TrialState
from raprune.workload import WeightArrays, Workload, build_workload, train_dense

MEETING_S = 30.0
"""A node without room for a worker that was counted on must not hold up the others for longer."""


@dataclass(frozen=True)
class Shared:
    """What all workers of a run share; the arrays are in the object store, once on each node."""

    spec: SearchSpec
    graph: ChannelGraph
    placement: Placement
    data: ray.ObjectRef[Dataset]
    """Without the test split."""
    weights: ray.ObjectRef[WeightArrays]
    coordinator: ActorHandle[Any]
    store: Store
    session: str
    """Tells this driver's workers from those of one before it."""
    provenance: dict[str, Any]


@dataclass(frozen=True)
class CandidateTask:
    """Try a proposal; a fine-tuned one continues the proposal `parent`."""

    proposal: Proposal
    parent: Proposal | None = None


@dataclass(frozen=True)
class TestTask:
    """Evaluate networks on the test split: the dense one, fine-tuned candidates by id, others by their proposal."""

    number: int
    split: list[ray.ObjectRef[Split]]
    """One reference, in a list so that it is fetched by the task and by nobody else."""
    dense: bool
    finetuned: tuple[str, ...]
    repaired: tuple[tuple[str, Proposal], ...]

    @property
    def trial_id(self) -> str:
        return f"test-{self.number:05d}"


class CandidateTrial(tune.Trainable):
    """A worker of the search: one process that takes task after task by `reset_config`.

    A config is `{"task": ..., "together": n}`. With n above 1 the task waits until n workers have come up: a quick
    first worker would else take the tasks for which Tune is starting the others, and Tune would end those.
    """

    def setup(self, config: dict[str, Any], shared: Shared | None = None) -> None:
        assert shared is not None, "given by tune.with_parameters"
        self._config = config
        self._shared = shared
        self._name = f"{socket.gethostname()}:{os.getpid()}"
        self._broken: str | None = None
        try:
            self._workload = _build(shared)
            self._pruner = Pruner(self._workload, shared.graph, shared.spec.search, seed=shared.spec.seed)
        except Exception as error:
            # Raised from here it would be tried again for every candidate.
            self._broken = error_text(error)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._config = new_config
        return True

    def step(self) -> dict[str, Any]:
        if self._broken is not None:
            return {"done": True, "broken": self._broken}
        task: CandidateTask | TestTask = self._config["task"]
        if self._config["together"] > 1:
            self._meet(self._config["together"])
        if isinstance(task, TestTask):
            return {"done": True, "test": self._test(task)}
        trial = self._try(task)
        ray.get(self._shared.coordinator.record.remote(trial))
        return {"done": True, "outcome": Outcome.of(trial)}

    def _meet(self, workers: int) -> None:
        """Wait for so many workers, or for the time in which a worker should have come up."""
        until = time.monotonic() + MEETING_S
        join: Any = self._shared.coordinator.join
        while ray.get(join.remote(self._shared.session, self._name)) < workers and time.monotonic() < until:
            time.sleep(0.05)

    def _try(self, task: CandidateTask) -> Trial:
        started_at, began = time.time(), time.perf_counter()
        try:
            trial = self._run(task)
        except Exception as error:
            trial = Trial(
                trial_id=task.proposal.trial_id,
                proposal=task.proposal,
                state=TrialState.FAILED,
                error=error_text(error),
            )
        seconds = time.perf_counter() - began
        return replace(
            trial,
            seconds=seconds,
            gpu_seconds=seconds * self._shared.placement.gpus,
            started_at=started_at,
            worker=self._name,
        )

    def _run(self, task: CandidateTask) -> Trial:
        if task.parent is None:
            return self._pruner.prune(task.proposal)[0]
        shared = self._shared
        trial, model = self._pruner.finetune(task.proposal, task.parent, shared.spec.finalists.train)
        _save(shared, trial, model)
        return trial

    def _test(self, task: TestTask) -> dict[str, float]:
        shared, workload = self._shared, self._workload
        split = DeviceSplit.place(ray.get(task.split[0]), workload.data.mean, workload.data.std, workload.device)
        batch_size = shared.spec.search.eval_batch_size
        accuracies: dict[str, float] = {}
        if task.dense:
            accuracies["dense"] = evaluate(workload.model, split, batch_size=batch_size).accuracy
        for candidate in task.finetuned:
            model = artifact.load_from(workload.model, shared.store, f"models/{candidate}")
            accuracies[candidate] = evaluate(model, split, batch_size=batch_size).accuracy
        for candidate, proposal in task.repaired:
            model = self._pruner.prune(proposal)[1]
            accuracies[candidate] = evaluate(model, split, batch_size=batch_size).accuracy
        return accuracies


@dataclass(frozen=True)
class Dense:
    """The dense network, trained if it had to be, and how good it is on the validation split."""

    weights: WeightArrays
    weights_hash: str
    validation: Evaluation


def prepare_dense(
    spec: SearchSpec, placement: Placement, data: Dataset, weights: WeightArrays, *, train: bool
) -> Iterator[Epoch | Dense]:
    """The epochs of the dense network's training as they end, if `train`, and at last the network."""
    news: queue.Queue[Epoch | Dense | Exception] = queue.Queue()

    def work() -> None:
        try:
            torch.set_num_threads(placement.threads)
            workload = build_workload(spec, data=data, device=placement.device, weights=weights)
            if train:
                train_dense(workload, spec, on_epoch=news.put)
            validation = evaluate(workload.model, workload.validation, batch_size=spec.search.eval_batch_size)
            news.put(Dense(workload.weights(), workload.weights_hash, validation))
        except Exception as error:
            news.put(error)

    # The training loop calls back where a generator is asked: the queue stands between.
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    while True:
        item = news.get()
        if isinstance(item, Exception):
            raise item
        yield item
        if isinstance(item, Dense):
            break
    thread.join()


def _save(shared: Shared, trial: Trial, model: nn.Module) -> None:
    assert trial.candidate is not None and trial.metrics is not None
    artifact.save(
        shared.store,
        f"models/{trial.candidate.id}",
        model=model,
        graph=shared.graph,
        candidate=trial.candidate,
        provenance=shared.provenance | artifact.trial_provenance(trial),
    )


def _build(shared: Shared) -> Workload:
    torch.set_num_threads(shared.placement.threads)
    return build_workload(
        shared.spec,
        data=ray.get(shared.data),
        device=shared.placement.device,
        weights=ray.get(shared.weights),
    )
