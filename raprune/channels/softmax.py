"""The inputs of every softmax in a proof: those of the cut network must be among those of the masked one.

The outputs alone show little of a wrong scale of attention. The weights of a network that was never trained give
products of queries and keys that are almost equal, whose softmax is almost uniform; over one token it is one, whatever
the product is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten

FUSED = aten._scaled_dot_product_flash_attention_for_cpu
"""The only fused attention for float64; on other devices PyTorch computes products and a softmax."""
SOFTMAX = (aten._softmax, aten._safe_softmax)

_CLOSE = 1e-8
"""Largest difference, as a fraction of the largest value, of two numbers that count as equal."""
_LOWEST = -100.0
"""Values below this have no part in a softmax, such as those of masks."""


class SoftmaxInputs:
    """The inputs of every softmax of one network, recorded, and compared with those of one with fewer channels."""

    def __init__(self) -> None:
        self._seen: list[tuple[tuple[int, ...], Tensor]] = []
        self._next: int | None = None
        self.differ = False
        """True if a softmax of the second network had inputs that the first one's softmax had not."""

    def replay(self) -> None:
        """Compare with the recorded inputs from the first softmax on."""
        self._next = 0

    def softmax(self, x: Tensor, dim: int) -> None:
        """Record or compare the inputs of a softmax over `dim`, at three places of the axis beside it."""
        dim %= max(x.dim(), 1)
        if not x.dim() or not x.numel():
            return
        self._add(tuple(x.shape), _at_places(x, dim - 1) if dim else x)

    def attention(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Record or compare the scaled products of fused attention, at three queries; masks do not count."""
        query, key = (tensor.double() for tensor in args[:2])
        scale = kwargs.get("scale")
        queries = _at_places(query, query.dim() - 2)
        products = queries @ key.transpose(-2, -1) * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
        self._add((*products.shape[:-2], query.shape[-2], products.shape[-1]), products)

    def _add(self, shape: tuple[int, ...], x: Tensor) -> None:
        if self._next is None:
            self._seen.append((shape, x.double().clamp(min=_LOWEST).clone()))
            return
        self._next += 1
        if self._next <= len(self._seen):  # else another path through the network: its outputs differ anyway
            self.differ = self.differ or not _among(x.double().clamp(min=_LOWEST), shape, *self._seen[self._next - 1])


def _at_places(x: Tensor, dim: int) -> Tensor:
    size = x.shape[dim]
    return x if size <= 3 else x.index_select(dim, torch.tensor([0, size // 2, size - 1], device=x.device))


def _among(few: Tensor, few_shape: tuple[int, ...], many_shape: tuple[int, ...], many: Tensor) -> bool:
    """Return False if a value of `few` is not among those of `many` at the same place of the axes of one size.

    One axis may be shorter, as that of the heads. Nothing is said where several are, or the axis of the places is.
    """
    if len(few_shape) != len(many_shape):
        return True
    shorter = [dim for dim, (size, old) in enumerate(zip(few_shape, many_shape, strict=True)) if size != old]
    gap = _CLOSE * float(many.abs().max())
    if not shorter:
        return few.shape != many.shape or bool((few - many).abs().max() <= gap)
    (dim, *others) = shorter
    if others or few.shape[dim] != few_shape[dim] or many.shape[dim] != many_shape[dim]:
        return True
    rows, known = (x.movedim(dim, -1).contiguous() for x in (few, many))
    known = known.sort(-1).values
    place = torch.searchsorted(known, rows)
    near = [known.gather(-1, (place - step).clamp(0, known.shape[-1] - 1)) for step in (0, 1)]
    return bool(torch.minimum(*((rows - value).abs() for value in near)).max() <= gap)
