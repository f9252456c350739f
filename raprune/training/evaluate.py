"""Evaluation of a network on a split: accuracy and loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from raprune.channels.evaluating import evaluating
from raprune.data.host import ImageSplit
from raprune.models.memory_format import laid_out
from raprune.models.precision import Precision, forward_in

LARGEST_ON_CPU = 128
"""Maximum number of images per batch. Measured for ResNet-20 on CIFAR-10 on one core: a batch of 512 takes 1.6 times as
long per image, a batch of 1024 twice as long."""


BATCHES_ON_GPU = (512, 2500)
"""Smallest and largest number of images per batch: in batches of few small images a GPU waits for its launches."""
PIXELS_ON_GPU = 2500 * 32**2
"""Pixels per batch, between these two numbers of images."""


@dataclass(frozen=True)
class Evaluation:
    """Top-1 accuracy in [0, 1], and mean cross-entropy."""

    accuracy: float
    loss: float


def fitting_batch(sizes: Sequence[int]) -> int:
    """Return the number of images of these sizes, `(H, W)`, in a batch of an evaluation on a GPU."""
    least, most = BATCHES_ON_GPU
    return min(most, max(least, PIXELS_ON_GPU // math.prod(sizes)))


def evaluate(
    model: nn.Module, split: ImageSplit, *, batch_size: int | None = None, precision: Precision = "float32"
) -> Evaluation:
    """Measure accuracy and loss of `model` on all images of `split`, in evaluation mode; the model's mode is restored.

    The default precision is exact on every device; a search evaluates candidates in `search.eval_precision`. NaN
    logits count as wrong. On a CPU batches have at most `LARGEST_ON_CPU` images; without `batch_size` they have as many
    images elsewhere as `fitting_batch` says.
    """
    batch_size = batch_size or fitting_batch(split.images.shape[2:])
    if split.device.type == "cpu":
        batch_size = min(batch_size, LARGEST_ON_CPU)
    correct = torch.zeros((), dtype=torch.int64, device=split.device)
    loss = torch.zeros((), dtype=torch.float64, device=split.device)
    with (
        evaluating(model),
        laid_out(model, split.layout),
        forward_in(precision, split.device),
        torch.inference_mode(),
    ):
        for x, y in split.batches(batch_size):
            logits = model(x).float()
            # A row with a NaN has no largest logit: argmax would return the NaN's place, which may be the label.
            correct += ((logits.argmax(1) == y) & ~logits.isnan().any(1)).sum()
            loss += functional.cross_entropy(logits, y, reduction="sum").double()
    sums = torch.stack([correct.double(), loss]).tolist()
    return Evaluation(accuracy=sums[0] / len(split), loss=sums[1] / len(split))
