"""Statistics across channels: a mean, a norm or the largest value over an axis that a cut makes shorter.

They are as symmetric as a layer norm: over the channels that are left, they are another number than over all channels
with zeros in the place of removed ones. In a proof, the cut network therefore takes the statistics of the masked one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

SYMMETRIC = ("mean", "sum", "amax", "amin", "max", "min", "var", "std", "var_mean", "linalg_vector_norm", "norm")
"""Names of the reductions whose values do not depend on the order of what they reduce."""
_CLOSE = 1e-9
"""Largest difference, as a fraction of the largest value, of two numbers that count as equal."""


def reduced_axes(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[list[int], bool]:
    """Return the axes over which a reduction runs, ascending, and whether they stay with the size 1."""
    position = 2 if "norm" in name else 1
    rank = args[0].dim()

    def argument(place: int, of: str, default: Any = None) -> Any:
        return args[place] if place < len(args) else kwargs.get(of, default)

    dims, keepdim = argument(position, "dim"), bool(argument(position + 1, "keepdim", False))
    if dims is None or dims == []:
        dims = list(range(rank))
    return sorted({d % rank for d in ([dims] if isinstance(dims, int) else dims)}), keepdim


class ChannelStatistics:
    """The reductions of one network, recorded, and used in another one that has fewer channels."""

    def __init__(self) -> None:
        self._seen: list[tuple[int, tuple[Tensor, ...], Tensor]] = []
        self._next: int | None = None
        self.used = False
        """True if a reduction ran over fewer values than in the network that was recorded."""

    def replay(self) -> None:
        """Use the recorded reductions from the first one on."""
        self._next = 0

    def of(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> Any:
        """Return the result of the next reduction, whose own one is `out`.

        A mean over fewer values is their sum, divided by the number of values of before. Where the sum differs because
        masked channels are no zeros in this place, the recorded value counts, if all values of the cut network are
        among those of the masked one.
        """
        x, outs = args[0], tuple(out) if isinstance(out, tuple | list) else (out,)
        dims, _ = reduced_axes(name, args, kwargs)
        number = 1
        for dim in dims:
            number *= x.shape[dim]
        if self._next is None:
            self._seen.append((number, tuple(value.clone() for value in outs), _samples(x, dims)))
            return out
        self._next += 1
        if self._next > len(self._seen):
            return out  # another path through the network: its outputs differ anyway
        before, known, samples = self._seen[self._next - 1]
        if before == number or not number:
            return out
        self.used = True
        if name == "mean":
            out = out * (number / before)
            outs = (out,)
        if any(value.shape != one.shape for value, one in zip(outs, known, strict=True)) or _equal(outs[0], known[0]):
            return out
        if not _among(_samples(x, dims), samples):
            return out
        return type(out)(one.clone() for one in known) if isinstance(out, tuple | list) else known[0].clone()


def _samples(x: Tensor, dims: Sequence[int]) -> Tensor:
    """Return all values along `dims`, sorted, at up to three places of every other axis; shape `(places, values)`."""
    rest = [dim for dim in range(x.dim()) if dim not in dims]
    for dim in rest:
        if x.shape[dim] > 3:
            places = torch.tensor([0, x.shape[dim] // 2, x.shape[dim] - 1], device=x.device)
            x = x.index_select(dim, places)
    x = x.permute([*rest, *dims])
    return x.reshape(x.shape[: len(rest)].numel(), -1).double().sort(-1).values.contiguous()


def _equal(left: Tensor, right: Tensor) -> bool:
    return bool((left - right).abs().max() <= _CLOSE * right.abs().max()) if right.numel() else True


def _among(few: Tensor, many: Tensor) -> bool:
    """Return True if each value of a row of `few` is in that row of `many`, whose values ascend."""
    if len(few) != len(many):
        return False
    if not many.numel():
        return True
    place = torch.searchsorted(many, few)
    near = [many.gather(1, (place - step).clamp(0, many.shape[1] - 1)) for step in (0, 1)]
    gap = torch.minimum(*((few - value).abs() for value in near))
    return bool((gap <= 1000 * _CLOSE * many.abs().max()).all())
