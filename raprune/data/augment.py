"""Training augmentation of a whole batch on its device. Random numbers come from the CPU, the same for every device."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

CROP_AREA = (0.35, 1.0)
"""Share of the image that a random crop keeps. ImageNet's recipe goes down to 0.08, for many more epochs than a
fine-tuning has."""
CROP_RATIO = (3 / 4, 4 / 3)


def augmented(images: Tensor, augment: str, generator: torch.Generator) -> Tensor:
    """New images of the same shape: uint8 `(B, C, H, W)` in; uint8 out, or float in 0..255 after `crop`.

    `augment` is a value of `DataSpec.augment`; `auto`, where nobody knew the data set, is `shift`.
    """
    if augment == "none":
        return images
    if augment in ("auto", "shift", "shift-flip"):
        images = shift(images, generator)
    elif augment == "crop-flip":
        images = crop(images, generator)
    else:
        raise ValueError(f"augment {augment!r}: valid are auto, none, shift, shift-flip and crop-flip")
    return flip(images, generator) if augment.endswith("-flip") else images


def shift(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image moved by up to an eighth of its size (at least a pixel) both ways; black comes in."""
    batch, _, height, width = images.shape
    pad_y, pad_x = max(1, height // 8), max(1, width // 8)
    padded = functional.pad(images, (pad_x, pad_x, pad_y, pad_y))
    top = torch.randint(0, 2 * pad_y + 1, (batch,), generator=generator).to(images.device)
    left = torch.randint(0, 2 * pad_x + 1, (batch,), generator=generator).to(images.device)
    # All windows of every image as a view; the index copies one window of each.
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    return windows[torch.arange(batch, device=images.device), :, top, left]


def crop(images: Tensor, generator: torch.Generator) -> Tensor:
    """A random part of each image, scaled back to full size by bilinear interpolation; float in 0..255."""
    batch = len(images)
    area, ratio, across, down = torch.rand(4, batch, generator=generator).to(images.device)
    low, high = (math.log(value) for value in CROP_RATIO)
    aspect = torch.exp(low + (high - low) * ratio)
    side = (CROP_AREA[0] + (CROP_AREA[1] - CROP_AREA[0]) * area).sqrt()
    width, height = (side * aspect.sqrt()).clamp(max=1.0), (side / aspect.sqrt()).clamp(max=1.0)
    theta = torch.zeros(batch, 2, 3, device=images.device)
    theta[:, 0, 0], theta[:, 0, 2] = width, (1 - width) * (2 * across - 1)
    theta[:, 1, 1], theta[:, 1, 2] = height, (1 - height) * (2 * down - 1)
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    return functional.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)


def flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Half of the images mirrored left to right."""
    mirrored = (torch.rand(len(images), generator=generator) < 0.5).to(images.device)
    return torch.where(mirrored.view(-1, 1, 1, 1), images.flip(3), images)
