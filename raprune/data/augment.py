"""Training augmentation of a whole batch on its device.

Random numbers are drawn on the CPU, so that all devices see the same numbers, for a whole epoch at once, so that they
take one copy to the device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

CROP_AREA = (0.35, 1.0)
"""Range of the fraction of the image's area that a random crop keeps. ImageNet's recipe goes down to 0.08, for many
more epochs than fine-tuning has."""
CROP_RATIO = (3 / 4, 4 / 3)
"""Range of the crop's width over its height."""


VALID = ("auto", "none", "shift", "shift-flip", "crop-flip")
"""Values of `DataSpec.augment`. `auto` means `shift` here, where the data set is not known."""


def draw(
    augment: str, sizes: Sequence[int], parts: Sequence[slice], shape: Sequence[int], generator: torch.Generator
) -> Tensor:
    """Draw the random numbers of an epoch at once: shape `(numbers, images)`, float32 on the CPU.

    `sizes` are the sizes of the batches, of which this process gets the images of `parts`; `shape` is that of an image,
    `(C, H, W)`. Processes that share a batch each draw the numbers of the whole batch, so that together they use the
    same numbers as one process alone. `generator` is on the CPU.

    Raises:
        ValueError: if `augment` is no value of `DataSpec.augment`.
    """
    if augment not in VALID:
        raise ValueError(f"augment {augment!r}: valid are {', '.join(VALID[:-1])} and {VALID[-1]}")
    batches = zip(sizes, parts, strict=True)
    return torch.cat([_of_batch(augment, size, shape, generator)[:, part] for size, part in batches], dim=1)


def _of_batch(augment: str, count: int, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    numbers = [torch.empty(0, count)]
    if augment in ("auto", "shift", "shift-flip"):
        for size in shape[1:]:
            numbers.append(torch.randint(0, 2 * _reach(size) + 1, (1, count), generator=generator).float())
    elif augment == "crop-flip":
        numbers.append(torch.rand(4, count, generator=generator))
    if augment.endswith("-flip"):
        numbers.append(torch.rand(1, count, generator=generator))
    return torch.cat(numbers)


def _reach(size: int) -> int:
    """Return the number of pixels by which `shift` moves at most."""
    return max(1, size // 8)


def augmented(images: Tensor, augment: str, numbers: Tensor) -> Tensor:
    """Return augmented images of the same shape `(B, C, H, W)`: uint8 in, uint8 out, or float in 0..255 after `crop`.

    `numbers` are those of `draw` for these images, shape `(numbers, B)`, on their device.
    """
    if augment in ("auto", "shift", "shift-flip"):
        images = shift(images, numbers[:2])
    elif augment == "crop-flip":
        images = crop(images, numbers[:4])
    return flip(images, numbers[-1]) if augment.endswith("-flip") else images


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


def crop(images: Tensor, numbers_4B: Tensor) -> Tensor:
    """Crop a random part of each image and scale it to full size by bilinear interpolation; float in 0..255.

    The numbers, in [0, 1), give area, ratio of the sides, and place across and down.
    """
    area, ratio, across, down = numbers_4B
    low, high = (math.log(value) for value in CROP_RATIO)
    aspect = torch.exp(low + (high - low) * ratio)
    side = (CROP_AREA[0] + (CROP_AREA[1] - CROP_AREA[0]) * area).sqrt()
    width, height = (side * aspect.sqrt()).clamp(max=1.0), (side / aspect.sqrt()).clamp(max=1.0)
    theta = torch.zeros(len(images), 2, 3, device=images.device)
    theta[:, 0, 0], theta[:, 0, 2] = width, (1 - width) * (2 * across - 1)
    theta[:, 1, 1], theta[:, 1, 2] = height, (1 - height) * (2 * down - 1)
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    return functional.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)


def flip(images: Tensor, numbers_B: Tensor) -> Tensor:
    """Mirror each image left to right whose number in [0, 1) is below 1/2."""
    return torch.where((numbers_B < 0.5).view(-1, 1, 1, 1), images.flip(3), images)
