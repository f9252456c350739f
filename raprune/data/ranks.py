"""Processes that train a network together, and the part of a batch that each process gets."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Ranks:
    """One of `size` processes that train a network together. With more than one, torch.distributed is initialised."""

    rank: int
    """Number of this process, in `[0, size)`."""
    size: int
    """Number of processes."""

    def part(self, count: int) -> slice:
        """Return the slice of a batch of `count` images that this process gets.

        A batch with less than two images per process goes through all processes whole: batch norm cannot train on one
        image, and the number of processes must not change the composition of a batch.
        """
        if count < 2 * self.size:
            return slice(0, count)
        return slice(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def mean_factor(self, images: int, count: int) -> float:
        """Return the factor for a mean over this process's `images` images of a batch of `count` images.

        With the factor, the mean over the processes is the mean over the batch, even if the parts differ by an image.
        """
        return images * self.size / (count * self.size if count < 2 * self.size else count)


ALONE = Ranks(0, 1)
