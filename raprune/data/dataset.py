"""`Dataset`: one data set as the search uses it, in plain arrays and plain data."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from raprune.data.arrays import ImageArray, LabelArray, Shape, Split
from raprune.data.normalisation import GIVEN, Normalisation
from raprune.data.stream import StreamSource

__all__ = ["Dataset", "ImageArray", "LabelArray", "Shape", "Split", "StreamSource"]


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """One data set: what is trained on, what steers the search, and what only the report touches."""

    name: str
    train: Split
    """What is trained on; where there is a `stream`, a sample of it."""
    validation: Split
    held_out: bool = False
    """True if `validation` was drawn from the training split; False if it is a split of its own."""
    test: Split | None
    num_classes: int
    label_names: tuple[str, ...]
    mean: tuple[float, ...]
    """For each channel, of pixels in [0, 1]."""
    std: tuple[float, ...]
    origin: str = GIVEN
    """Origin of mean and std."""
    augment: str = "none"
    """Training augmentation that suits these images; see `raprune.data.augment`."""
    stream: StreamSource | None = None
    """The whole training split, where it is not held in memory."""

    @property
    def image_shape(self) -> Shape:
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    @property
    def normalisation(self) -> Normalisation:
        return Normalisation(mean=self.mean, std=self.std, origin=self.origin)

    @property
    def chance(self) -> float:
        """Validation accuracy of the best blind guess: the fraction of the most frequent class."""
        counts = np.bincount(self.validation.labels, minlength=self.num_classes)
        return max(1 / self.num_classes, float(counts.max() / counts.sum()))

    @property
    def num_train(self) -> int:
        """Images that are trained on, in memory or not."""
        return len(self.train) if self.stream is None else self.stream.count

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
        if self.stream is not None:
            digest.update(self.stream.identity.encode())
        return digest.hexdigest()[:16]
