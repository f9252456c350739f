"""A task of the cluster that prepares the dense network: train it if asked, evaluate it, measure its speed."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator

import torch

from raprune.checks.diagnosis import accuracy_on_training
from raprune.data.dataset import Dataset
from raprune.orchestration.cluster.placement import Placement
from raprune.orchestration.tasks import Dense
from raprune.orchestration.workers.streaming import RayReader
from raprune.pruning.pace import measure_pace
from raprune.pruning.workload import WeightArrays, build_workload, train_dense
from raprune.spec.job import SearchSpec
from raprune.training.epoch import Epoch
from raprune.training.evaluate import evaluate


def prepare_dense(
    spec: SearchSpec,
    placement: Placement,
    data: Dataset,
    weights: WeightArrays,
    teacher: WeightArrays | None = None,
    *,
    train: bool,
) -> Iterator[Epoch | Dense]:
    """The epochs of the dense network's training as they end, if `train`, and at last the network."""
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
            history = train_dense(workload, spec, on_epoch=news.put) if train else ()
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
