"""Changes of normalised batches that no single image knows of: random erasing, mixup and cutmix.

Zhong et al. (2020), "Random Erasing"; Zhang et al. (2018), "mixup"; Yun et al. (2019), "CutMix". An image is mixed with
the one before it in its batch, as in `MixUp` and `CutMix` of `torchvision.transforms.v2`. The random numbers belong to
the seed and the epoch, so that a resumed training draws them again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from raprune.data.transfer import sent
from raprune.spec.job import TrainSpec

ERASED_AREA = (0.02, 0.33)
"""Range of the fraction of an image that is erased."""
ERASED_RATIO = (0.3, 3.3)
"""Range of the erased part's height over its width."""


class Mixing:
    """The changes of a training's batches. `share` changes with every batch."""

    def __init__(self, spec: TrainSpec, device: torch.device, *, seed: int, rank: int) -> None:
        self._spec = spec
        self._device = device
        self._seed = seed % 2**63
        self._rank = rank
        self.share = torch.ones((), device=device) if spec.mixup > 0 or spec.cutmix > 0 else None
        """Part of an image's own label in the loss, a tensor that a captured step reads again each time; the rest is
        that of its partner. None if images are not mixed."""

    def epoch(
        self, batches: Iterator[tuple[Tensor, Tensor]], sizes: Sequence[int], number: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the changed batches of epoch `number`; this process has `sizes` images of each.

        Where images are mixed, labels have shape `(B, 2)`: those of the image itself and of its partner.
        """
        # All processes mix a batch in the same way; each of them erases other parts of its own images.
        mixes = np.random.default_rng([self._seed, number])
        erased = np.random.default_rng([self._seed, number, self._rank + 1])
        spec, numbers = self._spec, None
        if spec.erase > 0:
            drawn = torch.from_numpy(erased.random((5, sum(sizes)), dtype=np.float32))
            numbers = iter(sent(drawn, self._device).split(list(sizes), dim=1))
        for x, y in batches:
            if numbers is not None:
                x = erase(x, next(numbers), spec.erase)
            if self.share is not None:
                x, share = mixed_images(x, spec.mixup, spec.cutmix, mixes)
                self.share.fill_(share)
                y = torch.stack([y, y.roll(1)], dim=1)
            yield x, y


def erase(x: Tensor, numbers_5B: Tensor, chance: float) -> Tensor:
    """Set a random part of some normalised images `(B, C, H, W)` to 0, the mean; change `x` in place and return it.

    The numbers, in [0, 1), give whether it is done, area, ratio of the sides, and place down and across.
    """
    height, width = x.shape[2:]
    happens, area, ratio, down, across = numbers_5B
    low, high = (math.log(value) for value in ERASED_RATIO)
    area = height * width * (ERASED_AREA[0] + (ERASED_AREA[1] - ERASED_AREA[0]) * area)
    ratio = torch.exp(low + (high - low) * ratio)
    tall = (area * ratio).sqrt().round().clamp(max=height)
    wide = (area / ratio).sqrt().round().clamp(max=width)
    top, left = (down * (height - tall + 1)).floor(), (across * (width - wide + 1)).floor()
    rows, columns = torch.arange(height, device=x.device), torch.arange(width, device=x.device)
    in_rows_BH = (rows >= top[:, None]) & (rows < (top + tall)[:, None]) & (happens < chance)[:, None]
    in_columns_BW = (columns >= left[:, None]) & (columns < (left + wide)[:, None])
    return x.masked_fill_((in_rows_BH[:, :, None] & in_columns_BW[:, None, :])[:, None], 0.0)


def mixed_images(x: Tensor, mixup: float, cutmix: float, random: np.random.Generator) -> tuple[Tensor, float]:
    """Return images `(B, C, H, W)`, each mixed with the one before it, and the part that is an image's own.

    `mixup` and `cutmix` are the parameters of the beta distributions of that part; with both, a coin decides.
    """
    height, width = x.shape[2:]
    cuts = cutmix > 0 and (mixup <= 0 or random.random() < 0.5)
    alpha = cutmix if cuts else mixup
    own = float(random.beta(alpha, alpha))
    if not cuts:
        return torch.lerp(x.roll(1, 0), x, own), own
    half = 0.5 * math.sqrt(1 - own)
    row, column = int(random.integers(height)), int(random.integers(width))
    top, bottom = max(0, row - int(half * height)), min(height, row + int(half * height))
    left, right = max(0, column - int(half * width)), min(width, column + int(half * width))
    cut = x.clone()
    cut[:, :, top:bottom, left:right] = x.roll(1, 0)[:, :, top:bottom, left:right]
    return cut, 1 - (bottom - top) * (right - left) / (height * width)
