"""Ids of channels in tensors: along which axes they change, and what a view of a parameter leaves of its axes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from raprune.channels.positions import IndexArray


@dataclass(frozen=True)
class AxisUse:
    """A part of one parameter axis: the ids of its positions, in the order of a tensor's axis."""

    parameter: str
    axis: int
    ids: IndexArray


class ParameterShadow:
    """The shadow of a parameter or a view of it: for each axis, the position that every element came from.

    `positions[k]` has the shape of the viewed tensor and holds positions on the parameter's axis k. `shape` is the
    shape of the parameter.
    """

    def __init__(self, name: str, shape: Sequence[int], positions: Sequence[Tensor] | None = None) -> None:
        self.name = name
        self._shape = tuple(shape)
        self._positions = None if positions is None else tuple(positions)

    def moved(self, positions: Sequence[Tensor]) -> ParameterShadow:
        """Return the shadow of another view of the same parameter."""
        return ParameterShadow(self.name, self._shape, positions)

    @property
    def positions(self) -> tuple[Tensor, ...]:
        # Most parameters are used without a view; the positions are computed only for those that are viewed.
        if self._positions is None:
            rank = len(self._shape)
            self._positions = tuple(
                torch.arange(size).view([-1 if k == axis else 1 for k in range(rank)]).expand(self._shape)
                for axis, size in enumerate(self._shape)
            )
        return self._positions

    def axis_along(self, dim: int) -> tuple[int, Tensor] | None:
        """Return the only parameter axis whose position changes along `dim`, and its positions; None if not unique."""
        changing = [(axis, position) for axis, position in enumerate(self.positions) if varies(position, dim)]
        if not changing and self.positions and self.positions[0].shape[dim] == 1:
            # No position changes along one element: the dimension stands for the parameter's axis of one position.
            single = [axis for axis, size in enumerate(self._shape) if size == 1]
            return (single[0], torch.zeros(1, dtype=torch.int64)) if len(single) == 1 else None
        if len(changing) != 1:
            return None
        axis, position = changing[0]
        if any(varies(position, other) for other in range(position.dim()) if other != dim):
            return None
        return axis, line(position, dim)


Shadow = Tensor | ParameterShadow


def varies(ids: Tensor, dim: int) -> bool:
    """True if the ids change along `dim`."""
    if ids.shape[dim] < 2 or ids.stride(dim) == 0:
        return False
    ids = compact(ids)
    return not torch.equal(ids.narrow(dim, 1, ids.shape[dim] - 1), ids.narrow(dim, 0, ids.shape[dim] - 1))


def compact(ids: Tensor) -> Tensor:
    """Return `ids` with one element along each axis that is only expanded: same dimensions, few elements."""
    for dim, stride in enumerate(ids.stride()):
        if stride == 0 and ids.shape[dim] > 1:
            ids = ids.narrow(dim, 0, 1)
    return ids


def collapse(ids: Tensor, dims: Iterable[int]) -> Tensor:
    """Return `ids` made constant along `dims` (the first position stands for all), in the same shape."""
    shape = ids.shape
    for dim in dims:
        ids = ids.narrow(dim, 0, 1)
    return ids.expand(shape)


def line(ids: Tensor, dim: int) -> Tensor:
    """Return the ids along `dim`, at position 0 of every other axis; shape `(ids.shape[dim],)`."""
    for other in reversed(range(ids.dim())):
        if other != dim:
            ids = ids.select(other, 0)
    return ids


def joined(parts: Sequence[Tensor], dim: int) -> Tensor:
    """Return ids concatenated along `dim`; axes along which all parts are only expanded stay so, in few elements."""
    shape = list(parts[0].shape)
    shape[dim] = sum(part.shape[dim] for part in parts)
    for other in range(len(shape)):
        if other != dim and shape[other] > 1 and all(part.stride(other) == 0 for part in parts):
            parts = [part.narrow(other, 0, 1) for part in parts]
    return torch.cat(list(parts), dim).expand(shape)


def reshaped(ids: Tensor, shape: Sequence[int]) -> Tensor:
    """Return reshaped ids; axes that are only expanded stay so where they do not merge with others."""
    before, after = list(ids.shape), list(shape)
    for inside, outside in axis_blocks(ids.shape, shape) if ids.numel() else ():
        if all(size == 1 or stride == 0 for size, stride in ((ids.shape[d], ids.stride(d)) for d in inside)):
            for sizes, dims in ((before, inside), (after, outside)):
                for dim in dims:
                    sizes[dim] = 1
    for dim, size in enumerate(before):
        ids = ids.narrow(dim, 0, size)
    return ids.reshape(after).expand(shape)


def axis_blocks(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Return the axes of a reshape in blocks of equal size: ([axes before], [axes after])."""
    blocks = []
    i = j = 0
    while i < len(before) or j < len(after):
        inside, outside = [i], [j]
        size_in = before[i] if i < len(before) else 1
        size_out = after[j] if j < len(after) else 1
        i, j = i + 1, j + 1
        while size_in != size_out:
            if size_in < size_out:
                size_in *= before[i]
                inside.append(i)
                i += 1
            else:
                size_out *= after[j]
                outside.append(j)
                j += 1
        blocks.append(([d for d in inside if d < len(before)], [d for d in outside if d < len(after)]))
    return blocks
