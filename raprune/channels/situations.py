"""The inputs and modes in which a proof runs a network: noise of the example's shape first, then other situations.

A branch that an image's size, its values, the size of the batch or the mode decides is traced one way only. The other
situations run the network the other way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from raprune.channels.inputs import NetworkInputs

OFFSET = 3.0
"""Mean of the other values, in standard deviations: normalised images that are bright or dark everywhere."""


_SMALL = 32 * 32
"""Pixels of an image of which a training step takes eight."""


@dataclass(frozen=True)
class Situation:
    """NetworkInputs and a mode; `name` is a phrase for messages, empty for noise of the example's shape."""

    name: str
    inputs: NetworkInputs
    training: bool = False


def first_situation(example: NetworkInputs, generator: torch.Generator) -> Situation:
    """Return noise of the example's shapes, in evaluation mode; integers stay as they are."""
    return Situation("", _changed(example, lambda t: _noise(t, tuple(t.shape), 0.0, generator)))


def other_situations(example: NetworkInputs, generator: torch.Generator) -> Iterator[list[Situation]]:
    """Yield lists of situations; the first of a list in which the dense network runs stands for the whole list."""
    other, batch = _another_size(example), _batch_of_two(example)

    def inputs(offset: float, *, size: bool = False, times: int = 1) -> NetworkInputs:
        def change(tensor: Tensor) -> Tensor:
            shape = list(tensor.shape)
            if size and other is not None and _is_image(tensor):
                shape[-2:] = other
            if shape:
                shape[0] *= times
            return _noise(tensor, tuple(shape), offset, generator)

        return _changed(example, change)

    if other is not None:
        yield [Situation(f"with an image of {other[0]} x {other[1]}", inputs(-OFFSET, size=True))]
    # A smaller image first, because it costs less; where the network does not take it, one of the example's size.
    small = other is not None and other[0] * other[1] < _pixels(example)
    sizes = (True, False) if small else (False,)
    values = [Situation("with a batch of two and other values", inputs(OFFSET, size=s, times=2)) for s in sizes]
    yield [*(values if batch else []), Situation("with other values", inputs(OFFSET))]
    # A batch norm over two values gives a sign, which rounding errors turn: small images come in eights.
    many = 8 if other is not None and _pixels(example) <= _SMALL else 2
    yield [
        Situation("in training mode", inputs(0.0, size=size, times=times), training=True)
        for times, size in ((many, True), (many, False), (1, False))
        if (batch or times == 1) and (small or not size)
    ]


def _changed(example: NetworkInputs, change: Callable[[Tensor], Tensor]) -> NetworkInputs:
    inputs: NetworkInputs = pytree.tree_map(lambda leaf: change(leaf) if isinstance(leaf, Tensor) else leaf, example)
    return inputs


def _noise(like: Tensor, shape: tuple[int, ...], offset: float, generator: torch.Generator) -> Tensor:
    if like.is_floating_point():
        return (torch.randn(shape, generator=generator, dtype=torch.float64) + offset).to(like.device)
    # Token ids, labels and masks have a range that only the network knows.
    repeats = [-(-size // old) if old else 1 for size, old in zip(shape, like.shape, strict=True)]
    values = like.repeat(repeats) if repeats else like.clone()
    return (values.flip(-1) if offset and values.dim() else values)[tuple(slice(0, size) for size in shape)]


def _is_image(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.dim() >= 3 and min(tensor.shape[-2:]) > 1


def _another_size(example: NetworkInputs) -> tuple[int, int] | None:
    """Return another height and width of the images; None if the inputs are no images of one size."""
    tensors = [leaf for leaf in pytree.tree_leaves(example) if isinstance(leaf, Tensor)]
    sizes = {tuple(tensor.shape[-2:]) for tensor in tensors if tensor.dim() >= 4 and _is_image(tensor)}
    if len(sizes) != 1:
        return None
    height, width = sizes.pop()
    return _other(height), _other(width)


def _pixels(example: NetworkInputs) -> int:
    """Return the number of pixels of the first image."""
    height, width = next(t.shape[-2:] for t in pytree.tree_leaves(example) if isinstance(t, Tensor) and _is_image(t))
    return int(height * width)


def _other(size: int) -> int:
    """Return a smaller size for large images, because it costs less, and a larger one for small images."""
    if size >= 128:
        return 32 * max(3, round(size * 0.7 / 32))
    return 16 * (size * 3 // 64) if size >= 64 else size + size // 2


def _batch_of_two(example: NetworkInputs) -> bool:
    """True if all tensors have the same first axis, which is the batch."""
    tensors = [leaf for leaf in pytree.tree_leaves(example) if isinstance(leaf, Tensor)]
    return not isinstance(example, list) and all(t.dim() > 0 for t in tensors) and len({len(t) for t in tensors}) == 1
