"""Activations that live at the same time, as functions of the widths: the closed form of a network's peak memory.

A second mode above the tracer sees which storages an eager forward pass holds after each operation. The shadow of a
tensor says how many of its elements belong to each group of channels, so its bytes are an affine function of the
widths, and so is the sum of what lives at one moment. The peak is the largest of these sums.
"""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, UntypedStorage
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from raprune.channels.grouping import Grouping
from raprune.channels.ids import compact
from raprune.channels.members import Factor
from raprune.channels.positions import IndexArray


class LiveStorages(TorchDispatchMode, ABC):
    """Context that calls `made` and `freed` for the storages of the tensors that are made in it."""

    def __init__(self) -> None:
        super().__init__()
        self._known: dict[int, weakref.ref[UntypedStorage]] = {}
        """References that tell when a storage is free, by its key."""

    @abstractmethod
    def made(self, key: int, size: int, tensor: Tensor, results: Sequence[Tensor]) -> None:
        """Called for a new storage of `size` bytes, with the tensor that was made and all results of its operation.

        `key` names the storage.
        """

    @abstractmethod
    def freed(self, key: int, size: int) -> None:
        """Called once the memory of a storage that was made is free."""

    def written(self, key: int, tensor: Tensor) -> None:
        """Called for an operation's result in a storage that is known."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # As in `Tracer`: the wrapper would import the compiler.
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for leaf in _tensors((*args, *kwargs.values())):
            # Weights and images are not made here, but may be returned as a view.
            self._count(leaf, None)
        found = func(*args, **kwargs)
        results = list(_tensors(found if isinstance(found, tuple | list) else (found,)))
        for result in results:
            self._count(result, results)
        return found

    def _count(self, tensor: Tensor, results: Sequence[Tensor] | None) -> None:
        storage = tensor.untyped_storage()
        # The object of a storage lives as long as its memory, also while only the backward pass needs it.
        key = id(storage)
        if key in self._known:
            if results is not None:
                self.written(key, tensor)
            return
        size = None if results is None else storage.nbytes()
        # Held here, not by `weakref.finalize`: it would keep this object as long as the weights live.
        self._known[key] = weakref.ref(storage, lambda _: self._free(key, size))
        if size is not None and results is not None:
            self.made(key, size, tensor, results)

    def _free(self, key: int, size: int | None) -> None:
        del self._known[key]
        if size is not None:
            self.freed(key, size)


def _tensors(values: Sequence[Any]) -> Iterator[Tensor]:
    """Yield the tensors among the arguments of an operation, which are values and lists of values."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, tuple | list):
            yield from (item for item in value if isinstance(item, Tensor))


@dataclass(frozen=True, eq=False)
class _Elements:
    """The different ids of a shadow, and how many of its elements have each; an axis that is expanded counts once."""

    ids: IndexArray
    counts: IndexArray
    heads: tuple[IndexArray, ...] = ()
    """Head ids beside `ids`, one array for each way in which the tensor was split into heads."""


@dataclass(frozen=True)
class _Storage:
    """Bytes of one storage: `bytes_each` for each of `elements`, the rest is owned by no channel."""

    size: int
    bytes_each: int = 0
    elements: _Elements = _Elements(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))

    @property
    def fixed(self) -> int:
        """Bytes beside those of the elements."""
        return self.size - self.bytes_each * int(self.elements.counts.sum())


class LiveActivations(LiveStorages):
    """The storages of a traced forward pass that live at the same time. It is entered after the tracer."""

    def __init__(
        self, shadow: Callable[[Tensor], Tensor | None], layers: Callable[[Tensor], tuple[Tensor, ...]]
    ) -> None:
        """`shadow` gives the ids of an activation's elements, or None (`Tracer.activation`), `layers` their heads."""
        super().__init__()
        self._shadow = shadow
        self._layers = layers
        self._storages: list[_Storage] = []
        self._elements = WeakIdKeyDictionary()
        """Elements of each shadow, which most operations pass on: they are counted once."""
        self._now: dict[int, int] = {}
        """Key of each living storage -> its index in `_storages`."""
        self._moments: dict[frozenset[int], None] = {}
        self._has_grown = False

    def made(self, key: int, size: int, tensor: Tensor, results: Sequence[Tensor]) -> None:
        self._now[key] = len(self._storages)
        # The indices of a max pooling have no shadow of their own, and as many channels as its maxima.
        alike = (self._shadow(result) for result in (tensor, *results) if result.shape == tensor.shape)
        self._storages.append(self._storage(size, tensor, next((ids for ids in alike if ids is not None), None)))
        self._has_grown = True

    def written(self, key: int, tensor: Tensor) -> None:
        """An operation in place may give channels to a tensor that had none, such as a buffer of zeros."""
        size = tensor.untyped_storage().nbytes()
        if key in self._now and tensor.numel() * tensor.element_size() == size:
            self._storages[self._now[key]] = self._storage(size, tensor, self._shadow(tensor))

    def freed(self, key: int, size: int) -> None:
        self._keep_moment()
        self._now.pop(key, None)

    def moments(self, grouping: Grouping, images: int) -> tuple[Factor, ...]:
        """Return the bytes of each moment that may be the peak; `images` are the bytes of the network's input."""
        self._keep_moment()
        groups = grouping.groups
        base = len(groups) + 1
        different = dict.fromkeys(storage.elements for storage in self._storages)
        keys = {elements: _keys(elements, grouping, base) for elements in different}
        columns = np.unique(np.concatenate([[0], *(np.unique(key) for key in keys.values())]).astype(np.int64))
        counted = {
            elements: np.bincount(np.searchsorted(columns, key), elements.counts, len(columns))
            for elements, key in keys.items()
        }
        rows = np.array([storage.bytes_each * counted[storage.elements] for storage in self._storages])
        rows = rows.reshape(-1, len(columns))
        rows[:, 0] += [storage.fixed for storage in self._storages]
        counts = np.array([1, *(group.num_channels for group in groups)], dtype=np.float64)
        pairs = [divmod(int(column), base) for column in columns]
        rows /= [counts[head] * counts[group] for head, group in pairs]
        sums = np.array([rows[list(moment)].sum(axis=0) for moment in self._moments if moment])
        sums = sums.reshape(-1, len(columns))
        sums[:, 0] += images
        return tuple(_factors(_undominated(np.rint(sums)), pairs, [group.name for group in groups]))

    def _storage(self, size: int, tensor: Tensor, ids: Tensor | None) -> _Storage:
        if ids is not None and ids.shape != tensor.shape:
            ids = None
        layers = self._layers(tensor)
        if tensor.numel() == 0 or (ids is None and not layers):
            return _Storage(size)
        with _no_modes():
            if ids is None or layers:
                elements = _elements_of([torch.zeros(1, dtype=torch.int64) if ids is None else ids, *layers])
            else:
                elements = self._elements.get(ids) or self._elements.setdefault(ids, _elements_of([ids]))
        return _Storage(size, tensor.numel() // int(elements.counts.sum()) * tensor.element_size(), elements)

    def _keep_moment(self) -> None:
        # Only a moment before something is freed can be a peak.
        if self._has_grown:
            self._moments[frozenset(self._now.values())] = None
            self._has_grown = False


def _no_modes() -> AbstractContextManager[Any]:
    """Return a context in which the tracer does not see the operations on ids, which would double a trace's time."""
    context: AbstractContextManager[Any] = torch._C._DisableTorchDispatch()
    return context


def _elements_of(shadows: Sequence[Tensor]) -> _Elements:
    """Count the different ids of a tensor; behind the first shadow come the layers of its heads."""
    first, *layers = (compact(part) for part in shadows)
    # One number for each combination of ids: a sort of numbers takes a hundredth of the time of a sort of columns.
    bases, numbers = [int(first.max()) + 1], first
    for part in layers:
        bases.append(int(part.max()) + 1)
        numbers = numbers * bases[-1] + part
    different, counts = torch.unique(numbers, return_counts=True)
    ids, *heads = np.unravel_index(different.numpy(), bases)
    return _Elements(np.asarray(ids), counts.numpy(), tuple(heads))


def _keys(elements: _Elements, grouping: Grouping, base: int) -> IndexArray:
    """Return for each id of the elements `base * head + group`, the numbers of its groups plus 1; 0 for none."""
    group = grouping.of_id[elements.ids]
    head = np.full_like(group, -1)
    if elements.heads:
        for ids in elements.heads:
            if len(grouping.of_head):
                head = np.where(head < 0, grouping.of_head[ids], head)
    elif grouping.head_of_id is not None:
        head = grouping.head_of_id[elements.ids]
    return np.asarray((head + 1) * base + group + 1, dtype=np.int64)


def _undominated(rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the rows that no other row reaches in every entry."""
    rows = np.unique(rows, axis=0)
    rows = rows[np.argsort(-rows.sum(axis=1), kind="stable")]
    kept, number = np.empty_like(rows), 0
    # The sums fall, so a row can only be dominated by an earlier one.
    for row in rows:
        if not (kept[:number] >= row).all(axis=1).any():
            kept[number] = row
            number += 1
    return kept[:number]


def _factors(rows: npt.NDArray[np.float64], pairs: Sequence[tuple[int, int]], names: Sequence[str]) -> Iterator[Factor]:
    """Yield the factor of each row, whose columns are the pairs of a group of heads and a group; 0 for none."""
    for row in rows.astype(np.int64).tolist():
        coefficients: dict[str, int] = {}
        products: list[tuple[str, str, int]] = []
        for (head, group), each in zip(pairs[1:], row[1:], strict=True):
            if each and head and group:
                products.append((names[head - 1], names[group - 1], each))
            elif each:
                name = names[max(head, group) - 1]
                coefficients[name] = coefficients.get(name, 0) + each
        yield Factor(row[0], coefficients, tuple(products))
