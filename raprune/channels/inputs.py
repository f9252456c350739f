"""The inputs and outputs of a network: how a network is called, and the tensors that it returns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from raprune.channels.detectors import dense_form
from raprune.errors import ModelError

NetworkInputs = Tensor | tuple[Any, ...] | list[Any] | dict[str, Any]
"""One tensor; a tuple of positional arguments; a dict of keyword arguments; or a list, which is one argument."""


def call(model: nn.Module, inputs: NetworkInputs, *, small: bool = False) -> Any:
    """Run `model` on `inputs`; a detector of torchvision in its dense form, for which see `dense_form`."""
    model = dense_form(model, small=small)
    if isinstance(inputs, tuple):
        return model(*inputs)
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(inputs)


def input_shape(inputs: NetworkInputs) -> tuple[int, ...]:
    """Return the shape of the first tensor, without the batch axis; a list holds images without a batch axis.

    Raises:
        ModelError: if there is no tensor in `inputs`.
    """
    for value in pytree.tree_leaves(inputs):
        if isinstance(value, Tensor):
            return tuple(value.shape if isinstance(inputs, list) else value.shape[1:])
    raise ModelError(
        f"The network's example input has no tensor; it is a {type(inputs).__name__}.",
        hint="Pass one tensor, a tuple of positional arguments, a dict of keyword arguments, or a list of images.",
    )


def described(inputs: NetworkInputs) -> str:
    """Return the shapes of the inputs in words, for a message."""
    if isinstance(inputs, Tensor):
        return f"one input of shape {tuple(inputs.shape)}"
    shapes = [str(tuple(v.shape)) for v in pytree.tree_leaves(inputs) if isinstance(v, Tensor)]
    return f"inputs of the shapes {', '.join(shapes)}"


def tensors_in(value: Any, depth: int = 4) -> Iterator[Tensor]:
    """Yield all tensors of a network's output, those in the attributes of objects as well."""
    for leaf in pytree.tree_leaves(value):
        if isinstance(leaf, Tensor):
            yield leaf
        elif depth and isinstance(leaf, set | frozenset | Mapping):
            yield from tensors_in(list(leaf.values() if isinstance(leaf, Mapping) else leaf), depth - 1)
        elif depth and hasattr(leaf, "__dict__") and not isinstance(leaf, nn.Module | type):
            yield from tensors_in(list(vars(leaf).values()), depth - 1)
