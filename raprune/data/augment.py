"""Training augmentation of a whole batch on its device. Random numbers come from the CPU, the same for every device."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

CROP_AREA = (0.35, 1.0)
"""Share of the image that a random crop keeps. ImageNet's recipe goes down to 0.08, for many more epochs than a
fine-tuning has."""
CROP_RATIO = (3 / 4, 4 / 3)


@dataclass(frozen=True)
class Draws:
    """Random numbers for a batch of `count` images, of which those of `part` are given out.

    Processes that share a batch draw for all of it: together they see what one would see alone.
    """

    generator: torch.Generator
    """On the CPU."""
    count: int
    part: slice

    def integers(self, high: int) -> Tensor:
        """One integer in `[0, high)` for each image of the part."""
        return torch.randint(0, high, (self.count,), generator=self.generator)[self.part]

    def uniform(self, rows: int) -> Tensor:
        """`rows` numbers in [0, 1) for each image of the part: `(rows, images)`."""
        return torch.rand(rows, self.count, generator=self.generator)[:, self.part]


def augmented(images: Tensor, augment: str, draws: Draws) -> Tensor:
    """New images of the same shape: uint8 `(B, C, H, W)` in; uint8 out, or float in 0..255 after `crop`.

    `augment` is a value of `DataSpec.augment`; `auto`, where nobody knew the data set, is `shift`.
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
    """Each image moved by up to an eighth of its size (at least a pixel) both ways; black comes in."""
    batch, _, height, width = images.shape
    pad_y, pad_x = max(1, height // 8), max(1, width // 8)
    padded = functional.pad(images, (pad_x, pad_x, pad_y, pad_y))
    top = draws.integers(2 * pad_y + 1).to(images.device)
    left = draws.integers(2 * pad_x + 1).to(images.device)
    # All windows of every image as a view; the index copies one window of each.
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    return windows[torch.arange(batch, device=images.device), :, top, left]


def crop(images: Tensor, draws: Draws) -> Tensor:
    """A random part of each image, scaled back to full size by bilinear interpolation; float in 0..255."""
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
    """Half of the images mirrored left to right."""
    mirrored = (draws.uniform(1)[0] < 0.5).to(images.device)
    return torch.where(mirrored.view(-1, 1, 1, 1), images.flip(3), images)
