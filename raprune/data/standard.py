"""Well-known data sets by their published sizes, for estimates where their files are not at hand."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from raprune.data.arrays import ImageShape, Split
from raprune.data.dataset import Dataset
from raprune.data.stream import VALIDATION_IMAGES
from raprune.spec.job import DataSpec


class StandardSizes(NamedTuple):
    """Sizes of a data set."""

    shape: ImageShape
    num_classes: int
    train: int
    """Number of training images."""
    validation: int
    """Number of images of its own validation split; 0: a part of the training split is held out."""


SIZES = {
    "mnist": StandardSizes((1, 28, 28), 10, 60_000, 0),
    "fashion-mnist": StandardSizes((1, 28, 28), 10, 60_000, 0),
    "cifar10": StandardSizes((3, 32, 32), 10, 50_000, 0),
    "cifar100": StandardSizes((3, 32, 32), 100, 50_000, 0),
    "imagenet": StandardSizes((3, 224, 224), 1_000, 1_281_167, 50_000),
}


def stand_in(spec: DataSpec) -> Dataset | None:
    """Return a data set of black images with the sizes of `spec`, or None if these are not known without its files.

    The images take no memory.
    """
    if spec.name not in SIZES:
        return None
    (channels, height, width), num_classes, images, own = SIZES[spec.name]
    if spec.image_size is not None:
        height = width = spec.image_size
    train = min(images, spec.max_images or images)
    # A job that names a test split alone reports on ImageNet's validation split.
    if own and (spec.validation is not None or spec.test is None):
        validation = min(own, spec.max_images or own)
    else:
        validation = round(train * spec.validation_fraction)
        train -= validation
    if spec.stream:
        train, validation = min(train, spec.resident_images), min(validation, VALIDATION_IMAGES)

    def black(count: int) -> Split:
        pixels = np.broadcast_to(np.zeros((), np.uint8), (count, channels, height, width))
        return Split(pixels, np.broadcast_to(np.zeros((), np.int64), (count,)))

    return Dataset(
        name=spec.name,
        train=black(train),
        validation=black(validation),
        test=None,
        num_classes=num_classes,
        label_names=tuple(str(label) for label in range(num_classes)),
        mean=(0.5,) * channels,
        std=(0.5,) * channels,
    )
