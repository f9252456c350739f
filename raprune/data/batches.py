"""A split on its device as uint8; batches are normalised and augmented on the device."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from raprune.data.arrays import Split
from raprune.data.augment import Augmentation, augmented, draw
from raprune.data.ranks import ALONE, Ranks
from raprune.data.transfer import sent


@dataclass(frozen=True)
class DeviceSplit:
    """Images `(N, C, H, W)` uint8 and labels `(N,)` int64 on one device, and the figures that normalise the images."""

    images: Tensor
    labels: Tensor
    mean: Tensor
    """Mean of each channel, shape `(C, 1, 1)`, for pixels in 0..255."""
    scale: Tensor
    """1 over the standard deviation of each channel, shape `(C, 1, 1)`, for pixels in 0..255."""
    layout: torch.memory_format = torch.contiguous_format
    """Memory format of the batches."""

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
        """Copy `split` to `device`; `mean` and `std` are those of pixels in [0, 1], and batches have type `dtype`.

        On the CPU the images are not copied. Ray may have mapped their memory read-only, so nothing may write to it.
        """
        images, labels = on_host(split)
        images, labels = images.to(device), labels.to(device)
        return cls(images, labels, *figures(mean, std, images.device, dtype), layout)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def device(self) -> torch.device:
        return self.images.device

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield all images in order: normalised images `(B, C, H, W)` and labels `(B,)`."""
        for start in range(0, len(self), batch_size):
            stop = start + batch_size
            yield self.normalise(self.images[start:stop]), self.labels[start:stop]

    def shuffled(
        self, batch_size: int, generator: torch.Generator, augment: str | Augmentation = "none", ranks: Ranks = ALONE
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield one epoch in random order: normalised and augmented images `(B, C, H, W)`, labels `(B,)`.

        With several ranks, each process gets its part of every batch of `batch_size`.

        `generator` is on the CPU, so that a seed gives the same order and augmentation on every device. No image is
        dropped: a last batch of one image is joined to the batch before it, because batch norm cannot train on one
        image.
        """
        epoch = EpochDraws.drawn(len(self), batch_size, generator, augment, self.images.shape[1:], ranks)
        for rows, numbers in epoch.sent(self.device):
            yield self.normalise(augmented(self.images[rows], augment, numbers)), self.labels[rows]

    def normalised(self, mean: Sequence[float], std: Sequence[float]) -> DeviceSplit:
        """Return the same images with another normalisation; `mean` and `std` are those of pixels in [0, 1]."""
        mean_C11, scale_C11 = figures(mean, std, self.device, self.mean.dtype)
        return replace(self, mean=mean_C11, scale=scale_C11)

    def take(self, count: int, generator: torch.Generator) -> DeviceSplit:
        """Draw `count` images without replacement; return the whole split if it has no more than `count`."""
        if count >= len(self):
            return self
        rows = torch.randperm(len(self), generator=generator)[:count].to(self.device)
        return replace(self, images=self.images[rows], labels=self.labels[rows])

    def normalise(self, images: Tensor) -> Tensor:
        """Return images as a batch: normalised, in the type of `mean` and in `layout`."""
        # A copy, because what follows is done in place, and images of this type may be the split's own.
        batch = images.to(self.mean.dtype, copy=True)
        batch.sub_(self.mean).mul_(self.scale)
        return batch.contiguous(memory_format=self.layout)


def on_host(split: Split) -> tuple[Tensor, Tensor]:
    """Return images and labels as tensors in the same memory. Nothing may write to them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable", category=UserWarning)
        return torch.from_numpy(split.images), torch.from_numpy(split.labels)


def figures(
    mean: Sequence[float], std: Sequence[float], device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return `mean` and `scale` of a `DeviceSplit`, each of shape `(C, 1, 1)`; `mean` and `std` as for `place`."""
    return (
        (torch.tensor(mean, dtype=torch.float64) * 255).to(device, dtype).view(-1, 1, 1),
        (1 / (torch.tensor(std, dtype=torch.float64) * 255)).to(device, dtype).view(-1, 1, 1),
    )


@dataclass(frozen=True)
class EpochDraws:
    """Everything random in one epoch for one process, on the CPU: the order of the images and their augmentation."""

    rows: Tensor
    """Images in the order in which the process trains on them, shape `(M,)`."""
    numbers: Tensor
    """Numbers of `raprune.data.augment.draw` for these images, shape `(numbers, M)`."""
    sizes: list[int]
    """Number of these images in each batch."""

    @classmethod
    def drawn(
        cls,
        count: int,
        batch_size: int,
        generator: torch.Generator,
        augment: str | Augmentation,
        shape: Sequence[int],
        ranks: Ranks,
    ) -> EpochDraws:
        """Draw an epoch over `count` images of `shape` `(C, H, W)` in batches of `batch_sizes`."""
        order, sizes = torch.randperm(count, generator=generator), batch_sizes(count, batch_size)
        parts = [ranks.part(size) for size in sizes]
        rows = torch.cat([batch[part] for batch, part in zip(order.split(sizes), parts, strict=True)])
        return cls(rows, draw(augment, sizes, parts, shape, generator), [part.stop - part.start for part in parts])

    def sent(self, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the rows and numbers of each batch on `device`, after one copy of each for the whole epoch."""
        rows, numbers = sent(self.rows, device), sent(self.numbers, device)
        yield from zip(rows.split(self.sizes), numbers.split(self.sizes, dim=1), strict=True)


def batch_sizes(count: int, batch_size: int) -> list[int]:
    """Return the sizes of the batches of one epoch over `count` images; no batch has one image unless `count` is 1."""
    full, rest = divmod(count, batch_size)
    sizes = [batch_size] * full
    if rest == 1 and full:
        sizes[-1] += 1
    elif rest:
        sizes.append(rest)
    return sizes
