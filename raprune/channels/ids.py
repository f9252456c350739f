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
