"""Memory that a worker of a search will hold on its GPU, estimated before the search from a few images on the CPU."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from raprune.channels.cut import rebuild
from raprune.channels.graph import ChannelGraph
from raprune.cost.memory import evaluation_bytes, peak_bytes
from raprune.data.residence import RESIDENT
from raprune.methods import Method, method_named
from raprune.methods.least_squares import refit_bytes
from raprune.pruning.scoring import scoring_batch
from raprune.pruning.workload import Workload
from raprune.spec.job import BASELINES, SearchSpec
from raprune.training.distillation import channel_map
from raprune.training.loop import train
from raprune.training.tasks.task import Calibration

CONTEXT = 500 * 10**6
"""Bytes of a CUDA context with the kernels of PyTorch and its libraries: 0.4 to 0.6 GB, by card and version."""

GAPS = 0.1
"""Fraction of the activations that workspaces of convolutions and gaps of the allocator take in addition."""


@dataclass(frozen=True, kw_only=True)
class WorkerMemory:
    """Bytes that one worker holds on its GPU, by their use."""

    calibration: int
    """Calibration images."""
    validation: int
    """Validation images; 0 where several workers share a card, whose images stay on the host."""
    weights: int
    """The dense network and a candidate that is as large."""
    evaluation: int
    """Activations of an evaluation."""
    scores: int
    """The most that a method takes to score the channels."""
    repair: int
    """Peak of the least-squares repair; 0 without a method that has one."""
    training: int
    """Peak of a step of fine-tuning the dense network: activations, gradients, momentum, and the trained copy."""
    images: int
    """Training images; 0 where they are streamed, where nothing is trained, or where several workers share a card."""

    @property
    def always(self) -> int:
        """Bytes that are held permanently."""
        return CONTEXT + self.calibration + self.validation + self.weights

    @property
    def searching(self) -> int:
        """Peak while candidates are scored, cut, repaired and evaluated."""
        return self.always + max(self.evaluation, self.scores, self.repair)

    @property
    def finetuning(self) -> int:
        """Peak while a finalist is trained whose images stay on the host."""
        return self.always + self.training

    @property
    def needed(self) -> int:
        """The larger of the two peaks: the least memory of a card for one worker."""
        return max(self.searching, self.finetuning)

    @property
    def resident_from(self) -> int:
        """The least memory of a card on which the training images are stored as well."""
        return math.ceil(max(self.always + self.images / RESIDENT, self.finetuning + self.images))


def worker_memory(workload: Workload, graph: ChannelGraph, spec: SearchSpec) -> WorkerMemory:
    """Estimate the memory of a worker of `spec`, by work of the dense network of `workload` on a few images."""
    data, model, image = workload.data, workload.model, workload.example_input()
    a_image = data.train.images[0].nbytes
    calibration = min(spec.search.calibration, len(data.train))
    weights = sum(tensor.nbytes for tensor in model.state_dict().values())
    methods = [method_named(name)(**spec.settings.get(name, {})) for name in {*BASELINES, *spec.methods}]
    shares = 0 < (spec.resources.gpus_per_trial or 0) < 1
    with torch.random.fork_rng(devices=[]):
        batch = min(spec.search.batch_size, len(data.validation))
        evaluation = evaluation_bytes(model, image, batch)
        scores = max(_scores_bytes(method, workload, graph, spec, image) for method in methods)
        trained = spec.finalists.count > 0 or len(spec.search.rungs) > 1
        training = _training_bytes(workload, graph, spec, image) if trained else 0
        repairs = any(type(method).repair is not Method.repair for method in methods)
        repair = refit_bytes(model, image, calibration, each=evaluation / batch) if repairs else 0
    return WorkerMemory(
        calibration=calibration * a_image,
        validation=0 if shares else len(data.validation) * a_image,
        weights=2 * weights,
        evaluation=_with_gaps(evaluation),
        scores=_with_gaps(scores),
        repair=repair,
        training=_with_gaps(training),
        images=0 if shares or spec.data.stream or not trained else len(data.train) * a_image,
    )


def _scores_bytes(method: Method, workload: Workload, graph: ChannelGraph, spec: SearchSpec, image: Tensor) -> int:
    """Count the peak of scoring one group: the passes through the network are those of all groups."""
    if method.data_free or method.has_path():
        return 0
    one = graph.only([graph.groups[0].name])

    def score(x: Tensor) -> None:
        # Some images may be fewer than a batch.
        known = workload.data.train.labels
        targets = torch.from_numpy(known[np.arange(len(x)) % len(known)])
        batches = Calibration(workload.task, partial(_once, (x, targets)))
        method.score(workload.model, one, batches, seed=spec.seed)

    return peak_bytes(score, image, min(scoring_batch(spec, workload.task), spec.search.calibration))


def _training_bytes(workload: Workload, graph: ChannelGraph, spec: SearchSpec, image: Tensor) -> int:
    """Count the peak of a step of the fine-tuning, with the copy of the network that is trained."""
    asked, model = spec.finalists.train.decided(epochs=1.0), workload.model
    at_once = -(-min(asked.batch_size, len(workload.data.train)) // asked.accumulate)
    precision = "float32" if asked.precision == "float32" else "bfloat16"
    teacher = workload.teacher if asked.distillation > 0 or asked.features != 0 else None
    channels = channel_map(model, graph, {}, image) if asked.features != 0 else None

    def step(x: Tensor) -> None:
        changes = {"batch_size": len(x), "accumulate": 1, "precision": precision}
        split = workload.sample(len(x), torch.Generator())
        train(
            rebuild(model, lambda name, tensor: tensor.clone()),
            split,
            asked.model_copy(update=changes),
            augment=workload.augment,
            seed=0,
            task=workload.task,
            teacher=teacher,
            channels=channels,
        )

    # The dense network's own weights are counted already.
    held = [] if teacher is None or teacher is model else list(teacher.state_dict().values())
    return peak_bytes(step, image, at_once) + sum(tensor.nbytes for tensor in held)


def _once(batch: tuple[Tensor, Tensor]) -> Sequence[tuple[Tensor, Tensor]]:
    return [batch]


def _with_gaps(size: int) -> int:
    return round(size * (1 + GAPS))
