"""Training augmentation of a whole batch on its device.

Random numbers are drawn on the CPU, so that all devices see the same numbers, for a whole epoch at once, so that they
take one copy to the device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from raprune.data.policy import apply_policy, draw_policy

CROP_AREA = (0.35, 1.0)
"""Range of the fraction of the image's area that a random crop keeps, unless the training says otherwise. ImageNet's
recipe goes down to 0.08, for many more epochs than fine-tuning has."""
CROP_RATIO = (3 / 4, 4 / 3)
"""Range of the crop's width over its height."""


VALID = ("auto", "none", "shift", "shift-flip", "crop-flip")
"""Values of `DataSpec.augment`. `auto` means `shift` here, where the data set is not known."""


@dataclass(frozen=True)
class Augmentation:
    """The augmentation of a training, one image at a time."""

    name: str = "none"
    """Value of `DataSpec.augment`."""
    crop_scale: float = CROP_AREA[0]
    """Smallest fraction of the area that a crop keeps."""
    policy: str = "none"
    """Name in `raprune.data.policy.SPACES`, or `none`."""
    magnitude: int = 9
    """Strength of a policy that draws none, in 0..30."""

    def __post_init__(self) -> None:
        if self.name not in VALID:
            raise ValueError(f"augment {self.name!r}: valid are {', '.join(VALID[:-1])} and {VALID[-1]}")

    @classmethod
    def of(cls, augment: str | Augmentation) -> Augmentation:
        """Return the augmentation itself, or that of a name alone."""
        return cls(augment) if isinstance(augment, str) else augment

    @property
    def augments(self) -> bool:
        """True if it changes any image."""
        return self.name != "none" or self.policy != "none"

    @property
    def numbers(self) -> int:
        """Number of random numbers for the place of an image, before those of the policy."""
        place = 2 if self.name in ("auto", "shift", "shift-flip") else 4 if self.name == "crop-flip" else 0
        return place + self.name.endswith("-flip")


def draw(
    augment: str | Augmentation,
    sizes: Sequence[int],
    parts: Sequence[slice],
    shape: Sequence[int],
    generator: torch.Generator,
) -> Tensor:
    """Draw the random numbers of an epoch at once: shape `(numbers, images)`, float32 on the CPU.

    `sizes` are the sizes of the batches, of which this process gets the images of `parts`; `shape` is that of an image,
    `(C, H, W)`. Processes that share a batch each draw the numbers of the whole batch, so that together they use the
    same numbers as one process alone. `generator` is on the CPU.

    Raises:
        ValueError: if `augment` is no value of `DataSpec.augment`.
    """
    asked = Augmentation.of(augment)
    batches = zip(sizes, parts, strict=True)
    return torch.cat([_of_batch(asked, size, shape, generator)[:, part] for size, part in batches], dim=1)


def _of_batch(asked: Augmentation, count: int, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    numbers, augment = [torch.empty(0, count)], asked.name
    if augment in ("auto", "shift", "shift-flip"):
        for size in shape[1:]:
            numbers.append(torch.randint(0, 2 * _reach(size) + 1, (1, count), generator=generator).float())
    elif augment == "crop-flip":
        numbers.append(torch.rand(4, count, generator=generator))
    if augment.endswith("-flip"):
        numbers.append(torch.rand(1, count, generator=generator))
    if asked.policy != "none":
        numbers.append(draw_policy(asked.policy, count, generator))
    return torch.cat(numbers)


def _reach(size: int) -> int:
    """Return the number of pixels by which `shift` moves at most."""
    return max(1, size // 8)


def augmented(images: Tensor, augment: str | Augmentation, numbers: Tensor) -> Tensor:
    """Return augmented images of the same shape `(B, C, H, W)`: uint8 in, uint8 or float in 0..255 out.

    `numbers` are those of `draw` for these images, shape `(numbers, B)`, on their device.
    """
    asked, is_plain = Augmentation.of(augment), images.dtype == torch.uint8
    if asked.name in ("auto", "shift", "shift-flip"):
        images = shift(images, numbers[:2])
    elif asked.name == "crop-flip":
        images = crop(images, numbers[:4], asked.crop_scale)
    if asked.name.endswith("-flip"):
        images = flip(images, numbers[asked.numbers - 1])
    # Only of uint8 the range is known: other images come from transforms of their own.
    if asked.policy == "none" or not is_plain:
        return images
    return apply_policy(images, asked.policy, asked.magnitude, numbers[asked.numbers :])


def shift(images: Tensor, offsets_2B: Tensor) -> Tensor:
    """Move each image by up to an eighth of its size (at least one pixel) in both directions; the border is black.

    The offsets, whole numbers from 0 to twice the largest move, are down and across.
    """
    batch, _, height, width = images.shape
    pad_y, pad_x = _reach(height), _reach(width)
    padded = functional.pad(images, (pad_x, pad_x, pad_y, pad_y))
    top, left = offsets_2B.long()
    # A view of all windows of every image; the index copies one window of each image.
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    return windows[torch.arange(batch, device=images.device), :, top, left]


def crop(images: Tensor, numbers_4B: Tensor, least: float = CROP_AREA[0]) -> Tensor:
    """Crop a random part of each image and scale it to full size by bilinear interpolation; float in 0..255.

    The numbers, in [0, 1), give area, ratio of the sides, and place across and down. A crop keeps at least the fraction
    `least` of the area.
    """
    area, ratio, across, down = numbers_4B
    low, high = (math.log(value) for value in CROP_RATIO)
    aspect = torch.exp(low + (high - low) * ratio)
    side = (least + (CROP_AREA[1] - least) * area).sqrt()
    width, height = (side * aspect.sqrt()).clamp(max=1.0), (side / aspect.sqrt()).clamp(max=1.0)
    theta = torch.zeros(len(images), 2, 3, device=images.device)
    theta[:, 0, 0], theta[:, 0, 2] = width, (1 - width) * (2 * across - 1)
    theta[:, 1, 1], theta[:, 1, 2] = height, (1 - height) * (2 * down - 1)
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    return functional.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)


def flip(images: Tensor, numbers_B: Tensor) -> Tensor:
    """Mirror each image left to right whose number in [0, 1) is below 1/2."""
    return torch.where((numbers_B < 0.5).view(-1, 1, 1, 1), images.flip(3), images)
