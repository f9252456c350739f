"""The forms of targets: an array for each split, whose first axis is the images. A task names the form that it takes.

The data sets shuffle and divide these arrays without knowing the task.
"""

from __future__ import annotations

from collections.abc import Callable
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
    """Function that returns the array as it is held, or None if it is not of this form."""
    count: Callable[[TargetArray], int]
    """Function that returns the number of outputs of a network for these targets, such as the number of classes."""
    has_classes: bool = False
    """True if each image has one class, so that images are drawn with the same fraction of every class."""

    def array(self, targets: object, images: int, where: str) -> TargetArray:
        """Return the targets of so many images as they are held.

        Raises:
            DataError: if they are not of this form.
        """
        found = np.asarray(targets)
        held = self.convert(found) if found.ndim and len(found) == images else None
        if held is None:
            raise DataError(
                f"{where}: targets are {found.dtype} of shape {found.shape}; needed for {images} images are "
                f"{self.described}.",
                hint="The task of the job (--task) decides the form of its targets: docs/tasks.md.",
            )
        return np.ascontiguousarray(held)


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


LABELS, COLUMNS, MASKS, ANY = "labels", "columns", "masks", "any"

FORMS = {
    LABELS: TargetForm("class numbers, integers of shape (N,)", _labels, _most_class, has_classes=True),
    COLUMNS: TargetForm("numbers of shape (N, K)", _columns, lambda found: found.shape[1]),
    MASKS: TargetForm(
        f"masks of class numbers, integers of shape (N, H, W) from 0 to {UNLABELLED - 1}; {UNLABELLED} is no class",
        _masks,
        _most_class,
    ),
    ANY: TargetForm(
        "numbers whose first axis is N",
        _any,
        lambda found: found.shape[1] if found.ndim > 1 else 1 if found.dtype == np.float32 else int(found.max()) + 1,
    ),
}
"""Forms of targets by name."""
