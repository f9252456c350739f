"""Tasks with a row of numbers for each image: several labels at once, and regression."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from raprune.data.targets import COLUMNS
from raprune.spec.job import TrainSpec
from raprune.training.tasks.task import LOGITS, Task

BINS = 2048
"""Number of bins of the logits of a class, from which its average precision is computed."""


@dataclass(frozen=True)
class _Columns(Task):
    """Outputs and targets have shape `(B, K)`."""

    targets: ClassVar[str] = COLUMNS
    augments: ClassVar[bool] = True
    distils: ClassVar[bool] = True

    def expected(self, num_outputs: int) -> str:
        return f"the data's {num_outputs} numbers need a tensor of shape {(1, num_outputs)}"

    def fits(self, outputs: Any, images: Tensor, num_outputs: int) -> bool:
        return isinstance(outputs, Tensor) and tuple(outputs.shape) == (len(images), num_outputs)


@dataclass(frozen=True)
class MultiLabel(_Columns):
    """Outputs are logits, targets are 1 for each class of an image and 0 for all others; the loss is binary
    cross-entropy, a mean over images and classes.

    The metric is the mean over the classes of the average precision, sum_n (R_n - R_{n-1}) P_n over thresholds. Logits
    are counted in `BINS` bins, which add up over batches and processes; images in one bin share a threshold.
    """

    metric: ClassVar[str] = "mean average precision"
    output: ClassVar[str] = LOGITS
    mixes: ClassVar[bool] = True

    label_smoothing: float = 0.0

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        smooth = targets * (1 - self.label_smoothing) + 0.5 * self.label_smoothing
        return functional.binary_cross_entropy_with_logits(outputs, smooth)

    def sums(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the numbers of images without and with each class in each bin, flat: `(2, K, BINS)`."""
        # The bins are narrow around 0, and reach from minus to plus infinity. A NaN ranks last.
        rank = 0.5 + torch.atan(outputs.nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-math.inf)) / math.pi
        bins = (rank * BINS).long().clamp(0, BINS - 1)
        classes = outputs.shape[1]
        columns = torch.arange(classes, device=outputs.device)
        place = ((targets > 0.5).long() * classes + columns) * BINS + bins
        counts = torch.zeros(2 * classes * BINS, dtype=torch.int64, device=outputs.device)
        return counts.scatter_add_(0, place.flatten(), torch.ones_like(place).flatten())

    def value(self, sums: Tensor, images: int) -> float:
        without, having = sums.view(2, -1, BINS).flip(2).cumsum(2)
        found = having.diff(dim=1, prepend=torch.zeros_like(having[:, :1]))
        precision = having / (having + without).clamp(min=1)
        known = having[:, -1] > 0
        if not known.any():
            return 0.0
        return float(((found * precision).sum(1)[known] / having[known, -1]).mean())

    def distil(self, outputs: Tensor, teacher: Tensor, spec: TrainSpec) -> Tensor:
        """Return `T^2` times the divergence of the teacher's probabilities from the student's, class by class."""
        soft, taught = outputs / spec.temperature, teacher / spec.temperature
        probable = taught.sigmoid()
        own = functional.binary_cross_entropy_with_logits(taught, probable)
        return (functional.binary_cross_entropy_with_logits(soft, probable) - own) * spec.temperature**2

    def answers(self, outputs: Tensor) -> Tensor:
        return (outputs > 0).float()

    def smoothed(self, label_smoothing: float) -> Task:
        return MultiLabel(label_smoothing)


@dataclass(frozen=True)
class Regression(_Columns):
    """Outputs and targets are numbers `(B, K)`; the loss is the mean squared error.

    The metric is R2, the fraction of the targets' variance that is explained: a mean over the K numbers of
    1 - sum (y - f)^2 / sum (y - mean y)^2. It is 1 at best, 0 for the mean, and negative for worse.
    """

    metric: ClassVar[str] = "R2"

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return functional.mse_loss(outputs, targets)

    def sums(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return number, sum and sum of squares of the targets, and the sum of squared errors, flat: `(4, K)`."""
        outputs, targets = outputs.double(), targets.double()
        number = torch.full_like(targets[:1], len(targets)).sum(0)
        return torch.stack(
            [number, targets.sum(0), targets.square().sum(0), (outputs - targets).square().sum(0)]
        ).flatten()

    def value(self, sums: Tensor, images: int) -> float:
        number, total, squares, errors = sums.view(4, -1)
        spread = squares - total.square() / number
        # Equal targets have no variance to explain: the error then counts against their size.
        spread = torch.where(spread > 1e-12 * squares.clamp(min=1e-300), spread, squares.clamp(min=1e-12))
        return float((1 - errors / spread).mean())

    def answers(self, outputs: Tensor) -> Tensor:
        return outputs

    def distil(self, outputs: Tensor, teacher: Tensor, spec: TrainSpec) -> Tensor:
        return functional.mse_loss(outputs, teacher)
