"""A streamed training split for the training loop: batches in random order, normalised, on the device."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from raprune.data.arrays import Split
from raprune.data.augment import Augmentation, augmented, draw
from raprune.data.batches import DeviceSplit, batch_sizes
from raprune.data.ranks import ALONE, Ranks
from raprune.data.shuffle import mixed, pool_size
from raprune.data.stream import StreamReader, StreamSource
from raprune.data.transfer import sent
from raprune.errors import DataError


@dataclass(frozen=True)
class StreamedSplit:
    """A stream, its reader, and the normalisation of its batches."""

    source: StreamSource
    reader: StreamReader
    empty: DeviceSplit
    """A split without images on the device of the batches, with their normalisation and memory format."""

    def __len__(self) -> int:
        return self.source.count

    @property
    def device(self) -> torch.device:
        return self.empty.device

    @property
    def layout(self) -> torch.memory_format:
        return self.empty.layout

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield every image once, in the same order each time: normalised `(B, C, H, W)`, labels `(B,)`.

        Raises:
            DataError: if an image cannot be read or decoded.
        """
        with closing(self.reader.blocks(self.source, seed=0, rank=0, size=1)) as blocks:
            for block in blocks:
                images, labels = torch.from_numpy(block.images), torch.from_numpy(block.labels)
                placed = replace(self.empty, images=images.to(self.device), labels=labels.to(self.device))
                yield from placed.batches(batch_size)

    def shuffled(
        self, batch_size: int, generator: torch.Generator, augment: str | Augmentation = "none", ranks: Ranks = ALONE
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield one epoch as `DeviceSplit.shuffled` does, in another order of the files each time.

        One process alone sees every image once. With several ranks, each process reads its own rows; a process that
        has fewer rows than its part of the epoch reads some rows again.

        Raises:
            DataError: if an image cannot be read or decoded.
        """
        sizes = batch_sizes(len(self), batch_size)
        parts = [ranks.part(size) for size in sizes]
        capacity = pool_size(int(np.prod(self.source.shape)), batch_size)
        seed = int(torch.randint(2**62, (), generator=generator))
        drawn = sent(draw(augment, sizes, parts, self.source.shape, generator), self.device)
        numbers = drawn.split([part.stop - part.start for part in parts], dim=1)
        with closing(self._blocks(seed, ranks)) as blocks:
            batches = mixed(blocks, [part.stop - part.start for part in parts], capacity=capacity, seed=seed)
            for of_batch, batch in zip(numbers, batches, strict=True):
                images, labels = torch.from_numpy(batch.images), torch.from_numpy(batch.labels)
                images, labels = sent(images, self.device), sent(labels, self.device)
                images = augmented(images, augment, of_batch)
                yield next(replace(self.empty, images=images, labels=labels).batches(len(labels)))

    def _blocks(self, seed: int, ranks: Ranks) -> Generator[Split, None, None]:
        """Yield the rank's images; after the last image start again in another order."""
        for again in itertools.count():
            found = False
            blocks = self.reader.blocks(self.source, seed=seed + again, rank=ranks.rank, size=ranks.size)
            with closing(blocks):
                for block in blocks:
                    found = True
                    yield block
            if not found:
                raise DataError(
                    f"{self.source.files.where}: no training images for process {ranks.rank + 1} of {ranks.size}.",
                    hint="Use fewer processes, or check whether the files changed since the run began.",
                )
