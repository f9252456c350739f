"""Numbers of modules that say how a split, a slice or a reshape divides an axis of channels.

`torch.split(x, self.splits, 1)` has sizes that Python fixed. Where attributes of the running module have these sizes,
the parts lose channels apart, and a cut sets the attributes (`SizeAttribute`). The proof shows that this was right.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from raprune.channels.positions import IndexArray

OTHERS = ("window", "scale", "layer", "block", "depth", "patch", "kernel", "stride", "pad", "eps", "drop", "index")
"""Parts of names of numbers that mean something else, even if they are equal by chance."""


@dataclass(frozen=True)
class SizedPart:
    """A number on a module that is the number of the channels `ids`."""

    module: str
    name: str
    """Name of the attribute."""
    place: int | None
    """Index in the attribute, if it is a tuple or a list."""
    ids: IndexArray
    heads: IndexArray | None = None
    """Ids of the heads, of each of which `ids` are the channels; None outside attention."""
    times_heads: bool = False
    """True if the number is that of the channels of all heads."""


def sized_parts(
    owner: nn.Module, module: str, parts: Sequence[IndexArray], heads: IndexArray | None = None
) -> list[SizedPart] | None:
    """Return the numbers of `owner` that are the sizes of the parts of an axis; None if some size is nowhere.

    A tuple or list of all sizes is taken before single numbers. One part may have no number if the axis has one.
    """
    sizes = [len(part) for part in parts]
    for name, values in sequences_of(owner):
        if list(values) == sizes:
            return [SizedPart(module, name, place, part, heads) for place, part in enumerate(parts)]
    whole = np.concatenate(list(parts))
    found, missing = [], 0
    for size in dict.fromkeys(sizes):
        own = list(_of_size(owner, module, parts[sizes.index(size)], heads))
        missing += not own
        found += own
    # The widths of a head have no total: they are not divided further.
    total = [] if heads is not None or len(whole) in sizes else list(_of_size(owner, module, whole, None))
    if missing > bool(total):
        return None
    return [*found, *total]


def _of_size(owner: nn.Module, module: str, ids: IndexArray, heads: IndexArray | None) -> Iterator[SizedPart]:
    for name, value in numbers_of(owner):
        if value == len(ids):
            yield SizedPart(module, name, None, ids, heads)
        elif heads is not None and value == len(ids) * len(heads):
            yield SizedPart(module, name, None, ids, heads, times_heads=True)


def numbers_of(owner: nn.Module) -> Iterator[tuple[str, int]]:
    """Yield the whole numbers above 1 among the attributes of a user's module that may be sizes of channels."""
    if not type(owner).__module__.startswith("torch.nn."):
        for name, value in vars(owner).items():
            if type(value) is int and value > 1 and not any(part in name.lower() for part in OTHERS):
                yield name, value


def sequences_of(owner: nn.Module) -> Iterator[tuple[str, Sequence[int]]]:
    """Yield the tuples and lists of whole numbers among the attributes of a module."""
    for name, value in vars(owner).items():
        if isinstance(value, tuple | list) and value and all(type(part) is int for part in value):
            yield name, value
