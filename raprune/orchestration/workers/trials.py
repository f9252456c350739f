"""A worker of the search: it holds network and data on its device, and takes one task after another."""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn, Self

import ray
import torch
from ray import cloudpickle, tune
from torch import nn

from raprune.errors import RapruneError, StoreError
from raprune.orchestration.cluster.failures import (
    DeviceAction,
    decide_on_device,
    device_error,
    error_text,
)
from raprune.orchestration.coordinator import ask, is_cut_off
from raprune.orchestration.progress import Teller
from raprune.orchestration.seats import Seat
from raprune.orchestration.tasks import Assignment, CandidateTask, Report, Shared, TestTask, WorkerTask
from raprune.orchestration.workers.device import end_process, works
from raprune.orchestration.workers.meeting import MEETING_S
from raprune.orchestration.workers.scores import statistics_store
from raprune.orchestration.workers.streaming import RayReader
from raprune.pruning import artifact
from raprune.pruning.prune import Pruner
from raprune.pruning.record import Pruned, is_trained
from raprune.pruning.workload import Workload, build_workload
from raprune.records import Proposal, Stage, Trial, TrialState
from raprune.results.stages import OnWork, Work
from raprune.results.test_split import UNTESTED, SplitAccuracies
from raprune.sampling.point import Point
from raprune.spec.job import SamplerSpec
from raprune.store.learning_curves import write_curve
from raprune.store.networks import MODELS, copy_network, find_network
from raprune.store.scores import Statistics
from raprune.training.checkpoint import StoreCheckpoints, checkpoint_file
from raprune.training.epoch import Epoch
from raprune.training.evaluate import evaluate
from raprune.training.loop import ALONE, Checkpoints, Ranks

RECORDS_AHEAD = 2
"""Records of a worker that may be on their way while it goes to its next task."""

TELLING_S = 10.0
"""Maximum time in which a worker that ends tells the coordinator why."""


@dataclass(frozen=True)
class Equipment:
    """The dense network, the data and the pruner that a worker holds on its device."""

    shared: Shared
    workload: Workload
    pruner: Pruner

    @classmethod
    def of(cls, shared: Shared, *, writes: bool = True, on_work: OnWork | None = None) -> Self:
        """The equipment for the inputs that the run shares. With `writes` false, statistics are not stored."""
        workload = _build(shared)
        statistics = Statistics(statistics_store(shared.spec), ray.get(shared.statistics), writes=writes)
        pruner = Pruner(
            workload, shared.graph, shared.spec, statistics=statistics, latency=shared.latency, on_work=on_work
        )
        return cls(shared, workload, pruner)

    def evaluating(self, batch_size: int) -> Equipment:
        """The same equipment with other batches of evaluation."""
        return replace(self, pruner=self.pruner.evaluating(batch_size))

    def recorded(self, proposal: Proposal) -> Trial:
        """The trial of a proposal that is recorded."""
        recorded: Any = self.shared.coordinator.trial
        return ray.get(recorded.remote(proposal.trial_id))

    def start(self, parent: Proposal, recorded: Trial) -> Pruned:
        """The network that the trial of `parent` ended with: loaded from the store, else made again."""
        accuracy = None if recorded.metrics is None else recorded.metrics.accuracy
        if not is_trained(parent):
            return replace(self.pruner.made_again(parent), accuracy=accuracy)
        model = self.load(f"{MODELS}/{parent.trial_id}")
        return Pruned(model, recorded.channels, recorded.epochs, accuracy=accuracy)

    def finetune(
        self,
        proposal: Proposal,
        parent: Proposal,
        recorded: Trial,
        start: Pruned,
        *,
        ranks: Ranks = ALONE,
        checkpoints: Checkpoints | None = None,
        on_epoch: Callable[[Epoch], None] | None = None,
    ) -> Trial:
        """Fine-tune `start` and return the trial of `proposal`; rank 0 saves the network. `recorded`: its parent."""
        spec = self.shared.spec
        train, rungs = spec.finalists.train.decided(), spec.search.rungs
        if proposal.stage is Stage.SEARCH:
            train = train.model_copy(update={"epochs": rungs[proposal.rung] - rungs[proposal.rung - 1]})
        result = self.pruner.finetune(
            proposal, parent, train, start=start, ranks=ranks, checkpoints=checkpoints, on_epoch=on_epoch
        )
        trial = of_rung(result.trial, spec.search)
        if parent.rung:
            # The accuracy of `start` was measured after its rung, not after the repair.
            trial = replace(
                trial,
                accuracy_after_cut=recorded.accuracy_after_cut,
                accuracy_after_repair=recorded.accuracy_after_repair,
            )
        if ranks.rank == 0:
            self.save(f"{MODELS}/{network_name(trial)}", result.model, trial)
            write_curve(self.shared.store, trial.trial_id, [epoch.row() for epoch in result.history])
        return trial

    def checkpoints(self, name: str) -> StoreCheckpoints:
        """Checkpoints of the training of this name; the worker removes them once the result is stored."""
        every_s = self.shared.spec.resources.checkpoint_every_s
        return StoreCheckpoints(self.shared.store, checkpoint_file(name), every_s=every_s)

    def load(self, folder: str) -> nn.Module:
        """The network that a folder of the run holds."""
        return artifact.load_from(self.workload.model, self.shared.store, folder)

    def save(self, folder: str, model: nn.Module, trial: Trial) -> None:
        """Write the network of a trial to a folder of the run."""
        artifact.save(
            self.shared.store,
            folder,
            model=model,
            graph=self.shared.graph,
            candidate=trial.channels,
            provenance=self.shared.provenance | artifact.trial_provenance(trial),
        )

    def test(self, task: TestTask) -> SplitAccuracies:
        """Accuracies on the test split; networks with `keep` are stored too."""
        workload, batch_size = self.workload, self.shared.spec.search.eval_batch_size
        splits = [workload.hold(split) for split in ray.get(task.split)]
        tested = UNTESTED
        for split in splits:
            if task.dense:
                found = evaluate(workload.model, split, task=workload.task, batch_size=batch_size)
                tested |= SplitAccuracies(dense=found.accuracy, dense_further=found.further)
        for look in task.looks:
            trial = self.recorded(look.proposal)
            model = self._last(trial, keep=look.keep)
            for split in splits if look.test else []:
                found = evaluate(model, split, task=workload.task, batch_size=batch_size)
                further = {trial.network: found.further} if found.further else {}
                tested |= SplitAccuracies(candidates={trial.network: found.accuracy}, further=further)
        return tested

    def _last(self, trial: Trial, *, keep: bool) -> nn.Module:
        """The network of a recorded trial: loaded, else made again; with `keep` it is stored under its name."""
        store, wanted = self.shared.store, f"{MODELS}/{trial.network}"
        found = find_network(store, trial)
        if found is not None:
            if keep and found != wanted:
                copy_network(store, found, store, wanted)
            return self.load(found)
        again = self.pruner.repaired_again(trial)
        if keep:
            self.save(wanted, again, trial)
        return again


def evaluate_on_test(shared: list[Shared], task: TestTask) -> SplitAccuracies:
    """Carry out a test task in a process of its own; `shared` is in a list so that Ray leaves its references alone."""
    return Equipment.of(shared[0]).test(task)


class CandidateTrial(tune.Trainable):
    """A worker of the search: one process that takes an `Assignment` after another by `reset_config`."""

    def setup(self, config: Mapping[str, Assignment], shared: Shared | None = None) -> None:
        assert shared is not None, "given by tune.with_parameters"
        self._config = config
        self._name = f"{socket.gethostname()}:{os.getpid()}"
        wait: Any = shared.coordinator.wait
        shared = replace(shared, store=shared.store.told(lambda why: wait.remote(self._name, why)))
        self._shared = shared
        self._sent: deque[Any] = deque()
        self._setup_error: str | None = None
        context = ray.get_runtime_context()
        self._seat = Seat(
            worker=self._name,
            node=context.get_node_id(),
            host=socket.gethostname(),
            actor=cloudpickle.dumps(context.current_actor),
        )
        self._sit(Assignment.of(config).task, is_up=False)
        try:
            self._held = Equipment.of(shared, on_work=self._tell)
        except Exception as error:
            if self._is_cut_off(error) or self._action(error, is_smaller=True) is DeviceAction.END:
                self._end(error)
            # An error raised here would be raised again for every candidate.
            self._setup_error = error_text(error)

    def reset_config(self, new_config: Mapping[str, Assignment]) -> bool:
        self._config = new_config
        return True

    def step(self) -> dict[str, Report | bool]:
        return self._work(Assignment.of(self._config)).to_result()

    def _work(self, assignment: Assignment) -> Report:
        """Carry out the tasks of an assignment."""
        if self._setup_error is not None:
            return Report(setup_error=self._setup_error)
        points: list[Point] = []
        for task in assignment.tasks:
            self._teller = Teller(self._shared.coordinator, task.trial_id, title=task.trial_id)
            if assignment.together > 1 and task is assignment.task:
                self._meet(assignment.together)
            self._sit(task, is_up=True)
            try:
                if isinstance(task, TestTask):
                    self._wait_for_records(left=0)
                    return Report(test=self._held.test(task))
                points.append(self._carry_out(task))
            except RapruneError as error:
                if self._is_cut_off(error):
                    self._end(error)
                # An error of the run, not of the candidate.
                return Report(failure=error)
        return Report(points=tuple(points))

    def _carry_out(self, task: CandidateTask) -> Point:
        """Try a candidate and record its trials; the result of the last one."""
        trials = self._try(task)
        self._record(task, trials)
        if task.parent is not None:
            self._held.checkpoints(task.proposal.trial_id).remove()
        return Point.of(trials[-1])

    def _record(self, task: CandidateTask, trials: Sequence[Trial]) -> None:
        """Send the trials of a task, and wait until they are durable if other trials may continue them.

        Any other record is on its way while the worker takes its next tasks; its error is raised by a later record.

        Raises:
            RapruneError: if these trials, or those of a task before, could not be recorded.
        """
        # All trials at once: a task that is cut off leaves no half of its path behind.
        self._sent.append(self._shared.coordinator.record.remote(list(trials), self._shared.session))
        may_be_continued = len(self._shared.spec.search.rungs) > 1 or is_trained(task.proposal)
        self._wait_for_records(left=0 if task.parent is not None or may_be_continued else RECORDS_AHEAD)

    def _wait_for_records(self, *, left: int) -> None:
        """Wait until all but the last `left` records are durable."""
        while len(self._sent) > left:
            ask(self._sent.popleft())

    def _tell(self, work: Work) -> None:
        self._teller(work)

    def _sit(self, task: WorkerTask, *, is_up: bool) -> None:
        """Tell the coordinator that this worker has the task, without waiting for an answer."""
        sit: Any = self._shared.coordinator.sit
        sit.remote(self._seat, task.trial_id, is_up=is_up)

    def _action(self, error: Exception, *, is_smaller: bool) -> DeviceAction:
        """The answer to an error on the device of this worker; `is_smaller` as for `decide_on_device`."""
        # Its frames hold the tensors that did not fit.
        error.__traceback__ = None
        gc.collect()
        is_well = works(torch.device(self._shared.placement.device))
        return decide_on_device(device_error(error), works=is_well, is_smaller=is_smaller)

    def _is_cut_off(self, error: Exception) -> bool:
        """True if the node is at fault: the trial is then tried elsewhere.

        A node that loses many is given no further workers.
        """
        return is_cut_off(self._shared.coordinator, error)

    def _end(self, error: Exception) -> NoReturn:
        """End this process, so that its task is tried by another one; tell the coordinator why."""
        fault: Any = self._shared.coordinator.fault
        # Records on their way would be tried again; they are good, as the device failed after them.
        told = [fault.remote(self._name, error_text(error)), *self._sent]
        ray.wait(told, num_returns=len(told), timeout=TELLING_S)
        end_process()

    def _meet(self, workers: int) -> None:
        """Wait for so many workers, or for the time in which a worker should have come up."""
        meeting: Any = self._shared.meeting
        assert meeting is not None, "given by the driver of a search"
        with contextlib.suppress(ray.exceptions.RayError):
            # Without the meeting workers begin one after another, which is slower and nothing else.
            ray.get(meeting.wait.remote(self._name, workers), timeout=2 * MEETING_S)

    def _try(self, task: CandidateTask) -> list[Trial]:
        """The trials of the task: first those on its path, then its own."""
        started_at, began = time.time(), time.perf_counter()
        try:
            trials = self._try_on_device(task)
        except StoreError:
            # The candidate is not the cause.
            raise
        except Exception as error:
            failed = Trial(
                trial_id=task.proposal.trial_id,
                proposal=task.proposal,
                state=TrialState.FAILED,
                error=error_text(error),
            )
            seconds = time.perf_counter() - began
            trials = [replace(failed, seconds=seconds, started_at=started_at)]
        gpus = self._shared.placement.gpus
        return [replace(trial, gpu_seconds=trial.seconds * gpus, worker=self._name) for trial in trials]

    def _try_on_device(self, task: CandidateTask) -> list[Trial]:
        """`_run`, once more with half the batches of evaluation if the memory of the GPU was too small.

        If the error is the device's, this process ends.

        Raises:
            Exception: the error of the candidate.
        """
        held = self._held
        for batch_size in (None, max(1, self._shared.spec.search.batch_size // 2)):
            try:
                return self._run(task, held if batch_size is None else held.evaluating(batch_size))
            except StoreError:
                raise
            except Exception as error:
                action = self._action(error, is_smaller=batch_size is not None)
                if action is DeviceAction.END:
                    self._end(error)
                if action is DeviceAction.RECORD:
                    raise
        raise AssertionError("the second attempt returns or raises")

    def _run(self, task: CandidateTask, held: Equipment) -> list[Trial]:
        shared = self._shared
        if task.parent is not None:
            began = time.perf_counter()
            recorded = held.recorded(task.parent)
            start = held.start(task.parent, recorded)
            making_s = time.perf_counter() - began
            kept = held.checkpoints(task.proposal.trial_id)
            trial = held.finetune(task.proposal, task.parent, recorded, start, checkpoints=kept)
            # Written before the result is recorded, after which whoever records it removes the checkpoint.
            kept.wait()
            return [replace(trial, seconds=trial.seconds + making_s)]
        trials: list[Trial] = []
        for result in held.pruner.results(task.proposal):
            if is_trained(task.proposal):
                held.save(f"{MODELS}/{network_name(result.trial)}", result.model, result.trial)
            trials.append(of_rung(result.trial, shared.spec.search))
        return trials


def network_name(trial: Trial) -> str:
    """Name in `models/` of a network as it was trained: a finalist has its own, any other network that of its trial.

    Several trials of the search may give one candidate, each with weights that the next rung continues.
    """
    return trial.network if trial.proposal.stage is Stage.FINETUNE else trial.trial_id


def of_rung(trial: Trial, search: SamplerSpec) -> Trial:
    """The trial with its final state: a complete trial below the last rung is STOPPED."""
    proposal = trial.proposal
    is_below = proposal.stage is Stage.SEARCH and proposal.rung < len(search.rungs) - 1
    return replace(trial, state=TrialState.STOPPED) if is_below and trial.state is TrialState.COMPLETE else trial


def _build(shared: Shared) -> Workload:
    torch.set_num_threads(shared.placement.threads)
    return build_workload(
        shared.spec,
        data=ray.get(shared.data),
        device=shared.placement.device,
        weights=ray.get(shared.weights),
        reader=RayReader(shared.placement.side_by_side),
        card_share=shared.placement.card_share,
        teacher=None if shared.teacher is None else ray.get(shared.teacher),
    )
