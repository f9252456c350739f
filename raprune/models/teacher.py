"""A teacher other than the dense network: by name, with its weights and its own normalisation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor, nn

from raprune.data.arrays import ImageShape
from raprune.errors import ModelError, UsageError
from raprune.models import build_model, load_weights
from raprune.models.given import load_arrays
from raprune.models.normalisation import usual_normalisation
from raprune.spec.job import ModelSpec, TeacherSpec


class Teacher(nn.Module):
    """A network that sees images as its weights need them: `network(x * scale + shift)`."""

    scale: Tensor
    shift: Tensor

    def __init__(self, network: nn.Module, scale_C: Tensor, shift_C: Tensor) -> None:
        """`scale_C` and `shift_C` have one value for each channel."""
        super().__init__()
        self.network = network
        self.register_buffer("scale", scale_C.view(-1, 1, 1))
        self.register_buffer("shift", shift_C.view(-1, 1, 1))

    def forward(self, x: Tensor) -> Any:
        return self.network(x * self.scale + self.shift)


def load_teacher(
    spec: TeacherSpec,
    *,
    num_classes: int,
    image_shape: ImageShape,
    mean: Sequence[float],
    std: Sequence[float],
    is_float: bool = False,
    weights: Mapping[str, npt.NDArray[Any]] | None = None,
    fits: Callable[[object, Tensor], bool] | None = None,
    expected: str = "",
) -> Teacher:
    """Return the teacher of `spec` in evaluation mode, on the CPU, for images normalised by `mean` and `std`.

    `fits` says if the task takes an output for some images, and `expected` describes such an output. Default: one logit
    for each class.

    Float images (`is_float`) are taken as they are, by the teacher too.

    Its weights are `weights` if given, else those of its file, else those that its own function gave it.

    Raises:
        UsageError: if there is no such network or file, or `spec` has figures for float images.
        ModelError: if it cannot be built or loaded, or gives other outputs than the task takes.
    """
    if is_float and (spec.mean is not None or spec.std is not None):
        raise UsageError(
            "teacher.mean and teacher.std: the images are floats, which are taken as they are.",
            hint="Leave them out: the teacher sees the images as the student does. Or give uint8 images.",
        )
    asked = ModelSpec(name=spec.name, weights=spec.weights, arguments=spec.arguments)
    try:
        network = build_model(asked, num_classes=num_classes, image_shape=image_shape)
        if weights is not None:
            load_arrays(network, weights)
        elif spec.weights is not None:
            load_weights(network, spec.weights)
    except (ModelError, UsageError) as error:
        # That room names the fields of the dense network.
        raise type(error)(_of_teacher(error.message), hint=_of_teacher(error.hint)) from error
    usual = None if is_float else usual_normalisation(asked)
    own_mean = spec.mean or (usual.mean if usual else None) or tuple(mean)
    own_std = spec.std or (usual.std if usual else None) or tuple(std)
    own_std_C, own_mean_C, std_C, mean_C = (
        torch.tensor(values, dtype=torch.float64) for values in (own_std, own_mean, std, mean)
    )
    scale_C, shift_C = std_C / own_std_C, (mean_C - own_mean_C) / own_std_C
    teacher = Teacher(network, scale_C.float(), shift_C.float()).eval()
    if fits is None:
        fits = partial(_gives_logits, num_classes)
        expected = f"the data's {num_classes} classes need logits of shape {(1, num_classes)}"
    _check_runs(teacher, spec.name, fits, expected, image_shape)
    return teacher


def _of_teacher(text: str) -> str:
    return text.replace("model.", "teacher.")


def _gives_logits(num_classes: int, output: object, images: Tensor) -> bool:
    return isinstance(output, Tensor) and tuple(output.shape) == (len(images), num_classes)


def _check_runs(
    teacher: Teacher, name: str, fits: Callable[[object, Tensor], bool], expected: str, image_shape: ImageShape
) -> None:
    image = torch.zeros(1, *image_shape)
    try:
        with torch.inference_mode():
            output = teacher(image)
    except Exception as error:
        shape = "x".join(str(size) for size in image_shape)
        raise ModelError(
            f"teacher.name {name!r} does not run on images of {shape}: {type(error).__name__}: {error}",
            hint="A teacher sees the images of the training; choose one for images of this size.",
        ) from error
    came = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    if not fits(output, image):
        raise ModelError(
            f"teacher.name {name!r} gives {came} for one image; {expected}.",
            hint="A teacher must know the classes of the data; look at teacher.arguments and the labels.",
        )
