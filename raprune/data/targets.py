"""The forms of targets: an array for each split, whose first axis is the images. A task names the form that it takes.

The data sets shuffle and divide these arrays without knowing the task. Images have different numbers of boxes: the
array has room for the most of them, and the rest of an image's rows are zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from raprune.errors import DataError

TargetArray = npt.NDArray[Any]

UNLABELLED = 255
"""Value of a mask's pixels that belong to no class: neither loss nor metric counts them."""


@dataclass(frozen=True)
class TargetForm:
    """One form of targets."""

    described: str
    """Description of the array, for messages."""
    convert: Callable[[TargetArray], TargetArray | None]
    """Function that returns the array as it is held, or None if it is not of this form.

    A `ValueError` says in its text what is wrong.
    """
    count: Callable[[TargetArray], int]
    """Function that returns the number of outputs of a network for these targets, such as the number of classes."""
    has_classes: bool = False
    """True if each image has one class, so that images are drawn with the same fraction of every class."""
    padded: bool = False
    """True if arrays differ in the length of their second axis, and the rest of the longest is filled with zeros."""

    def array(self, targets: object, images: int, where: str) -> TargetArray:
        """Return the targets of so many images as they are held.

        Raises:
            DataError: if they are not of this form.
        """
        found = np.asarray(targets)
        try:
            held = self.convert(found) if found.ndim and len(found) == images else None
        except ValueError as error:
            raise DataError(f"{where}: {error}", hint=f"Targets are {self.described}.") from None
        if held is None:
            raise DataError(
                f"{where}: targets are {found.dtype} of shape {found.shape}; needed for {images} images are "
                f"{self.described}.",
                hint="The task of the job (--task) decides the form of its targets: docs/tasks.md.",
            )
        return np.ascontiguousarray(held)

    def fits(self, one: TargetArray, other: TargetArray) -> bool:
        """True if both arrays can be parts of one."""
        first = 2 if self.padded else 1
        return one.shape[first:] == other.shape[first:]

    def joined(self, parts: Sequence[TargetArray]) -> TargetArray:
        """Return the targets of consecutive images as one array."""
        if not self.padded:
            return np.concatenate(parts)
        most = max(part.shape[1] for part in parts)
        rest = ((0, 0),) * (parts[0].ndim - 2)
        return np.concatenate([np.pad(part, ((0, 0), (0, most - part.shape[1]), *rest)) for part in parts])


def _labels(found: TargetArray) -> TargetArray | None:
    return found.astype(np.int64) if found.ndim == 1 and np.issubdtype(found.dtype, np.integer) else None


def _columns(found: TargetArray) -> TargetArray | None:
    if found.ndim not in (1, 2) or not (np.issubdtype(found.dtype, np.number) or found.dtype == np.bool_):
        return None
    return found.reshape(len(found), -1).astype(np.float32)


def _masks(found: TargetArray) -> TargetArray | None:
    if found.ndim == 4 and found.shape[1] == 1:
        found = found[:, 0]
    if found.ndim != 3 or not np.issubdtype(found.dtype, np.integer) or found.min(initial=0) < 0:
        return None
    return found.astype(np.uint8) if found.max(initial=0) <= UNLABELLED else None


def _any(found: TargetArray) -> TargetArray | None:
    if np.issubdtype(found.dtype, np.integer) or found.dtype == np.bool_:
        return found.astype(np.int64)
    return found.astype(np.float32) if np.issubdtype(found.dtype, np.floating) else None


def _most_class(found: TargetArray) -> int:
    return int(found[found != UNLABELLED].max(initial=0)) + 1


BOX_NUMBERS = 6
"""Numbers of a box: left, top, right, bottom in pixels, its class from 1, 1 for a crowd. A row of class 0 is no box."""


def _boxes(found: TargetArray) -> TargetArray | None:
    """Return boxes `(N, M, BOX_NUMBERS)` from a mapping for each image, as detectors of torchvision take them."""
    if found.dtype != object:
        is_held = found.ndim == 3 and found.shape[2] == BOX_NUMBERS and np.issubdtype(found.dtype, np.floating)
        return found.astype(np.float32) if is_held else None
    if found.ndim != 1 or not all(isinstance(one, Mapping) and {"boxes", "labels"} <= set(one) for one in found):
        return None
    rows = [_boxes_of_image(number, one) for number, one in enumerate(found)]
    held = np.zeros((len(rows), max(1, *map(len, rows)), BOX_NUMBERS), np.float32)
    for place, of_image in zip(held, rows, strict=True):
        place[: len(of_image)] = of_image
    return held


def _boxes_of_image(number: int, target: Mapping[str, Any]) -> TargetArray:
    boxes = np.asarray(target["boxes"], np.float32).reshape(-1, 4)
    labels, crowd = (np.asarray(target.get(name, np.zeros(len(boxes)))) for name in ("labels", "iscrowd"))
    if len(labels) != len(boxes) or len(crowd) != len(boxes):
        raise ValueError(f"image {number} has {len(boxes)} boxes, {len(labels)} labels and {len(crowd)} of iscrowd.")
    if len(labels) and (labels.min() < 1 or not np.equal(labels, labels.astype(np.int64)).all()):
        raise ValueError(f"image {number} has the label {labels.min()}; labels are whole numbers from 1.")
    wrong = np.flatnonzero(~(np.isfinite(boxes).all(1) & (boxes[:, 2:] > boxes[:, :2]).all(1)))
    if len(wrong):
        raise ValueError(f"image {number} has the box {boxes[wrong[0]].tolist()}, which has no width or no height.")
    return np.concatenate([boxes, labels[:, None], crowd[:, None]], axis=1).astype(np.float32)


LABELS, COLUMNS, MASKS, BOXES, ANY = "labels", "columns", "masks", "boxes", "any"

FORMS = {
    LABELS: TargetForm("class numbers, integers of shape (N,)", _labels, _most_class, has_classes=True),
    COLUMNS: TargetForm("numbers of shape (N, K)", _columns, lambda found: found.shape[1]),
    MASKS: TargetForm(
        f"masks of class numbers, integers of shape (N, H, W) from 0 to {UNLABELLED - 1}; {UNLABELLED} is no class",
        _masks,
        _most_class,
    ),
    BOXES: TargetForm(
        'for each image {"boxes": (M, 4), "labels": (M,)}: left, top, right, bottom in pixels, and classes from 1',
        _boxes,
        lambda found: int(found[..., 4].max(initial=0)) + 1,
        padded=True,
    ),
    ANY: TargetForm(
        "numbers whose first axis is N",
        _any,
        lambda found: found.shape[1] if found.ndim > 1 else 1 if found.dtype == np.float32 else int(found.max()) + 1,
    ),
}
"""Forms of targets by name."""
