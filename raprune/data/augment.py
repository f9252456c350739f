"""Training augmentation of a whole batch on its device.

Random numbers are drawn on the CPU, so that all devices see the same numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

CROP_AREA = (0.35, 1.0)
"""Range of the fraction of the image's area that a random crop keeps. ImageNet's recipe goes down to 0.08, for many
more epochs than fine-tuning has."""
CROP_RATIO = (3 / 4, 4 / 3)
"""Range of the crop's width over its height."""


@dataclass(frozen=True)
class Draws:
    """Random numbers for a batch of `count` images; only the numbers for the images of `part` are returned.

    Processes that share a batch each draw the numbers of the whole batch, so that together they use the same numbers
    as one process alone.
    """

    generator: torch.Generator
    """A generator on the CPU."""
    count: int
    part: slice

    def integers(self, high: int) -> Tensor:
        """Draw one integer in `[0, high)` for each image of the part, shape `(images,)`."""
        return torch.randint(0, high, (self.count,), generator=self.generator)[self.part]

    def uniform(self, rows: int) -> Tensor:
        """Draw `rows` numbers in [0, 1) for each image of the part, shape `(rows, images)`."""
        return torch.rand(rows, self.count, generator=self.generator)[:, self.part]


def augmented(images: Tensor, augment: str, draws: Draws) -> Tensor:
    """Return augmented images of the same shape `(B, C, H, W)`: uint8 in, uint8 out, or float in 0..255 after `crop`.

    `augment` is a value of `DataSpec.augment`; `auto` means `shift` here, where the data set is not known.

    Raises:
        ValueError: if `augment` is no such value.
    """
    if augment == "none":
        return images
    if augment in ("auto", "shift", "shift-flip"):
        images = shift(images, draws)
    elif augment == "crop-flip":
        images = crop(images, draws)
    else:
        raise ValueError(f"augment {augment!r}: valid are auto, none, shift, shift-flip and crop-flip")
    return flip(images, draws) if augment.endswith("-flip") else images


def shift(images: Tensor, draws: Draws) -> Tensor:
    """Move each image by up to an eighth of its size (at least one pixel) in both directions; the border is black."""
    batch, _, height, width = images.shape
    pad_y, pad_x = max(1, height // 8), max(1, width // 8)
    padded = functional.pad(images, (pad_x, pad_x, pad_y, pad_y))
    top = draws.integers(2 * pad_y + 1).to(images.device)
    left = draws.integers(2 * pad_x + 1).to(images.device)
    # A view of all windows of every image; the index copies one window of each image.
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    return windows[torch.arange(batch, device=images.device), :, top, left]


def crop(images: Tensor, draws: Draws) -> Tensor:
    """Crop a random part of each image and scale it to full size by bilinear interpolation; float in 0..255."""
    area, ratio, across, down = draws.uniform(4).to(images.device)
    low, high = (math.log(value) for value in CROP_RATIO)
    aspect = torch.exp(low + (high - low) * ratio)
    side = (CROP_AREA[0] + (CROP_AREA[1] - CROP_AREA[0]) * area).sqrt()
    width, height = (side * aspect.sqrt()).clamp(max=1.0), (side / aspect.sqrt()).clamp(max=1.0)
    theta = torch.zeros(len(images), 2, 3, device=images.device)
    theta[:, 0, 0], theta[:, 0, 2] = width, (1 - width) * (2 * across - 1)
    theta[:, 1, 1], theta[:, 1, 2] = height, (1 - height) * (2 * down - 1)
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    return functional.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)


def flip(images: Tensor, draws: Draws) -> Tensor:
    """Mirror each image left to right with probability 1/2."""
    mirrored = (draws.uniform(1)[0] < 0.5).to(images.device)
    return torch.where(mirrored.view(-1, 1, 1, 1), images.flip(3), images)
