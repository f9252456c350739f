"""Normalisation of a network's input: (pixel - mean) / std for each channel, with pixels in [0, 1]."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from raprune.data.arrays import ImageArray
from raprune.errors import UsageError
from raprune.spec.fields import FLOATS, normalisation_in_words
from raprune.spec.job import DataSpec

GIVEN = "given"
MEASURED = "measured on the training split"


@dataclass(frozen=True, kw_only=True)
class Normalisation:
    """Mean and standard deviation of each channel, for pixels in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    origin: str
    """Origin of the figures, in a few words."""

    @property
    def assignments(self) -> str:
        """The exact figures as flags of the command line."""
        return f'--set "data.mean={list(self.mean)}" --set "data.std={list(self.std)}"'

    def __str__(self) -> str:
        return normalisation_in_words(self.mean, self.std, self.origin)


IMAGENET = Normalisation(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), origin="ImageNet's")
CIFAR10 = Normalisation(mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616), origin="CIFAR-10's")
MNIST = Normalisation(mean=(0.1307,), std=(0.3081,), origin="MNIST's")


def common(channels: int) -> tuple[Normalisation, ...]:
    """Return the normalisations that networks for images with `channels` channels are commonly trained with."""
    any_images = (
        (0.5, 0.5, "pixels in [-1, 1]"),
        (0.0, 1.0, "pixels in [0, 1]"),
        (0.0, 1 / 255, "none: pixels from 0 to 255"),
    )
    return (
        *(known for known in (IMAGENET, CIFAR10, MNIST) if len(known.mean) == channels),
        *(Normalisation(mean=(mean,) * channels, std=(std,) * channels, origin=o) for mean, std, o in any_images),
    )


def unchanged(channels: int) -> Normalisation:
    """Return the figures that leave pixels in [0, 1], for networks that normalise images themselves."""
    return Normalisation(mean=(0.0,) * channels, std=(1.0,) * channels, origin="pixels in [0, 1], for a detector")


def resolve(
    spec: DataSpec, *, channels: int, default: Normalisation | None, measured: Callable[[], Normalisation]
) -> Normalisation:
    """Return the figures of `spec`, else the `default` if it has `channels` channels, else the `measured` ones.

    Raises:
        UsageError: if `spec` has figures for another number of channels.
    """
    for field, values in (("mean", spec.mean), ("std", spec.std)):
        if values is not None and len(values) != channels:
            raise UsageError(
                f"data.{field} has {len(values)} values; the images have {channels} channel{'s' * (channels > 1)}.",
                hint="Give one value for each channel.",
            )
    if spec.mean is not None and spec.std is not None:
        return Normalisation(mean=spec.mean, std=spec.std, origin=GIVEN)
    found = default if default is not None and len(default.mean) == channels else measured()
    if spec.mean is None and spec.std is None:
        return found
    given, other = ("std", "mean") if spec.mean is None else ("mean", "std")
    return Normalisation(
        mean=spec.mean or found.mean, std=spec.std or found.std, origin=f"{given} {GIVEN}, {other} {found.origin}"
    )


def as_they_are(spec: DataSpec, *, channels: int) -> Normalisation:
    """Return the figures that leave float images as they are.

    Raises:
        UsageError: if `spec` has figures, which are for pixels from 0 to 255.
    """
    if spec.mean is not None or spec.std is not None:
        raise UsageError(
            "data.mean and data.std: the images are floats, which are taken as they are.",
            hint="Normalise them in the transforms of the data set, or give uint8 images.",
        )
    # Pixels are divided by 255 first, and 1 / 255 undoes it.
    return Normalisation(mean=(0.0,) * channels, std=(1 / 255,) * channels, origin=FLOATS)


def measure(images: ImageArray) -> Normalisation:
    """Measure the exact mean and standard deviation of each channel, from counts of the 256 values."""
    values = np.arange(256) / 255
    means, stds = [], []
    for channel in range(images.shape[1]):
        counts = np.zeros(256)
        for start in range(0, len(images), 4096):
            counts += np.bincount(images[start : start + 4096, channel].ravel(), minlength=256)
        mean = float(values @ counts / counts.sum())
        std = float(np.sqrt((values - mean) ** 2 @ counts / counts.sum()))
        means.append(mean)
        # A constant channel carries no information; dividing it by 1 leaves it at zero.
        stds.append(std or 1.0)
    return Normalisation(mean=tuple(means), std=tuple(stds), origin=MEASURED)
