"""A task of the cluster that prepares the dense network: train it if asked, evaluate it, measure its speed."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator

import torch

from raprune.checks.diagnosis import accuracy_on_training
from raprune.data.dataset import Dataset
from raprune.orchestration.cluster.placement import Placement
from raprune.orchestration.tasks import Dense
from raprune.orchestration.workers.streaming import RayReader
from raprune.pruning.pace import measure_pace
from raprune.pruning.workload import WeightArrays, Workload, build_workload, train_dense
from raprune.spec.job import SearchSpec
from raprune.store.folder import Store
from raprune.training.checkpoint import DENSE, StoreCheckpoints, checkpoint_file
from raprune.training.epoch import Epoch
from raprune.training.evaluate import evaluate
from raprune.training.loop import is_checkpoint_of
from raprune.training.state import epochs_in


def prepare_dense(
    spec: SearchSpec,
    placement: Placement,
    data: Dataset,
    weights: WeightArrays,
    teacher: WeightArrays | None = None,
    *,
    train: bool,
    store: Store,
) -> Iterator[Epoch | Dense]:
    """The epochs of the dense network's training as they end, if `train`, and at last the network.

    The training keeps a checkpoint in the run's `store`, as those of groups do, and resumes from it; the driver removes
    it once the weights are stored. Epochs before the checkpoint come first, so that a task that Ray tries again gives
    the items that it gave before.
    """
    news: queue.Queue[Epoch | Dense | Exception] = queue.Queue()

    def work() -> None:
        try:
            torch.set_num_threads(placement.threads)
            workload = build_workload(
                spec,
                data=data,
                device=placement.device,
                weights=weights,
                reader=RayReader(),
                card_share=placement.card_share,
                teacher=teacher,
            )
            history = _trained(workload, spec, store, news.put) if train else ()
            validation = evaluate(
                workload.model,
                workload.validation,
                task=workload.task,
                batch_size=spec.search.eval_batch_size,
                precision=spec.search.eval_precision,
            )
            training = accuracy_on_training(workload)
            pace = measure_pace(workload, spec)
            news.put(Dense(workload.weights(), workload.weights_hash, validation, training, pace, history))
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


def _trained(workload: Workload, spec: SearchSpec, store: Store, tell: Callable[[Epoch], None]) -> list[Epoch]:
    """Train the dense network in place, from its checkpoint on if it has one; the results of each epoch."""
    checkpoints = StoreCheckpoints(store, checkpoint_file(DENSE), every_s=spec.resources.checkpoint_every_s)
    stored, split, part = checkpoints.load(), workload.training, spec.dense.decided()
    if stored is not None and is_checkpoint_of(
        stored, workload.model, split, part, augment=workload.augment, seed=spec.seed
    ):
        for epoch in epochs_in(stored):
            tell(epoch)
    history = train_dense(workload, spec, checkpoints=checkpoints, on_epoch=tell)
    # What is still being written would stay behind once the driver has removed it.
    checkpoints.wait()
    return history
