"""Memory that a network takes while it runs: bytes of live tensors, counted on the CPU with a few images.

The tensors are those that a GPU would hold; its workspaces of convolutions and the gaps of its allocator come on top.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from raprune.channels.evaluating import evaluating

FEWEST = 2
"""Smallest number of images that is counted with; batch norm needs two."""


class LiveTensors(TorchDispatchMode):
    """Context that counts the bytes of the tensors that are made in it, as long as they live."""

    def __init__(self) -> None:
        super().__init__()
        self.used = 0
        self.peak = 0
        """Largest value of `used`."""
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor):
                # Weights and images are not made here, but may be returned as a view.
                self._count(leaf, made=False)
        found = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(found):
            if isinstance(leaf, Tensor):
                self._count(leaf, made=True)
        return found

    def _count(self, tensor: Tensor, *, made: bool) -> None:
        storage = tensor.untyped_storage()
        # The object of a storage lives as long as its memory, also while only the backward pass needs it.
        if id(storage) in self._known:
            return
        size = storage.nbytes() if made else 0
        self._known.add(id(storage))
        self.used += size
        self.peak = max(self.peak, self.used)
        weakref.finalize(storage, self._release, id(storage), size)

    def _release(self, key: int, size: int) -> None:
        self._known.discard(key)
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
