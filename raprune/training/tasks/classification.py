"""Classification: one label for each image, cross-entropy, top-1 accuracy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor
from torch.nn import functional

from raprune.data.targets import LABELS
from raprune.spec.job import TrainSpec
from raprune.training.distillation import LOGIT_LOSSES
from raprune.training.tasks.task import LOGITS, Task

FEW_CLASSES = 10
"""Number of classes up to which the top-5 accuracy says little, and is not reported."""


@dataclass(frozen=True)
class Classification(Task):
    """Outputs are logits `(B, num_classes)`, targets are class numbers `(B,)`; the metric is the top-1 accuracy.

    The top-5 accuracy is reported beside it for more than `FEW_CLASSES` classes.
    """

    metric: ClassVar[str] = "accuracy"
    output: ClassVar[str] = LOGITS
    targets: ClassVar[str] = LABELS
    augments: ClassVar[bool] = True
    mixes: ClassVar[bool] = True
    distils: ClassVar[bool] = True

    label_smoothing: float = 0.0

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(outputs, targets, label_smoothing=self.label_smoothing)

    def summed_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(outputs, targets, reduction="sum", label_smoothing=self.label_smoothing)

    def sums(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the number of correct images, shape `(1,)`. Logits with a NaN count as wrong."""
        # A row with a NaN has no largest logit: the maximum is NaN then, which differs from itself.
        largest, found = outputs.max(1)
        return ((found == targets) & (largest == largest)).sum().view(1)

    def value(self, sums: Tensor, images: int) -> float:
        return float(sums[0]) / images

    def further(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        if outputs.shape[1] <= FEW_CLASSES:
            return {}
        ahead = (outputs > outputs.gather(1, targets[:, None])).sum(1)
        return {"top-5 accuracy": ((ahead < 5) & ~outputs.isnan().any(1)).sum()}

    def answers(self, outputs: Tensor) -> Tensor:
        return outputs.argmax(1)

    def distil(self, outputs: Tensor, teacher: Tensor, spec: TrainSpec) -> Tensor:
        return LOGIT_LOSSES[spec.teacher_loss](outputs, teacher, spec.temperature)

    def expected(self, num_outputs: int) -> str:
        return f"the data's {num_outputs} classes need logits of shape {(1, num_outputs)}"

    def fits(self, outputs: Any, images: Tensor, num_outputs: int) -> bool:
        return isinstance(outputs, Tensor) and tuple(outputs.shape) == (len(images), num_outputs)

    def smoothed(self, label_smoothing: float) -> Task:
        return Classification(label_smoothing)


CLASSIFICATION = Classification()
