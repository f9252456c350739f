"""The second kind of id that a position of an axis can carry: that of the head which it belongs to.

Where an axis of channels is split into (heads, width), each position gets a *head id* beside its own id. A *layer* is
an integer tensor of the shape of an activation, with the head id of each element; a tensor that was split several ways
has several layers. Head ids become removable heads if a batched product or fused attention ran head by head. Other
splits, such as channel shuffles, leave nothing behind.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from raprune.channels.code import Reshape, reshape_here

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class HeadSplit:
    """One split of an axis of channels into heads and widths."""

    module: str
    """Name of the module that was running."""
    heads: Ids
    """Head ids, in order."""
    widths: Ids
    """Ids of the channels of the first head, which stand for those of every head."""


class HeadShadows:
    """Layers of the activations, and what was seen of head ids in the pass."""

    def __init__(self) -> None:
        self._layers = WeakIdKeyDictionary()
        self._own = WeakIdKeyDictionary()
        self._mixed = WeakIdKeyDictionary()
        self._used_once = False
        """True once a tensor has layers; most networks have none."""
        self.num_ids = 1
        """Number of head ids; id 0 is no head."""
        self.running = False
        """True while an operation runs that takes a tensor with layers."""
        self.tags: list[tuple[Ids, Ids]] = []
        """Pairs of the ids of positions and of their heads."""
        self.pairs: list[tuple[Ids, Ids]] = []
        """Head ids that must be removed together."""
        self.freezes: list[tuple[Ids, str, str]] = []
        """Head ids that must stay, the module and the reason."""
        self.used: list[Ids] = []
        """Head ids over which a product ran head by head."""
        self.splits: list[HeadSplit] = []
        self.reshapes: dict[Reshape, None] = {}
        """Reshapes that split an axis into heads, or join heads, each once."""
        self.joined: list[tuple[Ids, Ids]] = []
        """Ids of biases that were joined to one, and of the channels that have them."""
        self.products: list[tuple[Ids, Ids]] = []
        """Ids of the queries and of the keys of a product, which nothing has changed since a layer wrote them; shape
        `(heads, width)`."""
        self.scales: list[tuple[Ids, Ids]] = []
        """Ids of the widths of queries whose products PyTorch scales by their number, and of all their positions."""

    def enter(self, values: Iterable[Tensor]) -> None:
        """Note whether one of an operation's tensors has layers, or is a mean of heads."""
        self.running = False
        if self._used_once:
            for value in values:
                self.running = self.running or value in self._layers
                self.freeze_mixed(value)

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Record the couplings in this context as seen behind a split."""
        before, self.running = self.running, True
        try:
            yield
        finally:
            self.running = before

    def layers(self, value: object) -> tuple[Tensor, ...]:
        """Return the layers of an activation."""
        return self._layers.get(value, ()) if self._used_once and isinstance(value, Tensor) else ()

    def set_layers(self, value: Tensor, layers: Iterable[Tensor]) -> None:
        """Attach layers; without any, those that the tensor has are dropped."""
        kept = tuple(layers)
        if kept:
            self._used_once = True
            self._layers[value] = kept
        else:
            self._layers.pop(value, None)

    def own(self, value: object) -> Tensor | None:
        """Return the ids that the elements had before the split, each its own; None if not known."""
        return self._own.get(value) if isinstance(value, Tensor) else None

    def set_own(self, value: Tensor, ids: Tensor | None) -> None:
        """Attach the ids of before the split."""
        if ids is None:
            self._own.pop(value, None)
        else:
            self._own[value] = ids

    def new_ids(self, count: int) -> Ids:
        """Return so many new head ids."""
        ids = np.arange(self.num_ids, self.num_ids + count)
        self.num_ids += count
        return ids

    def record_reshape(self, module: str, channels: list[int], rank: int, same: Iterable[tuple[int, int]] = ()) -> None:
        """Record the place in the network's code that is reshaping heads; `channels` are axes of the result.

        `same` are axes of the result that are axes of the reshaped tensor, which follow.
        """
        reshape = reshape_here(module, channels, rank, same)
        if reshape is not None:
            self.reshapes[reshape] = None

    def record_split(self, module: str, heads: Ids, widths: Ids) -> None:
        """Record the split of an axis into heads and widths in a module."""
        self.splits.append(HeadSplit(module, heads, widths))

    def tag(self, ids: Ids, heads: Ids) -> None:
        """Record the heads that positions belong to."""
        real = (ids != 0) & (heads != 0)
        self.tags.append((ids[real], heads[real]))

    def couple(self, left: Ids, right: Ids) -> None:
        """Couple heads, one by one."""
        self.pairs.append((left, right))

    def freeze(self, ids: Ids, module: str, reason: str) -> None:
        """Freeze heads, with the reason."""
        unique = np.unique(ids)
        self.freezes.append((unique[unique != 0], module, reason))

    def freeze_if_used(self, value: Tensor, ids: Ids, module: str, reason: str) -> None:
        """Freeze heads as soon as an operation uses `value`."""
        self._mixed[value] = [*self._mixed.get(value, ()), (ids, module, reason)]

    def freeze_mixed(self, value: Tensor) -> None:
        """Freeze the heads that were mixed to `value`, which is used."""
        for ids, module, reason in self._mixed.pop(value, ()):
            self.freeze(ids, module, reason)
