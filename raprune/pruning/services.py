"""Services of the job for a method that trains while it cuts: data, training settings, evaluation, cutting."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import count

import torch
from torch import Tensor, nn

from raprune.channels.cut import cut
from raprune.methods import Batches, Kept, Network
from raprune.pruning.workload import Workload
from raprune.records import Candidate
from raprune.spec.job import SearchSpec
from raprune.training.epoch import Epoch
from raprune.training.evaluate import evaluate
from raprune.training.loop import train


class WorkloadServices:
    """The `TrainingServices` of a workload. Equal seeds give equal runs on the CPU."""

    def __init__(
        self,
        workload: Workload,
        calibration: Batches,
        *,
        seed: int,
        on_epoch: Callable[[Epoch], None] | None = None,
    ) -> None:
        self.seed = seed
        self._on_epoch = on_epoch
        self._workload = workload
        self._spec: SearchSpec = workload.spec
        self._calibration = calibration
        # Each phase shuffles with another seed.
        self._seeds = count(seed)

    def calibration(self) -> Iterable[tuple[Tensor, Tensor]]:
        return self._calibration()

    def training(self) -> Iterable[tuple[Tensor, Tensor]]:
        return self._workload.training.batches(self._spec.search.batch_size)

    def train(
        self,
        model: nn.Module,
        epochs: float,
        *,
        lr: float | None = None,
        regularize: Callable[[nn.Module], None] | None = None,
        distil: bool = False,
    ) -> None:
        spec = self._spec.finalists.train.decided(epochs=epochs, lr=lr)
        train(
            model,
            self._workload.training,
            spec if lr is None else spec.by_sgd(),
            augment=self._workload.augment,
            seed=next(self._seeds),
            task=self._workload.task,
            teacher=self._workload.model if distil else None,
            regularize=regularize,
            on_epoch=self._on_epoch,
        )

    def allowed(self, num_channels: int) -> list[int]:
        multiple = self._spec.search.step
        least = max(1, -(-self._spec.search.min_channels // multiple)) * multiple
        return [*range(least, num_channels, multiple), num_channels]

    def metric(self, model: nn.Module, images: int | None = None) -> float:
        split = self._workload.validation
        if images is not None:
            split = split.take(images, torch.Generator().manual_seed(self._spec.seed))
        search = self._spec.search
        found = evaluate(
            model, split, task=self._workload.task, batch_size=search.batch_size, precision=search.eval_precision
        )
        return found.accuracy

    def cut(self, network: Network, kept: Kept) -> Network:
        # Only the channels count: which method chose them does not matter to surgery.
        model = cut(network.model, network.graph, Candidate("path", kept))
        left = {
            name: tuple(channels[index] for index in kept[name]) if name in kept else tuple(channels)
            for name, channels in network.kept.items()
        }
        return Network(model, network.graph.after(kept), left)
