"""Memory that a network takes while it runs: bytes of live tensors, counted on the CPU with a few images.

The tensors are those that a GPU would hold; its workspaces of convolutions and the gaps of its allocator come on top.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from raprune.channels.evaluating import evaluating
from raprune.channels.live import LiveStorages

FEWEST = 2
"""Smallest number of images that is counted with; batch norm needs two."""


class LiveTensors(LiveStorages):
    """Context that counts the bytes of the tensors that are made in it, as long as they live."""

    def __init__(self) -> None:
        super().__init__()
        self.used = 0
        self.peak = 0
        """Largest value of `used`."""

    def made(self, key: int, size: int, tensor: Tensor, results: Sequence[Tensor]) -> None:
        self.used += size
        self.peak = max(self.peak, self.used)

    def freed(self, key: int, size: int) -> None:
        self.used -= size


def peak_bytes(work: Callable[[Tensor], object], image: Tensor, images: int) -> int:
    """Estimate the peak memory of `work` on a batch of `images` images like `image`, `(1, C, H, W)`, in bytes.

    It is counted with 2, 4, ... images, until most of it grows with the images, and continued in proportion. The batch
    itself is included.
    """
    count, each = min(FEWEST, images), 0.0
    peak = _counted(work, image, count)
    while count < images and each * count < peak / 2:
        more = min(2 * count, images)
        larger = _counted(work, image, more)
        each = (larger - peak) / (more - count)
        count, peak = more, larger
    return round(peak + each * (images - count))


def evaluation_bytes(model: nn.Module, image: Tensor, images: int) -> int:
    """Estimate the peak memory of an evaluation of `model`, as `peak_bytes`."""
    with evaluating(model), torch.no_grad():
        return peak_bytes(model, image, images)


def _counted(work: Callable[[Tensor], object], image: Tensor, images: int) -> int:
    with LiveTensors() as live:
        work(image.repeat(images, 1, 1, 1))
    return live.peak
