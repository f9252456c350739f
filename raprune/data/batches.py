"""A split on its device as uint8, normalised and augmented there, a whole batch at a time."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from raprune.data.augment import Draws, augmented
from raprune.data.dataset import Split
from raprune.data.ranks import ALONE, Ranks


@dataclass(frozen=True)
class DeviceSplit:
    """Images `(N, C, H, W)` uint8 and labels `(N,)` int64 on one device, and how they are normalised."""

    images: Tensor
    labels: Tensor
    mean: Tensor
    """`(C, 1, 1)`, of pixels in 0..255."""
    scale: Tensor
    """`(C, 1, 1)`: 1 over the standard deviation of pixels in 0..255."""
    layout: torch.memory_format = torch.contiguous_format
    """Of the batches."""

    @classmethod
    def place(
        cls,
        split: Split,
        mean: Sequence[float],
        std: Sequence[float],
        device: str | torch.device,
        *,
        dtype: torch.dtype = torch.float32,
        layout: torch.memory_format = torch.contiguous_format,
    ) -> DeviceSplit:
        """`split` on `device`; `mean` and `std` are of pixels in [0, 1], and batches come as `dtype`.

        On CPU the images are the split's own memory, which Ray may have mapped read-only: nothing writes to them.
        """
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable", category=UserWarning)
            images, labels = torch.from_numpy(split.images), torch.from_numpy(split.labels)
        images, labels = images.to(device), labels.to(device)
        return cls(images, labels, *_figures(mean, std, images.device, dtype), layout)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def device(self) -> torch.device:
        return self.images.device

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All images in order: normalised `(B, C, H, W)`, labels `(B,)`."""
        for start in range(0, len(self), batch_size):
            stop = start + batch_size
            yield self._normalise(self.images[start:stop]), self.labels[start:stop]

    def shuffled(
        self, batch_size: int, generator: torch.Generator, augment: str = "none", ranks: Ranks = ALONE
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch in random order: normalised and augmented `(B, C, H, W)`, labels `(B,)`.

        Of processes that train together each gets its part of every batch of `batch_size`.

        `generator` is on the CPU, so that a seed gives the same order and augmentation on every device. No image is
        dropped: a single one left over joins the batch before it, as batch norm cannot train on one.
        """
        order = torch.randperm(len(self), generator=generator)
        for part in torch.split(order, batch_sizes(len(self), batch_size)):
            mine = ranks.part(len(part))
            rows = part[mine].to(self.device)
            images = augmented(self.images[rows], augment, Draws(generator, len(part), mine))
            yield self._normalise(images), self.labels[rows]

    def normalised(self, mean: Sequence[float], std: Sequence[float]) -> DeviceSplit:
        """The same images, normalised by other figures, of pixels in [0, 1]."""
        mean_C11, scale_C11 = _figures(mean, std, self.device, self.mean.dtype)
        return replace(self, mean=mean_C11, scale=scale_C11)

    def take(self, count: int, generator: torch.Generator) -> DeviceSplit:
        """`count` images drawn without replacement, all of them if there are fewer."""
        if count >= len(self):
            return self
        rows = torch.randperm(len(self), generator=generator)[:count].to(self.device)
        return replace(self, images=self.images[rows], labels=self.labels[rows])

    def _normalise(self, images: Tensor) -> Tensor:
        batch = images.to(self.mean.dtype)
        # `to` copies unless the images came as floats, which an augmentation has made anew.
        batch.sub_(self.mean).mul_(self.scale)
        return batch.contiguous(memory_format=self.layout)


def _figures(
    mean: Sequence[float], std: Sequence[float], device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """`mean` and `scale` of a `DeviceSplit`."""
    return (
        (torch.tensor(mean, dtype=torch.float64) * 255).to(device, dtype).view(-1, 1, 1),
        (1 / (torch.tensor(std, dtype=torch.float64) * 255)).to(device, dtype).view(-1, 1, 1),
    )


def batch_sizes(count: int, batch_size: int) -> list[int]:
    """The sizes of the batches of one epoch over `count` images."""
    full, rest = divmod(count, batch_size)
    sizes = [batch_size] * full
    if rest == 1 and full:
        sizes[-1] += 1
    elif rest:
        sizes.append(rest)
    return sizes
