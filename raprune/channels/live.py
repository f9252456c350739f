"""Activations that live at the same time, as functions of the widths: the closed form of a network's peak memory.

A second mode above the tracer sees which storages an eager forward pass holds after each operation. The shadow of a
tensor says how many of its elements belong to each group of channels, so its bytes are an affine function of the
widths, and so is the sum of what lives at one moment. The peak is the largest of these sums.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from raprune.channels.graph import Factor, IndexArray
from raprune.channels.shadow import NO_CHANNEL, compact


class LiveStorages(TorchDispatchMode):
    """Context that calls `made` and `freed` for the storages of the tensors that are made in it."""

    def __init__(self) -> None:
        super().__init__()
        self._known: set[int] = set()

    def made(self, key: int, size: int, tensor: Tensor, results: Sequence[Tensor]) -> None:
        """Called for a new storage of `size` bytes, with the tensor that was made and all results of its operation.

        `key` names the storage.
        """
        raise NotImplementedError

    def freed(self, key: int, size: int) -> None:
        """Called once the memory of a storage that was made is free."""
        raise NotImplementedError

    def written(self, key: int, tensor: Tensor) -> None:
        """Called for an operation's result in a storage that is known."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # As in `Tracer`: the wrapper would import the compiler.
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor):
                # Weights and images are not made here, but may be returned as a view.
                self._count(leaf, None)
        found = func(*args, **(kwargs or {}))
        results = [leaf for leaf in tree_leaves(found) if isinstance(leaf, Tensor)]
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
        self._known.add(key)
        if results is not None:
            self.made(key, storage.nbytes(), tensor, results)
        weakref.finalize(storage, self._free, key, None if results is None else storage.nbytes())

    def _free(self, key: int, size: int | None) -> None:
        self._known.discard(key)
        if size is not None:
            self.freed(key, size)


@dataclass(frozen=True)
class _Bytes:
    """Bytes of one storage: of the elements of each id, and of elements that no channel owns."""

    fixed: int
    ids: IndexArray
    of_ids: npt.NDArray[np.float64]


class LiveActivations(LiveStorages):
    """The storages of a traced forward pass that live at the same time. It is entered after the tracer."""

    def __init__(self, shadow: Callable[[Tensor], Tensor | None]) -> None:
        """`shadow` gives the ids of an activation's elements, or None (`Tracer.activation`)."""
        super().__init__()
        self._shadow = shadow
        self._storages: list[_Bytes] = []
        self._now: dict[int, int] = {}
        """Key of each living storage -> its index in `_storages`."""
        self._moments: dict[frozenset[int], None] = {}
        self._has_grown = False

    def made(self, key: int, size: int, tensor: Tensor, results: Sequence[Tensor]) -> None:
        self._now[key] = len(self._storages)
        # The indices of a max pooling have no shadow of their own, and as many channels as its maxima.
        alike = (self._shadow(result) for result in (tensor, *results) if result.shape == tensor.shape)
        ids = next((ids for ids in alike if ids is not None), None)
        self._storages.append(_bytes_of(size, tensor, ids))
        self._has_grown = True

    def written(self, key: int, tensor: Tensor) -> None:
        """An operation in place may give channels to a tensor that had none, such as a buffer of zeros."""
        if key in self._now and tensor.numel() * tensor.element_size() == tensor.untyped_storage().nbytes():
            size = tensor.untyped_storage().nbytes()
            self._storages[self._now[key]] = _bytes_of(size, tensor, self._shadow(tensor))

    def freed(self, key: int, size: int) -> None:
        self._keep_moment()
        self._now.pop(key, None)

    def moments(
        self, group_of_id: IndexArray, num_channels: Sequence[int], names: Sequence[str], images: int
    ) -> tuple[Factor, ...]:
        """Return the bytes of each moment that may be the peak; `images` are the bytes of the network's input.

        `group_of_id` holds for each id the number of its group, -1 for none.
        """
        self._keep_moment()
        rows = np.zeros((len(self._storages), len(names) + 1))
        for row, storage in zip(rows, self._storages, strict=True):
            row[-1] = storage.fixed
            # The last entry, which belongs to the group -1, takes the channels that stay.
            np.add.at(row, group_of_id[storage.ids], storage.of_ids)
        rows[:, :-1] /= np.asarray(num_channels, dtype=np.float64)
        sums = np.array([rows[list(moment)].sum(axis=0) for moment in self._moments if moment])
        sums = sums.reshape(-1, len(names) + 1)
        sums[:, -1] += images
        return tuple(_factors(_undominated(np.rint(sums)), names))

    def _keep_moment(self) -> None:
        # Only a moment before something is freed can be a peak.
        if self._has_grown:
            self._moments[frozenset(self._now.values())] = None
            self._has_grown = False


def _bytes_of(size: int, tensor: Tensor, ids: Tensor | None) -> _Bytes:
    if ids is None or ids.shape != tensor.shape or tensor.numel() == 0:
        return _Bytes(size, np.zeros(0, dtype=np.int64), np.zeros(0))
    few = compact(ids)
    found, counts = (part.numpy() for part in torch.unique(few, return_counts=True))
    own = counts * (tensor.numel() // few.numel()) * tensor.element_size()
    has_channel = found != NO_CHANNEL
    return _Bytes(size - int(own[has_channel].sum()), found[has_channel], own[has_channel].astype(np.float64))


def _undominated(rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the rows that no other row reaches in every entry."""
    rows = np.unique(rows, axis=0)
    rows = rows[np.argsort(-rows.sum(axis=1), kind="stable")]
    kept = rows[:0]
    # The sums fall, so a row can only be dominated by an earlier one.
    for row in rows:
        if not (kept >= row).all(axis=1).any():
            kept = np.concatenate([kept, row[None]])
    return kept


def _factors(rows: npt.NDArray[np.float64], names: Sequence[str]) -> Iterator[Factor]:
    for row in rows.astype(np.int64).tolist():
        yield Factor(row[-1], {name: bytes_each for name, bytes_each in zip(names, row, strict=False) if bytes_each})
