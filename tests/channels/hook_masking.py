"""An independent reference for a cut: the dense network, with hooks that zero the removed channels.

Nothing here uses the surgery of raprune, its masks or its arithmetic. A layer that reads channels sees zeros in place
of the removed ones, and a layer that writes them gives zeros. A norm across channels only scales, and a statistic
across channels is a constant, in both networks.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from raprune.channels.graph import ChannelGraph
from tests.channels.random_steps import ComputedWeight, Of

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LAST = (nn.Linear, nn.LayerNorm, nn.RMSNorm, nn.RNNBase, nn.MultiheadAttention)
"""Layers whose channels run along the last axis."""
ACROSS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


@contextmanager
def norms_that_scale(model: nn.Module) -> Iterator[None]:
    """Let norms across channels be `x * 0.3 * weight + bias`, and statistics 0.3, within the context."""

    def scaled(module: Any, inputs: tuple[Tensor, ...], out: Tensor) -> Tensor:
        x = inputs[0] * 0.3
        shape = [-1, *[1] * (x.dim() - 2)] if isinstance(module, nn.GroupNorm) else [-1]
        weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
        x = x if weight is None else x * weight.view(shape)
        return x if bias is None else x + bias.view(shape)

    handles = [m.register_forward_hook(scaled) for m in model.modules() if isinstance(m, ACROSS)]
    computed = [module for module in model.modules() if isinstance(module, ComputedWeight | Of)]
    for module in computed:
        module.fixed = True
    try:
        yield
    finally:
        for module in computed:
            module.fixed = False
        for handle in handles:
            handle.remove()


@contextmanager
def removed_channels_zeroed(
    model: nn.Module, graph: ChannelGraph, kept: Mapping[str, tuple[int, ...]]
) -> Iterator[None]:
    """Zero, within the context, what layers of `model` read and write of the channels that are not in `kept`."""
    gone: dict[tuple[str, str, int], set[int]] = defaultdict(set)
    for group in graph.groups:
        removed = [c for c in range(group.num_channels) if c not in set(kept[group.name])]
        for member in group.members:
            owner, _, parameter = member.parameter.rpartition(".")
            gone[owner, parameter, member.axis] |= set(member.indices[removed].reshape(-1).tolist())
    handles: list[Any] = []
    undo: list[tuple[nn.Parameter, Tensor]] = []
    for (owner, parameter, axis), places in gone.items():
        module = model.get_submodule(owner)
        positions = torch.tensor(sorted(places))
        if not len(positions):
            continue
        if isinstance(module, nn.MultiheadAttention) and axis == 0:
            _zero_rows(module, parameter, positions, undo)
            continue
        reads, writes = _sides(module, parameter, axis, positions)
        if reads is not None:
            handles.append(module.register_forward_pre_hook(_before(_axis(module), reads)))
        if writes is not None:
            handles.append(module.register_forward_hook(_after(_axis(module), writes)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for tensor, before in undo:
            tensor.data = before


def _zero_rows(module: nn.Module, name: str, rows: Tensor, undo: list[tuple[nn.Parameter, Tensor]]) -> None:
    """Zero rows of a parameter that PyTorch reads without calling a module that could have a hook."""
    tensor = module.get_parameter(name)
    undo.insert(0, (tensor, tensor.data))
    tensor.data = tensor.data.index_fill(0, rows, 0.0)


def _sides(module: nn.Module, parameter: str, axis: int, positions: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Return the channels that a layer reads and those that it writes, of positions on an axis of a parameter."""
    if parameter in ("weight_ih_l0", "in_proj_weight") and axis == 1:
        return positions, None
    if parameter != "weight":
        return None, None
    if isinstance(module, nn.Linear):
        return (positions, None) if axis == 1 else (None, positions)
    if isinstance(module, CONVOLUTIONS):
        if axis == 0:
            return None, positions
        size = module.in_channels // module.groups
        return torch.cat([positions + size * group for group in range(module.groups)]), None
    if isinstance(module, TRANSPOSED):
        if axis == 0:
            return positions, None
        size = module.out_channels // module.groups
        return None, torch.cat([positions + size * group for group in range(module.groups)])
    if isinstance(module, (nn.modules.batchnorm._NormBase, *ACROSS)):
        return None, positions
    return None, None


def _axis(module: nn.Module) -> int:
    return -1 if isinstance(module, LAST) else 1


def _before(axis: int, positions: Tensor) -> Any:
    return lambda module, inputs: tuple(x.index_fill(axis, positions, 0.0) for x in inputs)


def _after(axis: int, positions: Tensor) -> Any:
    return lambda module, inputs, out: out.index_fill(axis, positions, 0.0)
