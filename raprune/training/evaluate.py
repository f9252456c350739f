"""Evaluation of a network on a split: the task's metric and loss."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from raprune.channels.evaluating import evaluating
from raprune.data.host import ImageSplit
from raprune.models.memory_format import laid_out
from raprune.models.precision import Precision, forward_in
from raprune.training.tasks.classification import CLASSIFICATION
from raprune.training.tasks.task import Task, in_float32

LARGEST_ON_CPU = 128
"""Maximum number of images per batch. Measured for ResNet-20 on CIFAR-10 on one core: a batch of 512 takes 1.6 times as
long per image, a batch of 1024 twice as long."""


BATCHES_ON_GPU = (512, 2500)
"""Smallest and largest number of images per batch: in batches of few small images a GPU waits for its launches."""
PIXELS_ON_GPU = 2500 * 32**2
"""Pixels per batch, between these two numbers of images."""


@dataclass(frozen=True)
class Evaluation:
    """The task's metric and mean loss: of classification, top-1 accuracy in [0, 1] and cross-entropy."""

    accuracy: float
    """Value of the task's metric, at most 1."""
    loss: float
    further: Mapping[str, float] = field(default_factory=dict)
    """Further figures of the task by name, in [0, 1]: `Task.further`."""


def fitting_batch(sizes: Sequence[int]) -> int:
    """Return the number of images of these sizes, `(H, W)`, in a batch of an evaluation on a GPU."""
    least, most = BATCHES_ON_GPU
    return min(most, max(least, PIXELS_ON_GPU // math.prod(sizes)))


def evaluate(
    model: nn.Module,
    split: ImageSplit,
    *,
    task: Task = CLASSIFICATION,
    batch_size: int | None = None,
    precision: Precision = "float32",
) -> Evaluation:
    """Measure the metric and the loss of `task` for `model` on all images of `split`, in evaluation mode.

    The model's mode is restored. The default precision is exact on every device; a search evaluates candidates in
    `search.eval_precision`. On a CPU batches have at most `LARGEST_ON_CPU` images; without `batch_size` they have as
    many images elsewhere as `fitting_batch` says.
    """
    batch_size = batch_size or fitting_batch(split.images.shape[2:])
    batch_size = min(batch_size, task.most_images or batch_size)
    if split.device.type == "cpu":
        batch_size = min(batch_size, LARGEST_ON_CPU)
    sums: Tensor | None = None
    loss = torch.zeros((), dtype=torch.float64, device=split.device)
    further: dict[str, Tensor] = {}
    with (
        evaluating(model),
        laid_out(model, split.layout),
        forward_in(precision, split.device),
        torch.inference_mode(),
    ):
        for x, y in split.batches(batch_size):
            outputs = in_float32(task.run(model, x, y))
            sums = task.added(sums, task.sums(outputs, y))
            loss += task.summed_loss(outputs, y).double()
            for name, figure in task.further(outputs, y).items():
                further[name] = further.get(name, 0) + figure.double()
    assert sums is not None, "a split has at least one image"
    # One transfer from the device.
    found = torch.cat([sums.double(), torch.stack([loss, *further.values()])]).cpu()
    mean_loss, *figures = (float(total) / len(split) for total in found[len(sums) :])
    return Evaluation(
        accuracy=task.value(found[: len(sums)], len(split)),
        loss=mean_loss,
        further=dict(zip(further, figures, strict=True)),
    )
