"""A split that stays on the host as uint8, because it does not fit on the device: each batch is copied there.

The images stay where they are, in the memory of the object store that all processes of a node map, so that a node holds
one copy however many workers it has. Only batches are pinned: pinning the split would copy it for each process.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from raprune.data.arrays import Split
from raprune.data.augment import Augmentation, augmented
from raprune.data.batches import DeviceSplit, EpochDraws, figures, on_host
from raprune.data.ranks import ALONE, Ranks
from raprune.data.transfer import sent

AHEAD = 2
"""Number of batches that are gathered before they are asked for."""

Rows = slice | Tensor
Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class HostSplit:
    """Images `(N, C, H, W)` uint8 and labels `(N,)` int64 on the host. Batches are those of a `DeviceSplit`."""

    images: Tensor
    labels: Tensor
    mean: Tensor
    """As in `DeviceSplit`, on the device of the batches."""
    scale: Tensor
    layout: torch.memory_format = torch.contiguous_format

    @classmethod
    def hold(
        cls,
        split: Split,
        mean: Sequence[float],
        std: Sequence[float],
        device: str | torch.device,
        *,
        layout: torch.memory_format = torch.contiguous_format,
    ) -> HostSplit:
        """Hold `split` on the host for batches on `device`; the other arguments are those of `DeviceSplit.place`."""
        images, labels = on_host(split)
        return cls(images, labels, *figures(mean, std, torch.device(device), torch.float32), layout)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def device(self) -> torch.device:
        """Device of the batches."""
        return self.mean.device

    def batches(self, batch_size: int) -> Iterator[Pair]:
        """Yield all images in order: normalised images `(B, C, H, W)` and labels `(B,)`, on the device."""
        parts = (slice(start, start + batch_size) for start in range(0, len(self), batch_size))
        for images, labels in self._copied(parts):
            yield self._normalise(images), labels

    def shuffled(
        self, batch_size: int, generator: torch.Generator, augment: str | Augmentation = "none", ranks: Ranks = ALONE
    ) -> Iterator[Pair]:
        """Yield one epoch as `DeviceSplit.shuffled` does: the same images, in the same order, equally augmented."""
        epoch = EpochDraws.drawn(len(self), batch_size, generator, augment, self.images.shape[1:], ranks)
        numbers = sent(epoch.numbers, self.device).split(epoch.sizes, dim=1)
        copied = self._copied(epoch.rows.split(epoch.sizes))
        for of_batch, (images, labels) in zip(numbers, copied, strict=True):
            yield self._normalise(augmented(images, augment, of_batch)), labels

    def take(self, count: int, generator: torch.Generator) -> DeviceSplit | HostSplit:
        """Draw `count` images without replacement onto the device; return the whole split if it has no more."""
        if count >= len(self):
            return self
        rows = torch.randperm(len(self), generator=generator)[:count]
        images, labels = self.images[rows].to(self.device), self.labels[rows].to(self.device)
        return DeviceSplit(images, labels, self.mean, self.scale, self.layout)

    def normalised(self, mean: Sequence[float], std: Sequence[float]) -> HostSplit:
        """Return the same images with another normalisation; `mean` and `std` are those of pixels in [0, 1]."""
        mean_C11, scale_C11 = figures(mean, std, self.device, self.mean.dtype)
        return replace(self, mean=mean_C11, scale=scale_C11)

    def _normalise(self, images: Tensor) -> Tensor:
        return DeviceSplit(images, self.labels, self.mean, self.scale, self.layout).normalise(images)

    def _copied(self, parts: Iterable[Rows]) -> Iterator[Pair]:
        """Yield images and labels of each of `parts` on the device; a thread gathers the next ones meanwhile.

        The copies are queued on the stream of the computation, which waits for them alone: of a step of ResNet-50 on
        256 images they are about 1 %, so a stream of their own would gain next to nothing.
        """
        with ThreadPoolExecutor(1, thread_name_prefix="gather") as pool:
            gathered: deque[Future[Pair]] = deque()
            for part in parts:
                gathered.append(pool.submit(self._gather, part))
                if len(gathered) > AHEAD:
                    yield self._sent(gathered.popleft().result())
            while gathered:
                yield self._sent(gathered.popleft().result())

    def _gather(self, part: Rows) -> Pair:
        """Copy some images and labels, for a GPU into pinned memory, from which it fetches them by itself."""
        images, labels = self.images[part], self.labels[part]
        if self.device.type == "cpu":
            return images, labels
        # PyTorch keeps pinned memory for the next batches, and gives it out again only when its copy has ended.
        return images.pin_memory(), labels.pin_memory()

    def _sent(self, pair: Pair) -> Pair:
        images, labels = pair
        return images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)


ImageSplit = DeviceSplit | HostSplit
"""A split in memory, on the device or on the host."""
