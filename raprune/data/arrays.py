"""Labelled images as plain arrays, which Ray shares between processes without a copy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

ImageArray = npt.NDArray[np.uint8]
LabelArray = npt.NDArray[np.int64]
ImageShape = tuple[int, int, int]
"""The shape `(channels, height, width)` of one image."""


@dataclass(frozen=True)
class Split:
    """Images `(N, C, H, W)`, C-contiguous, and their labels `(N,)`."""

    images: ImageArray
    labels: LabelArray

    def __len__(self) -> int:
        return len(self.labels)
