"""Rules of operations that work element by element: ids that meet are coupled."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from raprune.channels.ids import ParameterShadow, Shadow, compact, line, varies
from raprune.channels.movement import first
from raprune.channels.shadow import TracedCall, Tracer


def pointwise(call: TracedCall) -> None:
    """Couple the ids of tensors that meet element by element."""
    inputs = [value for value in (*call.args, *call.kwargs.values()) if isinstance(value, Tensor)]
    elementwise(call.tracer, tuple(inputs), first(call.out))


def copy_into(call: TracedCall) -> None:
    """Handle `a.copy_(b)`: a gets the ids of b; ids that a had before are coupled with the ids of b."""
    target, source = call.args[:2]
    tracer = call.tracer
    if tracer.shadow(target) is not None:
        elementwise(tracer, (target, source), target)
    elif _owns_storage(target):
        ids = tracer.activation(source)
        tracer.set_shadow(target, None if ids is None else ids.expand(target.shape))
    else:
        tracer.freeze_value(source, "written into part of a constant")


def _owns_storage(value: Tensor) -> bool:
    return value.untyped_storage().nbytes() == value.numel() * value.element_size()


def elementwise(tracer: Tracer, inputs: tuple[Tensor, ...], out: Tensor) -> None:
    if len(inputs) == 1 and (ids := tracer.activation(inputs[0])) is not None and ids.shape == out.shape:
        tracer.pass_on(out, ids)
        return
    shadows = [tracer.shadow(value) for value in inputs]
    activations = [s for s in shadows if isinstance(s, Tensor)]
    if not activations:
        elementwise_parameters(tracer, inputs, shadows, out)
        return
    result = _spread(activations[0], out.shape)
    for ids in activations[1:]:
        result = _meet(tracer, result, ids, out.shape)
    for value, shadow in zip(inputs, shadows, strict=True):
        if shadow is None:
            _meet_constant(tracer, result, value)
        elif isinstance(shadow, ParameterShadow):
            _meet_parameter(tracer, result, value)
    if out is inputs[0] and shadows[0] is None and not _owns_storage(out):
        tracer.freeze(compact(result), "written into part of a constant")
    tracer.set_shadow(out, result)


def elementwise_parameters(
    tracer: Tracer, inputs: tuple[Tensor, ...], shadows: list[Shadow | None], out: Tensor
) -> None:
    """Handle parameters alone: the result has the axes of the parameter of its shape; the others are coupled with it.

    A standardised or normalised weight, and the scale of a frozen batch norm, are computed so.
    """
    known = [shadow for shadow in shadows if isinstance(shadow, ParameterShadow)]
    largest = inputs[next(i for i, shadow in enumerate(shadows) if shadow is not None)]
    if len(known) == 1 and largest.numel() > 1 and largest.shape != out.shape:
        _spread_parameter(tracer, known[0], [v for v in inputs if v is not largest], out)
        return
    main = next(
        (
            value
            for value, shadow in zip(inputs, shadows, strict=True)
            if isinstance(shadow, ParameterShadow) and value.shape == out.shape and value.numel() > 1
        ),
        None,
    )
    if main is None and all(value.numel() == 1 for value in inputs):
        main = next(v for v, s in zip(inputs, shadows, strict=True) if isinstance(s, ParameterShadow))
    if main is None or not all(_along_parameter(tracer, main, value) for value in inputs if value is not main):
        for value in inputs:
            tracer.freeze_value(value, "parameters combined before use")
        tracer.set_shadow(out, None)
        return
    tracer.set_shadow(out, tracer.shadow(main))


def _spread_parameter(tracer: Tracer, shadow: ParameterShadow, constants: list[Tensor], out: Tensor) -> None:
    """Handle a view of a parameter that meets larger constants, as a table of positions meets masks of windows."""
    positions = [position.expand(out.shape) for position in shadow.positions]
    for axis, position in enumerate(positions):
        for value in constants:
            dims = [d for d in range(-value.dim(), 0) if value.shape[d] > 1 and value.stride(d)]
            if any(varies(position, dim) for dim in dims):
                ids = tracer.axis_ids(shadow.name, axis)
                tracer.freeze(ids, "a parameter meets a constant of the shape of its channels")
    tracer.set_shadow(out, shadow.moved(positions))


def _along_parameter(tracer: Tracer, main: Tensor, value: Tensor) -> bool:
    """Couple the axes of `value` with the axes of the parameter `main` that they meet; return False if that fails."""
    known = tracer.shadow(value)
    if known is tracer.shadow(main):
        return True
    for dim in range(1, value.dim() + 1):
        if value.shape[-dim] == 1:
            continue
        use = tracer.axis(main, -dim)
        if use is None:
            return False
        if known is None:
            tracer.freeze(use.ids, "a parameter meets a constant of the shape of its channels")
            continue
        other = tracer.axis(value, -dim)
        if other is None:
            return False
        if (other.parameter, other.axis) != (use.parameter, use.axis):
            tracer.couple(other.ids, use.ids)
        elif not np.array_equal(other.ids, use.ids):
            return False
    if value.numel() == 1 and known is not None and main.numel() > 1:
        tracer.freeze_value(value, "a scalar parameter")
    return True


def _spread(ids: Tensor, shape: torch.Size) -> Tensor:
    return ids if ids.shape == shape else ids.expand(shape)


def _meet(tracer: Tracer, left: Tensor, right: Tensor, shape: torch.Size) -> Tensor:
    """Couple two shadows, broadcast to `shape`; a shadow that is stretched over the other's channels is frozen."""
    if left is right:
        return left
    offset = left.dim() - right.dim()
    left_dims = {dim for dim in range(left.dim()) if varies(left, dim)}
    right_dims = {dim + offset for dim in range(right.dim()) if varies(right, dim)}
    if left_dims - right_dims and right_dims - left_dims:
        for ids in (left, right):
            tracer.freeze(compact(ids), "meets channels that run along another axis")
        return torch.zeros(1, dtype=torch.int64).expand(shape)
    for dim in range(right.dim()):
        if right.shape[dim] == 1 and shape[dim + offset] > 1 and varies(left, dim + offset):
            tracer.freeze(compact(right), "one channel stretched over many")
            return left
    for dim in range(left.dim()):
        if left.stride(dim) == 0 and dim >= offset and varies(right, dim - offset) and shape[dim] > 1:
            tracer.freeze(compact(left), "one channel stretched over many")
            return _spread(right, shape)
    a, b = compact(left), compact(_spread(right, shape))
    if a.shape == b.shape and torch.equal(a, b):
        return left
    tracer.couple(a, b)
    return left if bool(a.all()) else torch.maximum(a, b).expand(shape)


def _meet_constant(tracer: Tracer, ids: Tensor, value: Tensor) -> None:
    """Meet a tensor without channels: one that is broadcast over the channels is harmless, any other freezes them."""
    offset = ids.dim() - value.dim()
    # A stride of 0: one value, expanded to the number of channels.
    if any(value.shape[d] > 1 and value.stride(d) and varies(ids, d + offset) for d in range(value.dim())):
        tracer.freeze(compact(ids), "meets a constant of the shape of the channels")


def _meet_parameter(tracer: Tracer, ids: Tensor, value: Tensor) -> None:
    """Meet a parameter: its axis along the channels is coupled with them, its other axes stay."""
    offset = ids.dim() - value.dim()
    for dim in range(value.dim()):
        if value.shape[dim] == 1:
            continue
        use = tracer.axis(value, dim)
        if not varies(ids, dim + offset):
            tracer.fix_axis(use, value, "meets an axis without channels")
        elif use is None:
            tracer.freeze_value(value, "a view of a parameter that mixes its axes")
            tracer.freeze(compact(ids), "meets a view of a parameter that mixes its axes")
        else:
            tracer.couple(line(ids, dim + offset), use.ids)


def same_shape_constant(call: TracedCall) -> None:
    """Handle zeros_like and similar operations: the shape follows the channels."""
    shadow = call.tracer.shadow(call.args[0])
    call.tracer.set_shadow(call.out, shadow)


def only_shape(call: TracedCall) -> None:
    """Handle an operation that reads the shape or type of its argument, never the values."""
    call.tracer.set_shadow(call.out, None)


def fill(call: TracedCall) -> None:
    """Handle a tensor that is overwritten in place by one value: the ids do not change."""


# -- reductions and pooling ------------------------------------------------------------------------------------------
