"""Processes that train a network together: the part of a batch that each of them gets."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Ranks:
    """One of `size` processes that train a network together. With more than one, torch.distributed is initialised."""

    rank: int
    """In `[0, size)`."""
    size: int

    def part(self, count: int) -> slice:
        """Which of the `count` images of a batch are this process's.

        A batch with less than two images for each goes through all processes whole: batch norm cannot train on one,
        and how many processes there are must not change which images make a batch.
        """
        if count < 2 * self.size:
            return slice(0, count)
        return slice(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def share(self, images: int, count: int) -> float:
        """What a mean over this process's `images` of a batch of `count` is multiplied by.

        The mean over the processes is then the mean over the batch, also where their parts differ by an image.
        """
        return images * self.size / (count * self.size if count < 2 * self.size else count)


ALONE = Ranks(0, 1)
