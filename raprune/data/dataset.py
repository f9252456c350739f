"""`Split` and `Dataset`: labelled images as plain arrays, which cross process borders without a copy."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

ImageArray = npt.NDArray[np.uint8]
LabelArray = npt.NDArray[np.int64]
Shape = tuple[int, int, int]
"""(channels, height, width) of one image."""


@dataclass(frozen=True)
class Split:
    """Images `(N, C, H, W)`, C-contiguous, and their labels `(N,)`."""

    images: ImageArray
    labels: LabelArray

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """One data set: what is trained on, what steers the search, and what only the report touches."""

    name: str
    train: Split
    validation: Split
    test: Split | None
    num_classes: int
    label_names: tuple[str, ...]
    mean: tuple[float, ...]
    """For each channel, of pixels in [0, 1]."""
    std: tuple[float, ...]
    augment: str = "none"
    """Training augmentation that suits these images; see `raprune.data.augment`."""

    @property
    def image_shape(self) -> Shape:
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    @cached_property
    def fingerprint(self) -> str:
        """The first 16 hexadecimal digits of the SHA-256 of images, labels, split and normalisation."""
        digest = hashlib.sha256(repr((self.num_classes, self.mean, self.std)).encode())
        for split in (self.train, self.validation, self.test):
            if split is None:
                digest.update(b"none")
                continue
            digest.update(repr(split.images.shape).encode())
            digest.update(np.ascontiguousarray(split.images).data)
            digest.update(np.ascontiguousarray(split.labels).data)
        return digest.hexdigest()[:16]
