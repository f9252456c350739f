"""The class `Dataset`: one data set as the search uses it, in plain arrays and plain data."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from raprune.data.arrays import ImageArray, ImageShape, LabelArray, Split
from raprune.data.normalisation import GIVEN, Normalisation
from raprune.data.stream import StreamSource
from raprune.data.targets import LABELS

if TYPE_CHECKING:
    from raprune.data.items import PackedItems

__all__ = ["Dataset", "ImageArray", "ImageShape", "LabelArray", "Split", "StreamSource"]


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """One data set: the training split, the validation split that steers the search, the test split of the report."""

    name: str
    train: Split
    """The training split; where there is a `stream` or a large `drawn` split, a sample of the training split."""
    validation: Split
    held_out: bool = False
    """True if `validation` was drawn from the training split; False if the data set has its own validation split."""
    test: Split | None
    num_classes: int
    """Number of outputs of a network for the targets: of classes, or of numbers for each image."""
    form: str = LABELS
    """Form of the targets: a name in `raprune.data.targets.FORMS`."""
    label_names: tuple[str, ...]
    mean: tuple[float, ...]
    """Mean of each channel, for pixels in [0, 1]."""
    std: tuple[float, ...]
    """Standard deviation of each channel, for pixels in [0, 1]."""
    origin: str = GIVEN
    """Origin of mean and std, in a few words."""
    augment: str = "none"
    """Training augmentation that suits these images; see `raprune.data.augment`."""
    stream: StreamSource | None = None
    """The whole training split, if it is not held in memory."""
    mixing: float = 1.0
    """Classes in a pool of the stream, as a fraction of those of random images (`classes_in_pool`); 1 if all mix."""
    calibration: Split | None = None
    """Images without labels that methods look at; None: they look at training images."""
    unlabelled: frozenset[str] = frozenset()
    """Names of the splits that came without labels: theirs are the answers of the dense network."""
    drawn: PackedItems | None = None
    """The whole training split, if its items are drawn anew in each epoch."""

    @property
    def image_shape(self) -> ImageShape:
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    @property
    def has_floats(self) -> bool:
        """True if images are floats, which are taken as they are, and not uint8, which are normalised."""
        return bool(np.issubdtype(self.train.images.dtype, np.floating))

    @property
    def normalisation(self) -> Normalisation:
        return Normalisation(mean=self.mean, std=self.std, origin=self.origin)

    @property
    def chance(self) -> float | None:
        """Validation accuracy of the best constant guess, in [0, 1]: the fraction of the most frequent class.

        None for other targets than labels.
        """
        if self.form != LABELS:
            return None
        counts = np.bincount(self.validation.labels, minlength=self.num_classes)
        return max(1 / self.num_classes, float(counts.max() / counts.sum()))

    @property
    def num_train(self) -> int:
        """Number of training images, in memory or drawn anew or streamed."""
        if self.drawn is not None:
            return len(self.drawn)
        return len(self.train) if self.stream is None else self.stream.count

    def without_test(self) -> Self:
        """Return the data set without its test split. It keeps its fingerprint, which no process computes again."""
        return self.alike(test=None)

    def alike(self, **changes: Any) -> Self:
        """Return the data set with these fields changed and the same fingerprint."""
        changed = replace(self, **changes)
        # A cached property is an entry of the object's dictionary, which travels with the object.
        vars(changed)["fingerprint"] = self.fingerprint
        return changed

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
            if self.form != LABELS:
                digest.update(f"{self.form} {split.labels.dtype} {split.labels.shape}".encode())
            digest.update(np.ascontiguousarray(split.labels).data)
        if self.stream is not None:
            digest.update(self.stream.identity.encode())
        if self.drawn is not None:
            digest.update(self.drawn.identity.encode())
        if self.calibration is not None:
            images = self.calibration.images
            digest.update(f"calibration {images.dtype} {images.shape}".encode())
            digest.update(np.ascontiguousarray(images).data)
        return digest.hexdigest()[:16]
