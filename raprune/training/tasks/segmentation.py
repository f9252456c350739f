"""Semantic segmentation: a class for each pixel, cross-entropy, mean intersection over union."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from raprune.data.targets import MASKS, UNLABELLED
from raprune.spec.job import TrainSpec
from raprune.training.distillation import LOGIT_LOSSES
from raprune.training.tasks.task import LOGITS, Task

AUXILIARY = 0.5
"""Weight of the loss of an auxiliary head, `aux` among the outputs, as in torchvision's reference training."""


@dataclass(frozen=True)
class Segmentation(Task):
    """Outputs are logits `(B, num_classes, H, W)`, alone or as `out` of a dict, with `aux` for an auxiliary head.

    Targets are masks `(B, H, W)` of class numbers; pixels of 255 count nowhere. The metric is the mean over the classes
    of intersection over union, both summed over all images; a class that neither occurs nor is predicted has none.
    """

    metric: ClassVar[str] = "mean IoU"
    output: ClassVar[str] = LOGITS
    targets: ClassVar[str] = MASKS
    distils: ClassVar[bool] = True

    label_smoothing: float = 0.0

    def loss(self, outputs: Any, targets: Tensor) -> Tensor:
        loss = self._cross_entropy(main_logits(outputs), targets)
        if isinstance(outputs, Mapping) and "aux" in outputs:
            loss = loss + AUXILIARY * self._cross_entropy(outputs["aux"], targets)
        return loss

    def sums(self, outputs: Any, targets: Tensor) -> Tensor:
        """Return the confusion matrix, flat: pixels of each class, as rows, that were given each class."""
        logits = main_logits(outputs)
        classes = logits.shape[1]
        # A pixel with a NaN has no largest logit, and counts as the class after its own.
        found = logits.argmax(1)
        wrong = logits.isnan().any(1)
        labels = targets.long()
        found = torch.where(wrong, (labels + 1) % classes, found)
        # Pixels without a class fall into a place of their own: to pick the others would wait for a GPU.
        place = torch.where(labels == UNLABELLED, classes * classes, labels * classes + found)
        counts = torch.zeros(classes * classes + 1, dtype=torch.int64, device=place.device)
        counts.scatter_add_(0, place.flatten(), torch.ones_like(place).flatten())
        return counts[:-1]

    def answers(self, outputs: Any) -> Tensor:
        return main_logits(outputs).argmax(1).to(torch.uint8)

    def value(self, sums: Tensor, images: int) -> float:
        matrix = sums.view(round(len(sums) ** 0.5), -1)
        both = matrix.diagonal()
        either = matrix.sum(0) + matrix.sum(1) - both
        known = either > 0
        return float((both[known] / either[known]).mean()) if known.any() else 0.0

    def distil(self, outputs: Any, teacher: Any, spec: TrainSpec) -> Tensor:
        """Return the difference of the logits, a mean over all pixels."""
        student, taught = (main_logits(one).movedim(1, -1).flatten(0, -2) for one in (outputs, teacher))
        return LOGIT_LOSSES[spec.teacher_loss](student, taught, spec.temperature)

    def smoothed(self, label_smoothing: float) -> Task:
        return Segmentation(label_smoothing)

    def expected(self, num_outputs: int) -> str:
        shape = f"(1, {num_outputs}, H, W)"
        return f"the data's {num_outputs} classes need logits {shape} as large as the image, alone or as `out`"

    def fits(self, outputs: Any, images: Tensor, num_outputs: int) -> bool:
        if isinstance(outputs, Mapping) and "out" not in outputs:
            return False
        logits = main_logits(outputs)
        return isinstance(logits, Tensor) and tuple(logits.shape) == (len(images), num_outputs, *images.shape[2:])

    def _cross_entropy(self, logits: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(
            logits, targets.long(), ignore_index=UNLABELLED, label_smoothing=self.label_smoothing
        )


def main_logits(outputs: Any) -> Tensor:
    """Return the logits of a network that gives them alone or as `out` of a dict."""
    logits: Tensor = outputs["out"] if isinstance(outputs, Mapping) else outputs
    return logits
