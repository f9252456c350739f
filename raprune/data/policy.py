"""RandAugment and TrivialAugment on a batch on its device, with an operation and a strength for each image.

Cubuk et al. (2020), "RandAugment"; Müller, Hutter (2021), "TrivialAugment", in its wide space. Operations and strengths
are those of `RandAugment` and `TrivialAugmentWide` in `torchvision.transforms.v2`, which give a whole batch one
operation and one strength; here each image has its own, and images are interpolated bilinearly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

OPERATIONS = (
    "identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate", "brightness", "color", "contrast",
    "sharpness", "posterize", "solarize", "autocontrast", "equalize",
)  # fmt: skip

BINS = 31
"""Number of strengths, from none to the largest."""


@dataclass(frozen=True)
class Space:
    """A policy: the number of operations on each image, and the largest strength of each."""

    operations: int
    shear: float
    """Tangent of the angle."""
    shift: tuple[float, bool]
    """Translation in pixels, or as a fraction of the image's size if the second value is true."""
    rotation: float
    """Degrees."""
    blend: float
    """Change of the factor of brightness, colour, contrast and sharpness."""
    posterize: int
    """Number of bits of a pixel that are dropped."""
    is_drawn: bool
    """Strengths are drawn; otherwise all have the strength that the job names."""


SPACES = {
    "rand": Space(2, 0.3, (150 / 331, True), 30.0, 0.9, 4, is_drawn=False),
    "trivial": Space(1, 0.99, (32.0, False), 135.0, 0.99, 6, is_drawn=True),
}
"""Policies by name, as a job names them."""


def draw_policy(policy: str, count: int, generator: torch.Generator) -> Tensor:
    """Draw the random numbers in [0, 1) of `count` images: operation, strength and sign of each operation in turn."""
    return torch.rand(3 * SPACES[policy].operations, count, generator=generator)


def apply_policy(images: Tensor, policy: str, magnitude: int, numbers: Tensor) -> Tensor:
    """Return changed images `(B, C, H, W)`, float in 0..255, from images of uint8 or float in 0..255.

    `numbers` are those of `draw_policy`, shape `(numbers, B)`; `magnitude` is the strength in 0..30 of a policy that
    draws none.
    """
    space, images = SPACES[policy], images.float()
    for which_B, strength_B, sign_B in numbers.view(space.operations, 3, -1):
        operation_B = (which_B * len(OPERATIONS)).long()
        bin_B = (strength_B * BINS).floor() if space.is_drawn else torch.full_like(strength_B, magnitude)
        images = operated(images, operation_B, bin_B / (BINS - 1), torch.where(sign_B <= 0.5, -1.0, 1.0), space)
    return images


def operated(images: Tensor, operation_B: Tensor, level_B: Tensor, sign_B: Tensor, space: Space) -> Tensor:
    """Return float images in 0..255 after one operation each: its number in `OPERATIONS`, level in [0, 1], and sign."""
    height, width = images.shape[2:]
    number = {name: place for place, name in enumerate(OPERATIONS)}

    def chosen(*names: str) -> Tensor:
        found = operation_B == number[names[0]]
        for name in names[1:]:
            found = found | (operation_B == number[name])
        return found

    theta_B23 = _maps(operation_B, level_B * sign_B, space, height, width)
    factor_B111 = (1 + space.blend * level_B * sign_B).view(-1, 1, 1, 1)
    step_B111 = (2.0 ** (level_B * space.posterize).round()).view(-1, 1, 1, 1)
    bound_B111 = (255 * (1 - level_B)).view(-1, 1, 1, 1)
    images = _changed(images, chosen("shear_x", "shear_y", "translate_x", "translate_y", "rotate"), _warp, theta_B23)
    for name, plain in (("brightness", torch.zeros_like), ("color", _grey), ("contrast", _even), ("sharpness", _soft)):
        images = _changed(images, chosen(name), _blend_with(plain), factor_B111)
    images = _changed(images, chosen("posterize"), lambda x, step: (x / step).floor() * step, step_B111)
    images = _changed(images, chosen("solarize"), lambda x, bound: torch.where(x >= bound, 255 - x, x), bound_B111)
    images = _changed(images, chosen("autocontrast"), _stretch, factor_B111)
    return _changed(images, chosen("equalize"), _equal, factor_B111)


def _changed(images: Tensor, chosen_B: Tensor, change: Callable[[Tensor, Tensor], Tensor], values: Tensor) -> Tensor:
    """Return `images` with `change(image, value)` in the place of those that are chosen."""
    if images.device.type != "cpu":
        # To pick the chosen ones would wait for the device.
        return torch.where(chosen_B.view(-1, 1, 1, 1), change(images, values), images)
    rows = chosen_B.nonzero().squeeze(1)
    return images.index_copy(0, rows, change(images[rows], values[rows])) if len(rows) else images


def _maps(operation_B: Tensor, amount_B: Tensor, space: Space, height: int, width: int) -> Tensor:
    """Return each image's map from output to input coordinates in [-1, 1], `(B, 2, 3)`, as affine_grid takes it."""
    tall, wide = height / width, width / height
    shear_B, degrees_B = amount_B * space.shear, amount_B * space.rotation
    reach, is_fraction = space.shift
    # Whole pixels, rounded towards zero.
    across_B, down_B = ((amount_B * reach * (size if is_fraction else 1)).trunc() for size in (width, height))
    sine_B, cosine_B = torch.sin(torch.deg2rad(degrees_B)), torch.cos(torch.deg2rad(degrees_B))
    zero_B, one_B = torch.zeros_like(amount_B), torch.ones_like(amount_B)
    rows = {
        # The upper left corner stays where it is.
        "shear_x": (one_B, shear_B * tall, shear_B * tall, zero_B, one_B, zero_B),
        "shear_y": (one_B, zero_B, zero_B, shear_B * wide, one_B, shear_B * wide),
        "translate_x": (one_B, zero_B, -2 * across_B / width, zero_B, one_B, zero_B),
        "translate_y": (one_B, zero_B, zero_B, zero_B, one_B, -2 * down_B / height),
        "rotate": (cosine_B, -sine_B * tall, zero_B, sine_B * wide, cosine_B, zero_B),
    }
    found_B6 = torch.stack([one_B, zero_B, zero_B, zero_B, one_B, zero_B], dim=1)
    for name, entries in rows.items():
        is_it = (operation_B == OPERATIONS.index(name)).view(-1, 1)
        found_B6 = torch.where(is_it, torch.stack(entries, dim=1), found_B6)
    return found_B6.view(-1, 2, 3)


def _warp(images: Tensor, theta_B23: Tensor) -> Tensor:
    grid = functional.affine_grid(theta_B23, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False)


def _blend_with(plain: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the change of an image that moves it away from its plain form, or towards it with a factor below 1."""

    def blend(images: Tensor, factor_B111: Tensor) -> Tensor:
        return torch.lerp(plain(images), images, factor_B111).clamp(0, 255)

    return blend


def _grey(images: Tensor) -> Tensor:
    """Return each image without colours; the image itself unless it has three channels."""
    if images.shape[1] != 3:
        return images
    red, green, blue = images.unbind(1)
    return (0.2989 * red + 0.587 * green + 0.114 * blue).unsqueeze(1).expand_as(images)


def _even(images: Tensor) -> Tensor:
    """Return each image in its mean brightness."""
    return _grey(images).mean((1, 2, 3), keepdim=True).expand_as(images)


def _soft(images: Tensor) -> Tensor:
    """Return each image after a 3x3 smoothing in which the centre counts five times; the border stays as it is."""
    if min(images.shape[2:]) < 3:
        return images
    soft = images.clone()
    soft[:, :, 1:-1, 1:-1] = (9 * functional.avg_pool2d(images, 3, stride=1) + 4 * images[:, :, 1:-1, 1:-1]) / 13
    return soft


def _stretch(images: Tensor, _: Tensor) -> Tensor:
    """Return each channel stretched to 0..255; a channel of one value stays as it is."""
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    return torch.where(high > low, (images - low) * 255 / (high - low).clamp(min=1e-6), images)


def _equal(images: Tensor, _: Tensor) -> Tensor:
    """Return each channel with equally frequent values."""
    from torchvision.transforms.v2 import functional as v2  # loads torchvision: a second that other trainings need not

    return v2.equalize_image(images.round().to(torch.uint8)).float()
