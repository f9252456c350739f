"""Labelled images as plain arrays, which Ray shares between processes without a copy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

ImageArray = npt.NDArray[Any]
"""uint8 images, which are normalised, or float32 images, which are taken as they are."""
LabelArray = npt.NDArray[np.int64]
ImageShape = tuple[int, int, int]
"""The shape `(channels, height, width)` of one image."""


@dataclass(frozen=True)
class Split:
    """Images `(N, C, H, W)`, C-contiguous, and their labels `(N,)`."""

    images: ImageArray
    labels: npt.NDArray[Any]
    """Class numbers, or the targets of another task (`raprune.data.targets`); the first axis is N."""

    def __len__(self) -> int:
        return len(self.labels)
