"""Ray Train: groups of workers that train a network together, one network after another.

    driver: train_together -> [ groups side by side, from their start to their end ]* -> every training is done
    rank:   for each training: ask rank 0 -> make the network -> compare -> train, with checkpoints -> store

A group takes half a minute to start, so it is given all trainings that are known: the dense network, methods' phases,
finalists. Of several groups each takes the next training that no other has taken. Results are in the store, so groups
resume after the loss of a worker, of all workers, or of the driver.
"""

from __future__ import annotations

import math
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import ray
import ray.train
import ray.train.collective
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from raprune.data.ranks import Ranks
from raprune.errors import RapruneError, StoreError
from raprune.orchestration.cluster.failures import RETRIES_AFTER_LOSS, Action, Failure, decide, error_text
from raprune.orchestration.cluster.placement import TrainPlacement, nodes_but
from raprune.orchestration.coordinator import is_cut_off
from raprune.orchestration.tasks import Shared
from raprune.orchestration.workers.bulletin import Bulletin, News, Order
from raprune.orchestration.workers.trainings import Rank, Training
from raprune.results.stages import Stages
from raprune.spec.job import SearchSpec
from raprune.training.epoch import Epoch
from raprune.training.tasks import task_named

FOLDER = "train"
"""Subfolder of the run for Ray Train's own files; removed when the groups end."""

WAITS_FOR_ROOM = 3
"""Number of times, a minute each, that a group waits for its resources before its size is decided again."""

_LOOK_S = 0.5

_WORK = "work"


@dataclass(frozen=True)
class GroupWork:
    """Inputs of each worker of a group. Ray Train passes a dictionary, which holds one entry with this object."""

    shared: Shared
    trainings: Sequence[Training]
    bulletin: Any
    """Handle of the `Bulletin`."""
    group: str
    """Name of the group, under which attempts to start it are counted."""


class GroupStages:
    """Keeps the stages of the run up to date from the epochs of groups."""

    def __init__(self, stages: Stages, spec: SearchSpec, trainings: Sequence[Training]) -> None:
        self._stages = stages
        self._metric = task_named(spec.task).metric
        self._totals: Counter[str] = Counter()
        for training in trainings:
            self._totals[training.stage] += math.ceil(training.epochs(spec))
        self._done: dict[str, dict[str, int]] = {}
        """Stage -> name of a training -> its epochs so far."""
        self._begin(next(iter(self._totals)))

    def tell(self, news: News) -> None:
        """An epoch has ended."""
        if news.stage not in self._done:
            self._begin(news.stage)
        done, epoch = self._done[news.stage], news.epoch
        done[news.name] = epoch.reached
        detail = f"{news.title}: epoch {epoch.reached} of {epoch.epochs:g}, {epoch.described(self._metric)}"
        self._stages.update(done=sum(done.values()), detail=detail)

    def _begin(self, stage: str) -> None:
        self._done[stage] = {}
        self._stages.begin(stage, total=self._totals[stage], unit="epochs")


def train_together(
    shared: Shared,
    trainings: Sequence[Training],
    placement: TrainPlacement,
    *,
    again: Callable[[TrainPlacement], TrainPlacement | None],
    tell: Callable[[News], None],
) -> list[News]:
    """Carry out `trainings` by groups of workers, and return the epochs that this took.

    A training whose result is in the store is left out. `again` places groups that were lost; `tell` is called with
    each epoch. The search's workers must have ended. With several groups no training may need the result of another.

    Raises:
        RapruneError: if the dense network or a method's phase cannot be trained, the store fails, or workers are lost
            again and again without getting on. A finalist that cannot be trained is a failed trial.
    """
    actor: Any = ray.remote(Bulletin)
    bulletin = actor.options(num_cpus=0, max_restarts=-1, max_task_retries=-1).remote()
    told: list[News] = []

    def look() -> None:
        for news in ray.get(bulletin.news.remote()):
            told.append(news)
            tell(news)

    shared.store.remove_folder(FOLDER)
    try:
        while True:
            steps = ray.get(bulletin.steps.remote())
            loss = _groups(replace(shared, placement=placement), placement, trainings, bulletin, look)
            failure = ray.get(bulletin.failure.remote())
            if failure is not None:
                raise failure
            if ray.get(bulletin.ended.remote()) == len(trainings):
                return told
            left = again(placement)
            if left is None or (left == placement and ray.get(bulletin.steps.remote()) == steps):
                raise RapruneError(
                    f"The workers that train ({placement.reason}) were lost again and again: {loss}",
                    hint="It may have run out of memory, or of nodes. `raprune resume` continues at the last epoch.",
                )
            placement = left
    finally:
        ray.kill(bulletin)
        shared.store.remove_folder(FOLDER)


def _groups(
    shared: Shared,
    placement: TrainPlacement,
    trainings: Sequence[Training],
    bulletin: Any,
    look: Callable[[], None],
) -> str | None:
    """Run the groups from their start to their end, and call `look` now and then; why the last lost one was lost."""
    # In processes of their own: Ray Train takes Ctrl-C for itself, and a group ends with the process that asked for it.
    task: Any = ray.remote(_fit)
    fit = task.options(num_cpus=0, max_retries=RETRIES_AFTER_LOSS)
    works = [GroupWork(shared, tuple(trainings), bulletin, f"group {number}") for number in range(placement.groups)]
    running = {fit.remote(work, placement): work.group for work in works}
    loss: str | None = None
    try:
        while running:
            for reference in ray.wait(list(running), timeout=_LOOK_S)[0]:
                lost = _end_of(reference)
                group = running.pop(reference)
                if lost is not None:
                    loss = lost
                    ray.get(bulletin.leave.remote(group))
            look()
    except BaseException:
        for reference in running:
            ray.cancel(reference, force=True)
        raise
    return loss


def _end_of(fit: Any) -> str | None:
    """The reason if the group was lost."""
    try:
        return ray.get(fit)
    except ray.exceptions.RayError as error:
        return error_text(error)


def _fit(work: GroupWork, placement: TrainPlacement) -> str | None:
    """Have Ray Train run the group; the reason if the group was lost."""
    filesystem, path = work.shared.store.location
    # Typed after the first version of Ray Train, which does not know all of its fields.
    again: Any = FailureConfig
    scaling: Any = ScalingConfig
    trainer = TorchTrainer(
        _train_each,
        train_loop_config={_WORK: work},
        torch_config=TorchConfig(backend=placement.backend),
        scaling_config=scaling(
            num_workers=placement.workers,
            use_gpu=placement.gpus > 0,
            resources_per_worker=placement.resources,
            label_selector=nodes_but(placement.left_out) or None,
        ),
        run_config=RunConfig(
            # Ray would resume a run of the same name from its own checkpoints.
            name=f"group-{uuid.uuid4().hex[:12]}",
            storage_path=f"{path}/{FOLDER}",
            storage_filesystem=filesystem,
            # One more than a training has attempts: then it is recorded as failed, and the next ones have theirs.
            failure_config=again(max_failures=RETRIES_AFTER_LOSS + 1, controller_failure_limit=WAITS_FOR_ROOM - 1),
        ),
    )
    try:
        trainer.fit()
    except Exception as error:
        return error_text(error)
    return None


def _train_each(config: Mapping[str, GroupWork]) -> None:
    """The loop that every worker of the group runs, in step with the others."""
    work, context = config[_WORK], ray.train.get_context()
    bulletin = work.bulletin
    ranks = Ranks(context.get_world_rank(), context.get_world_size())
    order = _word_of_first(ranks, lambda: _order(bulletin, work.group))
    if order is Order.GIVE_UP and ranks.rank == 0:
        ray.get(bulletin.stop.remote(_used_up(bulletin, work.group)))
    if order is not Order.BEGIN:
        return
    try:
        rank = Rank.of(work.shared, ranks)
    except Exception as error:
        ray.get(bulletin.fault.remote(work.group, error_text(error)))
        raise
    ray.get(bulletin.came_up.remote(work.group))
    for number in range(len(work.trainings)):
        try:
            continues = _carry_out(rank, work, number)
        except StoreError as error:
            if is_cut_off(work.shared.coordinator, error):
                # Only this node: the group is lost, and its training goes on in the next one.
                ray.get(bulletin.fault.remote(work.group, error_text(error)))
            else:
                ray.get(bulletin.stop.remote(error))
            raise
        if not continues:
            return


def _carry_out(rank: Rank, work: GroupWork, number: int) -> bool:
    """Carry out the training of this number, unless it is done or another group's; true if another may follow.

    Raises:
        StoreError: if the store fails.
        Exception: if another attempt, by other workers, may succeed.
    """
    training, bulletin = work.trainings[number], work.bulletin
    name = training.name(rank)
    checkpoints = rank.held.checkpoints(name)

    def ask_it() -> Order:
        if not ray.get(bulletin.take.remote(number, work.group)):
            return Order.LEAVE
        return Order.TAKE_OVER if training.is_done(rank) else _order(bulletin, name)

    order = _word_of_first(rank.ranks, ask_it)
    failure: RapruneError | None = None
    if order is Order.STOP:
        return False
    if order is Order.LEAVE:
        return True
    if order is Order.TAKE_OVER:
        training.take_over(rank)
    elif order is Order.GIVE_UP:
        failure = _used_up(bulletin, name)
    else:
        try:
            training.run(rank, checkpoints, partial(_tell, rank, bulletin, name, training.stage))
        except StoreError:
            raise
        except RapruneError as error:
            failure = error
        except Exception as error:
            ray.get(bulletin.fault.remote(name, error_text(error)))
            raise
    if rank.is_first:
        if failure is not None:
            _fail(rank, training, failure, bulletin)
        checkpoints.remove()
        ray.get(bulletin.came_on.remote(name))
        ray.get(bulletin.end.remote(number))
    return True


def _fail(rank: Rank, training: Training, failure: RapruneError, bulletin: Any) -> None:
    try:
        training.fail(rank, failure)
    except StoreError:
        raise
    except RapruneError as error:
        # All ranks see it when they ask for the next order.
        ray.get(bulletin.stop.remote(error))


def _tell(rank: Rank, bulletin: Any, name: str, stage: str, epoch: Epoch) -> None:
    """An epoch has ended on this rank: every rank reports to Ray, which waits for all of them."""
    if rank.is_first:
        ray.get(bulletin.epoch.remote(name, stage, epoch))
    ray.train.report({"training": name, **asdict(epoch)})


def _order(bulletin: Any, name: str) -> Order:
    """The order for a training, or for the group of this name, that is not done and that no other group has."""
    if ray.get(bulletin.failure.remote()) is not None:
        return Order.STOP
    attempt = ray.get(bulletin.begin.remote(name))
    is_lost = attempt > 1 and decide(Failure.LOST, attempts=attempt - 1).action is not Action.RETRY
    return Order.GIVE_UP if is_lost else Order.BEGIN


def _used_up(bulletin: Any, name: str) -> RapruneError:
    """The error for a training whose workers were lost on every attempt."""
    text = f"{name}: {decide(Failure.LOST, attempts=RETRIES_AFTER_LOSS + 1).reason}"
    fault = ray.get(bulletin.last_fault.remote(name))
    return RapruneError(
        f"{text}, the last time with {fault}" if fault else text,
        hint="A worker may have run out of memory; use smaller batches, or fewer workers on a node.",
    )


def _word_of_first(ranks: Ranks, ask_it: Callable[[], Order]) -> Order:
    """The answer of rank 0, on all ranks."""
    return ray.train.collective.broadcast_from_rank_zero(ask_it() if ranks.rank == 0 else None)
