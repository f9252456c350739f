"""The base class of tasks: the loss that is trained, the metric that the search raises, and the teacher's part in both.

images, targets -> run -> outputs -> loss (training), sums -> value (evaluation), distil (fine-tuning)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from raprune.data.targets import ANY
from raprune.methods.method import Batches, Loss
from raprune.spec.job import TrainSpec

LOGITS = "logits"
"""Name of an output that has a number for each class."""


class Task(ABC):
    """The loss and the metric of a network. A task has no state: every process makes it again, without arguments.

    A batch is a tensor of images, `(B, C, H, W)`, and a tensor of targets whose first axis has the same length. The
    data sets move them, shuffle them and divide them among processes, and know no task.
    """

    metric: ClassVar[str]
    """Name of the metric as people read it, in lower case: `accuracy`, `mean IoU`."""
    output: ClassVar[str] = "outputs"
    """Name of the output of an exported network that gives one tensor."""
    targets: ClassVar[str] = ANY
    """Form of the targets: a name in `raprune.data.targets.FORMS`."""
    augments: ClassVar[bool] = False
    """True if targets stay right when images are shifted, mirrored, cut out or changed in their colours."""
    mixes: ClassVar[bool] = False
    """True if the loss of two mixed images is a mixture of their losses, so that mixup and cutmix can be used."""
    distils: ClassVar[bool] = False
    """True if `distil` compares outputs with those of a teacher."""
    maps: ClassVar[bool] = True
    """True if a student's feature maps can be compared with a teacher's."""
    judges_training: ClassVar[bool] = True
    """True if `sums` takes outputs in training mode too; else only the loss of training images is known."""
    most_images: ClassVar[int | None] = None
    """Maximum number of images in a batch of an evaluation, for networks that take much memory; None: no limit."""
    capturable: ClassVar[bool] = True
    """True if the loss does the same work whatever its targets are, so that a GPU can replay it."""
    needs: ClassVar[tuple[str, ...]] = ()
    """Modules that a built-in task needs beside raprune's own, from the extra of the task's name."""

    def run(self, model: nn.Module, images: Tensor, targets: Tensor) -> Any:
        """Return the outputs of `model` on a batch, in the mode that the model is in.

        Only networks that compute their own loss, such as detectors, look at the targets.
        """
        del targets
        return model(images)

    def run_for_loss(self, model: nn.Module, images: Tensor, targets: Tensor) -> Any:
        """Return outputs of `model` on a batch from which the loss is computed. Default: those of `run`."""
        return self.run(model, images, targets)

    def inputs(self, images: Tensor) -> tuple[Any, ...]:
        """Return the arguments that the network takes for a batch of images. Default: the images.

        A data set holds one tensor for each image. Several inputs of a network are held as its channels, and parted
        here.
        """
        return (images,)

    @abstractmethod
    def loss(self, outputs: Any, targets: Tensor) -> Tensor:
        """Return the mean loss of the images of a batch: one differentiable number."""

    def summed_loss(self, outputs: Any, targets: Tensor) -> Tensor:
        """Return the sum of the losses of the images of a batch. Default: the mean times the number of images."""
        return self.loss(outputs, targets) * len(targets)

    @abstractmethod
    def sums(self, outputs: Any, targets: Tensor) -> Tensor:
        """Return the figures of a batch from which the metric is computed, shape `(S,)`, integers or floats.

        They add up: the sum over the parts of a batch, over batches and over processes is that of all their images.
        A task that keeps figures of each image says in `added` how they go together.
        """

    def added(self, total: Tensor | None, sums: Tensor) -> Tensor:
        """Return the sums of two sets of images together; `total` is None at the beginning. Default: their sum."""
        return added(total, sums)

    @abstractmethod
    def value(self, sums: Tensor, images: int) -> float:
        """Return the metric from the added `sums`, float64 on the CPU, of so many images.

        Higher is better and 1 is perfect; a guess has about 0.
        """

    def further(self, outputs: Any, targets: Tensor) -> dict[str, Tensor]:
        """Return further figures of a batch by the name that people read, each the sum of a number in [0, 1] per image.

        Their means over all images of the test split are reported beside the metric, which alone steers the search.
        Default: none.
        """
        del outputs, targets
        return {}

    def answers(self, outputs: Any) -> Tensor | None:
        """Return the targets that the outputs of a network stand for, or None if they stand for none.

        Images without labels get those of the dense network. Default: None.
        """
        del outputs
        return None

    def distil(self, outputs: Any, teacher: Any, spec: TrainSpec) -> Tensor:
        """Return the mean difference of the outputs from a teacher's, by the loss and temperature of `spec`.

        It takes the place of the fraction `spec.distillation` of the loss.
        """
        raise TypeError(f"{type(self).__name__} compares no outputs with a teacher's")

    def expected(self, num_outputs: int) -> str:
        """Return a clause on the outputs that the task needs for one image, for messages."""
        del num_outputs
        return f"the loss of {type(self).__name__} takes others"

    def fits(self, outputs: Any, images: Tensor, num_outputs: int) -> bool:
        """True if the task takes these outputs of a network for `images`. Default: any."""
        del outputs, images, num_outputs
        return True

    def smoothed(self, label_smoothing: float) -> Task:
        """Return the task with this label smoothing in its loss. Default: the task itself, without class labels."""
        del label_smoothing
        return self


class Calibration:
    """The calibration batches of a task: a call gives them, as `Batches` says, and `loss` is the task's loss."""

    def __init__(self, task: Task, batches: Batches) -> None:
        self._task = task
        self._batches = batches

    def __call__(self) -> Any:
        return self._batches()

    @property
    def loss(self) -> Loss:
        """Function that gives the summed loss of a network on images and targets."""
        return self._loss

    def _loss(self, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        return self._task.summed_loss(self._task.run_for_loss(model, images, targets), targets)


def in_float32(outputs: Any) -> Any:
    """Return a network's outputs with all their floating-point tensors in float32."""
    if isinstance(outputs, Tensor):
        return outputs.float()
    return pytree.tree_map_only(Tensor, lambda t: t.float() if t.is_floating_point() else t, outputs)


def added(total: Tensor | None, sums: Tensor) -> Tensor:
    """Return the sum of two batches' `sums`: exact for integers, in float64 for others."""
    sums = sums if not sums.is_floating_point() else sums.to(torch.float64)
    return sums if total is None else total + sums
