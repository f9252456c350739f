"""The trainings of groups of workers: the dense network, a method's training phase, a finalist.

Every rank makes the network by itself, from what the store and the job say, before it is wrapped; all go through these
functions in step. Rank 0 alone writes.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

import torch
from safetensors.numpy import load, save
from torch import distributed

from raprune.data.ranks import Ranks
from raprune.errors import ModelError, RapruneError, StoreError
from raprune.methods import Method
from raprune.orchestration.cluster.failures import error_text
from raprune.orchestration.coordinator import ask
from raprune.orchestration.tasks import CandidateTask, Shared
from raprune.orchestration.workers.trials import Equipment
from raprune.pruning.preparation import DENSE
from raprune.pruning.record import Pruned
from raprune.pruning.workload import train_dense
from raprune.records import Trial, TrialState
from raprune.results.stages import FINETUNE, PHASES, TRAIN_DENSE
from raprune.spec.job import SearchSpec
from raprune.store import learning_curves
from raprune.store.learning_curves import write_curve
from raprune.training import checkpoint
from raprune.training.distributed import agree_on_weights
from raprune.training.epoch import Epoch
from raprune.training.loop import Checkpoints

OnEpoch = Callable[[Epoch], None]


class CandidateError(RapruneError):
    """A candidate whose network no worker can make or train."""


@dataclass(frozen=True)
class Rank:
    """One worker of a group."""

    ranks: Ranks
    held: Equipment

    @classmethod
    def of(cls, shared: Shared, ranks: Ranks) -> Rank:
        return cls(ranks, Equipment.of(shared, writes=ranks.rank == 0))

    @property
    def is_first(self) -> bool:
        return self.ranks.rank == 0

    @property
    def shared(self) -> Shared:
        return self.held.shared


class Training(Protocol):
    """Something that a group trains."""

    stage: ClassVar[str]
    """Stage of the run that it belongs to."""

    def epochs(self, spec: SearchSpec) -> float:
        """Number of its epochs."""

    def batch_size(self, spec: SearchSpec) -> int:
        """Images in each of its batches."""

    def name(self, rank: Rank) -> str:
        """Name that is unique in the run, and the same when the run is resumed."""

    def is_done(self, rank: Rank) -> bool:
        """True if the store holds its result. Called on rank 0."""

    def run(self, rank: Rank, checkpoints: Checkpoints, on_epoch: OnEpoch) -> None:
        """Train it; rank 0 stores the result.

        Raises:
            RapruneError: if it cannot be trained: on all ranks alike, except for what the store raises.
        """

    def take_over(self, rank: Rank) -> None:
        """Leave this rank as `run` would have left it, from a result that is stored already."""

    def fail(self, rank: Rank, cause: RapruneError) -> None:
        """Record that it cannot be trained. Called on rank 0.

        Raises:
            RapruneError: `cause`, where the run needs the result.
        """


@dataclass(frozen=True)
class DenseTraining:
    """The dense network, trained as the job says."""

    stage: ClassVar[str] = TRAIN_DENSE

    def epochs(self, spec: SearchSpec) -> float:
        return spec.dense.epochs

    def batch_size(self, spec: SearchSpec) -> int:
        return spec.dense.batch_size

    def name(self, rank: Rank) -> str:
        return checkpoint.DENSE

    def is_done(self, rank: Rank) -> bool:
        return rank.shared.store.exists(DENSE)

    def run(self, rank: Rank, checkpoints: Checkpoints, on_epoch: OnEpoch) -> None:
        history = train_dense(
            rank.held.workload,
            rank.shared.spec,
            ranks=rank.ranks,
            checkpoints=checkpoints,
            on_epoch=on_epoch,
        )
        if rank.is_first:
            # The weights last: with them the training is done.
            write_curve(rank.shared.store, learning_curves.DENSE, [epoch.row() for epoch in history])
            rank.shared.store.write_bytes(DENSE, save(rank.held.workload.weights()))

    def take_over(self, rank: Rank) -> None:
        weights = load(rank.shared.store.read_bytes(DENSE))
        rank.held.workload.model.load_state_dict({name: torch.as_tensor(array) for name, array in weights.items()})

    def fail(self, rank: Rank, cause: RapruneError) -> None:
        raise cause


@dataclass(frozen=True)
class PhaseTraining:
    """The dense network, trained as a method asks before it scores; kept among the statistics."""

    stage: ClassVar[str] = PHASES
    method: Method

    def epochs(self, spec: SearchSpec) -> float:
        regularizer = self.method.regularize()
        return 0.0 if regularizer is None else regularizer.epochs

    def batch_size(self, spec: SearchSpec) -> int:
        # As `phase_spec`.
        return spec.finalists.train.batch_size

    def name(self, rank: Rank) -> str:
        return rank.held.pruner.phases.key(self.method)

    def is_done(self, rank: Rank) -> bool:
        return rank.held.pruner.statistics.get(self.name(rank)) is not None

    def run(self, rank: Rank, checkpoints: Checkpoints, on_epoch: OnEpoch) -> None:
        arrays = rank.held.pruner.phases.train(
            self.method, ranks=rank.ranks, checkpoints=checkpoints, on_epoch=on_epoch
        )
        if rank.is_first:
            rank.held.pruner.statistics.put(self.name(rank), arrays)

    def take_over(self, rank: Rank) -> None:
        """Nothing: it is read where it is needed."""

    def fail(self, rank: Rank, cause: RapruneError) -> None:
        raise cause


@dataclass(frozen=True)
class FinalistTraining:
    """A finalist: the network of its parent, fine-tuned with the dense network as teacher."""

    stage: ClassVar[str] = FINETUNE
    task: CandidateTask

    def epochs(self, spec: SearchSpec) -> float:
        return spec.finalists.train.decided().epochs

    def batch_size(self, spec: SearchSpec) -> int:
        return spec.finalists.train.batch_size

    def name(self, rank: Rank) -> str:
        return self.task.proposal.trial_id

    def is_done(self, rank: Rank) -> bool:
        recorded: Any = rank.shared.coordinator.has
        return ask(recorded.remote(self.name(rank)))

    def run(self, rank: Rank, checkpoints: Checkpoints, on_epoch: OnEpoch) -> None:
        proposal, parent = self.task.proposal, self.task.parent
        assert parent is not None, "a finalist continues a trial of the search"
        began = time.perf_counter()
        recorded = rank.held.recorded(parent)
        start = _alike(rank, lambda: rank.held.start(parent, recorded))
        making_s = time.perf_counter() - began
        trial = rank.held.finetune(
            proposal, parent, recorded, start, ranks=rank.ranks, checkpoints=checkpoints, on_epoch=on_epoch
        )
        if rank.is_first:
            _record(rank, replace(trial, seconds=trial.seconds + making_s))

    def take_over(self, rank: Rank) -> None:
        """Nothing: no other training needs it."""

    def fail(self, rank: Rank, cause: RapruneError) -> None:
        proposal = self.task.proposal
        failed = TrialState.FAILED
        trial = Trial(trial_id=proposal.trial_id, proposal=proposal, state=failed, error=cause.message)
        _record(rank, replace(trial, started_at=time.time()))


def _record(rank: Rank, trial: Trial) -> None:
    gpus = rank.shared.placement.gpus * rank.ranks.size
    worker = f"{socket.gethostname()}:{os.getpid()}"
    record: Any = rank.shared.coordinator.record
    ask(record.remote([replace(trial, gpu_seconds=trial.seconds * gpus, worker=worker)], rank.shared.session))


def _alike(rank: Rank, make: Callable[[], Pruned]) -> Pruned:
    """The network that each rank makes by itself, with the weights of rank 0.

    The repair need not give the same bits on every device; which channels stay must be the same everywhere.

    Raises:
        CandidateError: on all ranks, if any could not make it.
        StoreError: on the rank that could not read it.
        ModelError: on all ranks, if they kept different channels.
    """
    made: Pruned | None = None
    fault = ""
    try:
        made = make()
    except StoreError:
        # No fault of the candidate.
        raise
    except Exception as error:
        fault = error_text(error)
    said: list[tuple[str, str]] = [("", "")] * rank.ranks.size
    mine = (fault, "" if made is None else made.candidate.id)
    if rank.ranks.size > 1:
        distributed.all_gather_object(said, mine)
    else:
        said = [mine]
    faults = [fault for fault, _ in said if fault]
    if faults or made is None:
        raise CandidateError(faults[0])
    for number, (_, candidate) in enumerate(said):
        if candidate != said[0][1]:
            raise ModelError(
                f"The workers of a group made different candidates of one proposal: rank 0 {said[0][1]}, "
                f"rank {number} {candidate}.",
                hint="Versions and devices of the nodes must be equal.",
            )
    agree_on_weights(made.model, rank.ranks)
    return made
