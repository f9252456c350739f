"""The effect of each operation on the shadows: one small function per kind of operation, listed in `RULES`.

Three things can happen to the ids that enter an operation: they move with the data, they are coupled with other ids,
or they are frozen because their effect on the output is not known. An operation that is not in `RULES` freezes its
inputs (`shadow.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raprune.channels.shadow import (
    AxisUse,
    ParameterShadow,
    Shadow,
    TracedCall,
    Tracer,
    collapse,
    compact,
    line,
    varies,
)

aten = torch.ops.aten

# -- layers with weights -------------------------------------------------------------------------------------------


def convolution(call: TracedCall) -> None:
    """Couple the input ids with the weight's input axis; the output axis has new ids.

    A depthwise convolution passes the ids through; the groups of a grouped convolution stay equal.
    """
    tracer, out = call.tracer, call.out
    x, weight, bias = call.args[:3]
    transposed, groups = call.arg(6, "transposed", False), call.arg(8, "groups", 1)
    ids = tracer.channels(x, 1, "convolution over a shape whose spatial axes carry channels")
    into, onto = tracer.axis(weight, 1), tracer.axis(weight, 0)
    if transposed:
        into, onto = onto, into
    if into is None or onto is None:
        _freeze_computed(call, x, weight, "convolution with a weight that is computed")
        return
    tracer.count(call.func, call.args, call.kwargs, out, (into.ids, onto.ids))
    in_channels = x.shape[1]
    if transposed and groups > 1:
        _transposed_in_groups(call, ids, into, onto, groups)
        return
    if groups == in_channels and groups > 1:
        _depthwise(tracer, ids, onto, groups)
    elif groups > 1:
        _grouped(tracer, ids, into, onto, groups)
    else:
        _read(tracer, ids, into)
    _couple_vector(tracer, bias, onto)
    tracer.write(onto, out, 1)
    if groups > 1 and groups != in_channels:
        _equal_parts(tracer, out, 1, groups)


def _freeze_computed(call: TracedCall, x: Tensor, weight: Tensor, reason: str) -> None:
    """Freeze the input and a weight that is no plain view of a parameter: its use of the channels is not known."""
    for value in (x, weight):
        call.tracer.freeze_value(value, reason)
    call.tracer.set_shadow(call.out, None)
    call.tracer.count(call.func, call.args, call.kwargs, call.out, ())


def _read(tracer: Tracer, ids: Tensor | None, into: AxisUse) -> None:
    """Couple the incoming ids with the weight's input axis; without incoming ids, freeze this axis."""
    if ids is None:
        tracer.freeze(into.ids, "reads the network's input or channels that stay")
    else:
        tracer.couple(ids, into.ids)


def _depthwise(tracer: Tracer, ids: Tensor | None, onto: AxisUse, channels: int) -> None:
    multiplier = len(onto.ids) // channels
    if ids is None:
        tracer.freeze(onto.ids, "depthwise over channels that stay")
    else:
        tracer.couple(ids.repeat_interleave(multiplier), onto.ids)


def _grouped(tracer: Tracer, ids: Tensor | None, into: AxisUse, onto: AxisUse, groups: int) -> None:
    if ids is None:
        tracer.freeze(into.ids, "reads the network's input or channels that stay")
    else:
        tracer.couple(ids.view(groups, -1), into.ids[None, :])
    parts = onto.ids.reshape(groups, -1)
    tracer.couple(parts[1:], parts[:1])


def _transposed_in_groups(call: TracedCall, ids: Tensor | None, into: AxisUse, onto: AxisUse, groups: int) -> None:
    """Couple the two axes of a weight `(in, out / groups, ...)`, whose second axis every group shares.

    A depthwise one loses whole groups, with all output channels of a group.
    """
    tracer, bias = call.tracer, call.args[2]
    _read(tracer, ids, into)
    if groups == len(into.ids):
        tracer.freeze(onto.ids, "the output channels of one group of a depthwise transposed convolution")
        use, written = into, into.ids.repeat(len(onto.ids))
    else:
        parts = into.ids.reshape(groups, -1)
        tracer.couple(parts[1:], parts[:1])
        use, written = onto, np.tile(onto.ids, groups)
    _couple_vector(tracer, bias, AxisUse(use.parameter, use.axis, written))
    tracer.write(use, call.out, 1, written)


def _couple_vector(tracer: Tracer, vector: Any, onto: AxisUse) -> None:
    """Couple a bias, or any parameter with one entry per channel, with the channels that `onto` writes."""
    if not isinstance(vector, Tensor):
        return
    use = tracer.axis(vector, 0)
    if use is not None:
        tracer.couple(use.ids, onto.ids)
    else:
        tracer.freeze(onto.ids, "a bias that is computed")
        tracer.freeze_value(vector, "a bias that is computed")


def matrix_product(call: TracedCall) -> None:
    """Handle mm and addmm: a linear layer if the right side is a parameter, else a contraction of two activations."""
    left, right = call.args[-2:]
    bias = call.args[0] if len(call.args) == 3 else None
    tracer = call.tracer
    if isinstance(tracer.shadow(right), ParameterShadow) and not isinstance(tracer.shadow(left), ParameterShadow):
        _linear(call, left, right, bias)
    else:
        _contraction(call, left, right)
        if bias is not None:
            _elementwise(tracer, (call.out, bias), call.out)


def _linear(call: TracedCall, x: Tensor, weight: Tensor, bias: Any) -> None:
    tracer, out = call.tracer, call.out
    into, onto = tracer.axis(weight, 0), tracer.axis(weight, 1)
    ids = tracer.channels(x, 1, "linear layer over an input whose rows carry channels")
    if into is None or onto is None:
        _freeze_computed(call, x, weight, "linear layer with a weight that is computed")
        return
    tracer.count(call.func, call.args, call.kwargs, out, (into.ids, onto.ids))
    _read(tracer, ids, into)
    _couple_vector(tracer, bias, onto)
    tracer.write(onto, out, 1)


def batched_product(call: TracedCall) -> None:
    """Handle bmm and baddbmm over activations."""
    left, right = call.args[-2:]
    _contraction(call, left, right)
    if len(call.args) == 3:
        _elementwise(call.tracer, (call.out, call.args[0]), call.out)


def _contraction(call: TracedCall, left: Tensor, right: Tensor) -> None:
    """Handle a product of two activations: only channels in the columns of the right side pass on; the rest freezes."""
    tracer, out = call.tracer, call.out
    for value in (left, right):
        if isinstance(tracer.shadow(value), ParameterShadow):
            tracer.freeze_value(value, "a product with a parameter on the left")
    a, b = tracer.activation(left), tracer.activation(right)
    tracer.count(call.func, call.args, call.kwargs, out, ())
    tracer.set_shadow(out, None)
    inner_a = a is not None and varies(a, a.dim() - 1)
    inner_b = b is not None and varies(b, b.dim() - 2)
    rows = a is not None and any(varies(a, d) for d in range(a.dim() - 1))
    columns = b is not None and any(varies(b, d) for d in range(b.dim()) if d != b.dim() - 2)
    # A product whose cost or meaning depends on channels of more than one axis is frozen: attention fixes its sizes in
    # Python, and a scale that follows the size would change with the size.
    if columns and b is not None and not (inner_a or inner_b or rows):
        if a is not None:
            tracer.freeze(compact(a), f"{call.name} with channels on both sides")
        if call.func.overloadpacket in (aten.bmm, aten.mm) and not varies(b, 0):
            _recount(call, right, b)
        else:
            tracer.freeze(compact(b), f"{call.name} over channels in a batch axis")
            return
        tracer.set_shadow(out, b.narrow(b.dim() - 2, 0, 1).expand(out.shape))
        return
    for ids in (a, b):
        if ids is not None:
            tracer.freeze(compact(ids), f"{call.name} contracts over channels of an activation")


def _recount(call: TracedCall, right: Tensor, ids: Tensor) -> None:
    """Count the cost of a product again, as a function of the channels in the columns of its right side."""
    last = call.tracer.costs.pop()
    call.tracer.count(call.func, call.args, call.kwargs, call.out, (line(ids, ids.dim() - 1),))
    assert call.tracer.costs[-1].total == last.total and right.shape == ids.shape


def attention(call: TracedCall) -> None:
    """Freeze the channels of fused attention: its scale follows the head size, and Python code fixes its head count."""
    for value in call.args[:3]:
        call.tracer.freeze_value(value, "attention: head size and scale are fixed in the module")
    call.tracer.count(call.func, call.args, call.kwargs, call.out, ())
    for value in call.out if isinstance(call.out, tuple) else (call.out,):
        if isinstance(value, Tensor):
            call.tracer.set_shadow(value, None)


# -- normalisation -------------------------------------------------------------------------------------------------


def batch_norm(call: TracedCall) -> None:
    """Couple weight, bias and running statistics with the channels; each channel is normalised by itself."""
    _normalised(call, 1, call.args[1:5])


def group_norm(call: TracedCall) -> None:
    """Keep the groups of a group norm equal; the normalisation runs across the channels of a group."""
    groups = call.arg(6, "group")
    x = call.args[0]
    if x.shape[2:].numel() == 1 and len(x) == 1:
        call.tracer.freeze_value(x, "group norm over one pixel, which PyTorch refuses for one channel a group")
    if groups > 1 and groups != x.shape[1]:
        _equal_parts(call.tracer, x, 1, groups)
    elif groups > 1:
        call.tracer.freeze_value(x, "group norm with one channel a group")
    _normalised(call, 1, call.args[1:3], across=True)


def layer_norm(call: TracedCall) -> None:
    """Couple weight and bias with the channels; the normalisation runs across the channels, so masking differs."""
    x, shape, weight = call.args[0], call.args[1], call.arg(2, "weight")
    if len(shape) == 1 and isinstance(weight, Tensor):
        _normalised(call, x.dim() - 1, call.args[2:4], across=True)
        return
    call.tracer.freeze_value(x, "layer norm over several axes or without weights")
    for value in call.args[2:4]:
        call.tracer.freeze_value(value, "layer norm over several axes")
    call.tracer.set_shadow(_first(call.out), None)


def _normalised(call: TracedCall, dim: int, vectors: tuple[Any, ...], *, across: bool = False) -> None:
    tracer, x, out = call.tracer, call.args[0], _first(call.out)
    known = tracer.shadow(x)
    if isinstance(known, ParameterShadow):
        _standardised(call, known, dim, vectors, across=across)
        return
    ids = tracer.channels(x, dim, "normalisation over a shape whose other axes carry channels")
    for vector in vectors:
        if not isinstance(vector, Tensor):
            continue
        use = tracer.axis(vector, 0)
        if ids is None:
            tracer.fix_axis(use, vector, "normalises channels that stay")
        elif use is None:
            tracer.freeze(ids, "normalisation with weights that are computed")
            tracer.freeze_value(vector, "normalisation with weights that are computed")
        else:
            tracer.couple(ids, use.ids)
    if ids is not None and across:
        tracer.across.append(ids.numpy())
    shadow = tracer.activation(x)
    if ids is None or shadow is None:
        tracer.set_shadow(out, None)
    else:
        tracer.pass_on(out, shadow)


def _standardised(
    call: TracedCall, shadow: ParameterShadow, dim: int, vectors: tuple[Any, ...], *, across: bool
) -> None:
    """Handle the normalisation of a weight, filter by filter: the weight keeps its axes."""
    tracer, x, out = call.tracer, call.args[0], _first(call.out)
    use = tracer.axis(x, dim)
    others = [v for v in vectors if isinstance(v, Tensor)]
    uses = [tracer.axis(vector, 0) for vector in others]
    if (
        across
        or use is None
        or any(u is None and tracer.shadow(v) is not None for v, u in zip(others, uses, strict=True))
    ):
        for value in (x, *others):
            tracer.freeze_value(value, "the normalisation of a weight across its filters")
        tracer.set_shadow(out, None)
        return
    for other in uses:
        if other is None:
            tracer.freeze(use.ids, "a weight normalised by constants")
        else:
            tracer.couple(other.ids, use.ids)
    for axis in range(min(2, len(tracer.shapes[shadow.name]))):
        if axis != use.axis:
            tracer.reduced.add((shadow.name, axis))
            tracer.across.append(tracer.axis_ids(shadow.name, axis))
    tracer.set_shadow(out, shadow)


def weight_norm(call: TracedCall) -> None:
    """Handle `g * v / |v|` with the norm of each filter: both parameters are coupled, the result has the axes of v."""
    tracer, (v, g), out = call.tracer, call.args[:2], _first(call.out)
    if isinstance(tracer.shadow(v), ParameterShadow) and tracer.shadow(g) is not None:
        _elementwise_parameters(tracer, (v, g), [tracer.shadow(v), tracer.shadow(g)], out)
        for dim in range(g.dim()):
            use = tracer.axis(v, dim) if g.shape[dim] > 1 else None
            if use is not None:  # a filter of zeros has no direction: zeroing it is not the same as removing it
                tracer.across.append(use.ids)
        return
    for value in (v, g):
        tracer.freeze_value(value, "a weight norm of a computed weight")
    tracer.set_shadow(out, None)


def vector_product(call: TracedCall) -> None:
    """Handle mv and dot over parameters alone, as in a spectral norm: what is summed over is coupled."""
    tracer, (left, right), out = call.tracer, call.args[:2], call.out
    shadow, other = tracer.shadow(left), tracer.shadow(right)
    use = tracer.axis(right, 0) if isinstance(other, ParameterShadow) else None
    if isinstance(shadow, ParameterShadow) and use is not None:
        dim = left.dim() - 1
        moving = [a for a, p in enumerate(shadow.positions) if a < 2 and varies(p, dim)]
        if len(moving) == 1:
            ids = tracer.axis_ids(shadow.name, moving[0])
            tracer.couple(ids[line(shadow.positions[moving[0]], dim).numpy()], use.ids)
            rest = [p.select(dim, 0) for p in shadow.positions]
            tracer.set_shadow(out, shadow.moved(rest) if dim else None)
            return
    for value in (left, right):
        tracer.freeze_value(value, f"{call.name} has no rule for these operands")
    tracer.set_shadow(out, None)


def embedding(call: TracedCall) -> None:
    """Handle a table that is read row by row: its columns are channels, its rows stay."""
    tracer, weight, out = call.tracer, call.args[0], call.out
    use = tracer.axis(weight, 1)
    if use is None:
        tracer.freeze_value(weight, "an embedding whose table is computed")
        tracer.set_shadow(out, None)
        return
    tracer.freeze(tracer.axis_ids(use.parameter, 1 - use.axis), "the rows of a table")
    tracer.write(use, out, out.dim() - 1)


# -- element by element ----------------------------------------------------------------------------------------------


def pointwise(call: TracedCall) -> None:
    """Couple the ids of tensors that meet element by element."""
    inputs = [value for value in (*call.args, *call.kwargs.values()) if isinstance(value, Tensor)]
    _elementwise(call.tracer, tuple(inputs), _first(call.out))


def copy_into(call: TracedCall) -> None:
    """Handle `a.copy_(b)`: a gets the ids of b; ids that a had before are coupled with the ids of b."""
    target, source = call.args[:2]
    tracer = call.tracer
    if tracer.shadow(target) is not None:
        _elementwise(tracer, (target, source), target)
    elif _owns_storage(target):
        ids = tracer.activation(source)
        tracer.set_shadow(target, None if ids is None else ids.expand(target.shape))
    else:
        tracer.freeze_value(source, "written into part of a constant")


def _owns_storage(value: Tensor) -> bool:
    return value.untyped_storage().nbytes() == value.numel() * value.element_size()


def _elementwise(tracer: Tracer, inputs: tuple[Tensor, ...], out: Tensor) -> None:
    if len(inputs) == 1 and (ids := tracer.activation(inputs[0])) is not None and ids.shape == out.shape:
        tracer.pass_on(out, ids)
        return
    shadows = [tracer.shadow(value) for value in inputs]
    activations = [s for s in shadows if isinstance(s, Tensor)]
    if not activations:
        _elementwise_parameters(tracer, inputs, shadows, out)
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


def _elementwise_parameters(
    tracer: Tracer, inputs: tuple[Tensor, ...], shadows: list[Shadow | None], out: Tensor
) -> None:
    """Handle parameters alone: the result has the axes of the parameter of its shape; the others are coupled with it.

    A standardised or normalised weight, and the scale of a frozen batch norm, are computed so.
    """
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
    if any(value.shape[dim] > 1 and varies(ids, dim + offset) for dim in range(value.dim())):
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
    call.tracer.set_shadow(call.out, shadow if isinstance(shadow, Tensor) else None)


def only_shape(call: TracedCall) -> None:
    """Handle an operation that reads the shape or type of its argument, never the values."""
    call.tracer.set_shadow(call.out, None)


def fill(call: TracedCall) -> None:
    """Handle a tensor that is overwritten in place by one value: the ids do not change."""


# -- reductions and pooling ------------------------------------------------------------------------------------------


def spatial(call: TracedCall) -> None:
    """Handle pooling, resizing and border padding: each channel by itself, the image axes change size."""
    tracer, x, out = call.tracer, call.args[0], _first(call.out)
    ids = tracer.activation(x)
    image_axes = range(x.dim() - next(rank for rank in (1, 2, 3) if f"{rank}d" in call.name), x.dim())
    known = tracer.shadow(x)
    use = tracer.axis(x, 1) if isinstance(known, ParameterShadow) else None
    if use is not None and image_axes[0] == 2:
        # A table of positions that is resized to the image: its channels are written, its positions stay.
        for axis in range(len(tracer.shapes[use.parameter])):
            if axis != use.axis:
                tracer.freeze(tracer.axis_ids(use.parameter, axis), "the positions of a table")
        tracer.write(use, out, 1)
        return
    if ids is None or any(varies(ids, dim) for dim in image_axes):
        tracer.freeze_value(x, f"{call.name} over an axis that carries channels")
        tracer.set_shadow(out, None)
        return
    for dim in image_axes:
        ids = ids.narrow(dim, 0, 1)
    tracer.set_shadow(out, ids.expand(out.shape))


def reduction(call: TracedCall) -> None:
    """Handle mean, sum, max and norm over axes: harmless if the axes carry no channels, else frozen."""
    tracer, x, out = call.tracer, call.args[0], _first(call.out)
    if len(call.args) > 1 and isinstance(call.args[1], Tensor):  # max(a, b)
        pointwise(call)
        return
    position = 2 if "norm" in call.name else 1
    dims = call.arg(position, "dim")
    keepdim = bool(call.arg(position + 1, "keepdim", False))
    if dims is None or dims == []:
        dims = list(range(x.dim()))
    dims = sorted({d % x.dim() for d in ([dims] if isinstance(dims, int) else dims)})
    shadow = tracer.shadow(x)
    if isinstance(shadow, ParameterShadow) and call.name in _STATISTICS:
        _reduced_parameter(call, shadow, dims, keepdim)
        return
    ids = tracer.activation(x)
    if ids is not None and call.name in ("sum", "mean"):
        ids = _equal_along(tracer, ids, dims)
    if ids is None or any(varies(ids, dim) for dim in dims):
        tracer.freeze_value(x, f"{call.name} across channels")
        ids = None
    for value in call.out if isinstance(call.out, tuple) else (out,):
        reduced = ids
        if reduced is not None:
            for dim in reversed(dims):
                reduced = reduced.narrow(dim, 0, 1) if keepdim else reduced.select(dim, 0)
        tracer.set_shadow(value, reduced)


def _equal_along(tracer: Tracer, ids: Tensor, dims: list[int]) -> Tensor:
    """Couple the parts of a stack that are added: the ids along `dims`, if other axes carry channels as well."""
    stack = [dim for dim in dims if varies(ids, dim)]
    if not stack or not any(varies(ids, dim) for dim in range(ids.dim()) if dim not in dims):
        return ids
    equal, small = collapse(ids, stack), compact(ids)
    tracer.couple(small, compact(equal).expand(small.shape))
    return equal


_STATISTICS = ("mean", "sum", "var", "std", "var_mean", "linalg_vector_norm", "norm")


def _reduced_parameter(call: TracedCall, shadow: ParameterShadow, dims: list[int], keepdim: bool) -> None:
    """Handle a statistic of a parameter: the axes that are left keep their positions."""
    tracer, x = call.tracer, call.args[0]
    for axis, position in enumerate(shadow.positions):
        if any(varies(position, dim) for dim in dims):
            tracer.reduced.add((shadow.name, axis))
            if axis < 2 and "norm" not in call.name and call.name != "sum":
                tracer.across.append(tracer.axis_ids(shadow.name, axis))
    positions = []
    for position in shadow.positions:
        for dim in reversed(dims):
            position = position.narrow(dim, 0, 1) if keepdim else position.select(dim, 0)
        positions.append(position)
    if "norm" in call.name:
        # A filter of zeros has no direction: zeroing it is not the same as removing it.
        for axis, position in enumerate(positions[:2]):
            if any(varies(position, dim) for dim in range(position.dim())):
                tracer.across.append(tracer.axis_ids(shadow.name, axis))
    left = any(varies(p, d) for p in positions for d in range(p.dim()))
    if not left:
        tracer.freeze_value(x, f"{call.name} of a whole parameter")
    for value in call.out if isinstance(call.out, tuple) else (_first(call.out),):
        tracer.set_shadow(value, shadow.moved(positions) if left else None)


def along_axis(call: TracedCall) -> None:
    """Handle softmax and cumsum: the shape stays, the values mix along one axis."""
    tracer, x = call.tracer, call.args[0]
    ids = tracer.activation(x)
    if ids is not None and "softmax" in call.name:
        ids = _equal_along(tracer, ids, [int(call.args[1]) % x.dim()])
    if ids is None or varies(ids, int(call.args[1]) % x.dim()):
        tracer.freeze_value(x, f"{call.name} across channels")
        ids = None
    tracer.set_shadow(call.out, ids)


# -- moving data -----------------------------------------------------------------------------------------------------


def move(call: TracedCall) -> None:
    """Run the same operation on the shadow; the operation does not depend on the number of channels."""
    tracer, shadow = call.tracer, call.tracer.shadow(call.args[0])
    outs = call.out if isinstance(call.out, list | tuple) else [call.out]
    for part, value in enumerate(outs):
        tracer.set_shadow(value, _moved(call, shadow, part))


def _moved(call: TracedCall, shadow: Shadow | None, part: int) -> Shadow | None:
    if shadow is None:
        return None

    def run(ids: Tensor) -> Tensor:
        args: tuple[Any, ...] = tuple(a.cpu() if isinstance(a, Tensor) else _indices(a) for a in call.args[1:])
        if call.func.overloadpacket in _RESHAPES:
            return ids.reshape(args[0])
        if call.func.overloadpacket in _COPIES:
            return ids
        result = call.func(ids, *args, **call.kwargs)
        return result[part] if isinstance(result, list | tuple) else result

    if isinstance(shadow, ParameterShadow):
        positions = [run(p) for p in shadow.positions]
        return shadow.moved(positions)
    return run(shadow)


def _indices(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [v.cpu() if isinstance(v, Tensor) else v for v in value]
    return value


def at_fixed_positions(call: TracedCall) -> None:
    """Handle slice, select, index, roll ...: positions are constants, so an axis that carries channels must stay."""
    tracer, x = call.tracer, call.args[0]
    ids = tracer.activation(x)
    touched = _touched_axes(call)
    if ids is not None and any(varies(ids, dim) for dim in touched):
        tracer.freeze(compact(ids), f"{call.name} at fixed positions of the channels")
    move(call)


def _touched_axes(call: TracedCall) -> list[int]:
    x, name = call.args[0], call.name
    if name == "index":
        return [dim for dim, index in enumerate(call.args[1]) if index is not None]
    if name in ("roll", "flip"):
        dims = call.arg(2 if name == "roll" else 1, "dims") or range(x.dim())
        return [d % x.dim() for d in dims]
    dim = int(call.arg(1, "dim", 0)) % x.dim()
    if name == "slice":
        start, end, step = (call.arg(2, "start") or 0, call.arg(3, "end"), call.arg(4, "step", 1))
        if start == 0 and (end is None or end >= x.shape[dim]) and step == 1:
            return []
    return [dim]


def split(call: TracedCall) -> None:
    """Handle chunk and split: equal parts stay equal, position by position; unequal parts are frozen."""
    tracer, x = call.tracer, call.args[0]
    dim = int(call.arg(2, "dim", 0)) % x.dim()
    ids = tracer.activation(x)
    if ids is not None and varies(ids, dim):
        sizes = {part.shape[dim] for part in call.out}
        if len(sizes) == 1:
            _equal_parts(tracer, x, dim, len(call.out))
        else:
            tracer.freeze(compact(ids), "split into unequal parts")
    move(call)


def _equal_parts(tracer: Tracer, value: Tensor, dim: int, parts: int) -> None:
    """Couple the ids along `dim` across `parts` equal parts; the ids of the first part then stand for all parts."""
    ids = tracer.activation(value)
    if ids is None or parts == 1:
        return
    stretches = ids.unflatten(dim, (parts, -1))
    first = stretches.narrow(dim, 0, 1)
    small, one = compact(stretches), compact(first)
    if small.shape[dim] > 1:
        tracer.couple(small, one.expand(small.shape))
    tracer.set_shadow(value, first.expand(stretches.shape).reshape(ids.shape))


def view(call: TracedCall) -> None:
    """Handle a reshape: merged axes just merge; an axis of channels that is split becomes equal parts."""
    tracer, x, out = call.tracer, call.args[0], call.out
    ids = tracer.activation(x)
    if ids is None:
        move(call)
        return
    moved = ids.reshape(out.shape)
    for inside, outside in _axis_blocks(x.shape, out.shape):
        if len(outside) < 2 or not any(varies(ids, dim) for dim in inside):
            continue
        changing = [dim for dim in outside if varies(moved, dim)]
        if len(changing) < 2:
            continue
        if sum(x.shape[dim] > 1 for dim in inside) > 1:
            tracer.freeze(compact(moved), "a reshape that mixes channels with another axis")
            continue
        # a*b -> a, b: the b positions are the channels, the same in each of the a parts.
        kept = changing[-1]
        small = compact(moved)
        equal = collapse(moved, [dim for dim in changing if dim != kept])
        tracer.couple(small, compact(equal).expand(small.shape))
        moved = equal
    tracer.set_shadow(out, moved)


def _axis_blocks(before: torch.Size, after: torch.Size) -> list[tuple[list[int], list[int]]]:
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


def concatenate(call: TracedCall) -> None:
    """Handle cat and stack: each part keeps its ids; a part without channels gives positions that stay."""
    tracer, out = call.tracer, call.out
    values = list(call.args[0])
    dim = int(call.arg(1, "dim", 0))
    if call.name == "cat":
        values = [v for v in values if v.shape != (0,)]
    axes = {
        axis - values[0].dim()
        for value in values
        if (ids := tracer.activation(value)) is not None
        for axis in range(value.dim())
        if varies(ids, axis)
    }
    if not axes:
        for value in values:
            tracer.freeze_value(value, "parameters joined before use")
        tracer.set_shadow(out, None)
        return
    parts = [_part(tracer, value, axes) for value in values]
    axis = dim % out.dim()
    if call.name == "cat" and axis - out.dim() not in axes:
        tracer.set_shadow(out, _side_by_side(tracer, parts, axis, out.shape))
        return
    tracer.set_shadow(out, torch.stack(parts, dim) if call.name == "stack" else torch.cat(parts, dim))


def _side_by_side(tracer: Tracer, parts: list[Tensor], axis: int, shape: torch.Size) -> Tensor | None:
    """Join parts along an axis without channels; the channels of all parts are coupled."""
    tracked = [part.narrow(axis, 0, 1) for part in parts if bool(compact(part).any())]
    if len(tracked) < len(parts):
        for part in tracked:
            tracer.freeze(compact(part), "joined with a constant along another axis")
    for part in tracked[1:]:
        tracer.couple(compact(part), compact(tracked[0]).expand(compact(part).shape))
    return tracked[0].expand(shape)


def _part(tracer: Tracer, value: Tensor, axes: set[int]) -> Tensor:
    """Return the ids of one part of a concatenation; `axes` (from the end) carry the channels of the other parts."""
    shadow = tracer.shadow(value)
    if isinstance(shadow, Tensor):
        return shadow
    if isinstance(shadow, ParameterShadow) and len(axes) == 1:
        (axis,) = axes
        use = tracer.axis(value, axis)
        for other in range(-value.dim(), 0):
            if other != axis and value.shape[other] > 1:
                tracer.fix_axis(tracer.axis(value, other), value, "meets an axis without channels")
        if use is not None:
            shape = [-1 if d == axis else 1 for d in range(-value.dim(), 0)]
            return torch.from_numpy(use.ids).view(shape).expand(value.shape)
    tracer.freeze_value(value, "joined with an activation")
    return torch.zeros(1, dtype=torch.int64).expand(value.shape)


def pad(call: TracedCall) -> None:
    """Handle padding with a constant: along an axis of channels the new positions stay; other axes just grow."""
    tracer, x, out = call.tracer, call.args[0], call.out
    ids = tracer.activation(x)
    if ids is None:
        tracer.freeze_value(x, "a padded parameter")
        tracer.set_shadow(out, None)
        return
    amounts = list(call.args[1])
    for step in range(len(amounts) // 2):
        dim = x.dim() - 1 - step
        before, after = amounts[2 * step : 2 * step + 2]
        if not varies(ids, dim):
            shape = list(ids.shape)
            shape[dim] = out.shape[dim]
            ids = ids.narrow(dim, 0, 1).expand(shape)
        elif before < 0 or after < 0:
            tracer.freeze(compact(ids), "cropped at fixed positions of the channels")
            ids = torch.nn.functional.pad(ids, [0, 0] * step + [before, after])
        elif before or after:
            ids = torch.nn.functional.pad(ids, [0, 0] * step + [before, after])
    tracer.set_shadow(out, ids)


def restride(call: TracedCall) -> None:
    """Handle as_strided if every element keeps its place; else freeze."""
    tracer, x, out = call.tracer, call.args[0], call.out
    size, stride = tuple(call.args[1]), tuple(call.args[2])
    offset = call.arg(3, "storage_offset")
    ids = tracer.activation(x)
    in_place = ids is not None and tuple(ids.shape) == size and (offset is None or offset == x.storage_offset())
    if in_place and all(n == 1 or new == old for n, new, old in zip(size, stride, call.strides, strict=False)):
        tracer.set_shadow(out, ids)
        return
    tracer.freeze_value(x, "as_strided")
    tracer.set_shadow(out, None)


def shuffle_pixels(call: TracedCall) -> None:
    """Handle pixel_shuffle: C*r*r channels become C; the r*r positions of each channel are coupled."""
    tracer, x, out = call.tracer, call.args[0], call.out
    ids = tracer.channels(x, x.dim() - 3, "pixel_shuffle over a shape whose other axes carry channels")
    if ids is None:
        tracer.set_shadow(out, None)
        return
    parts = ids.view(out.shape[-3], -1)
    tracer.couple(parts[:, 1:], parts[:, :1])
    tracer.set_shadow(out, parts[:, 0].view(-1, 1, 1).expand(out.shape))


def unshuffle_pixels(call: TracedCall) -> None:
    """Handle pixel_unshuffle: every channel becomes r * r channels side by side."""
    tracer, x, out = call.tracer, call.args[0], call.out
    ids = tracer.channels(x, x.dim() - 3, "pixel_unshuffle over a shape whose other axes carry channels")
    if ids is None:
        tracer.freeze_value(x, "a pixel_unshuffle of a parameter")
        tracer.set_shadow(out, None)
        return
    _channels_of_maps(tracer, out, ids.repeat_interleave(out.shape[-3] // x.shape[-3]))


def sample(call: TracedCall) -> None:
    """Handle grid_sample and the pooling of regions: each channel by itself, at places that another input gives."""
    tracer, x, out = call.tracer, call.args[0], _first(call.out)
    for value in call.args[1:]:
        tracer.freeze_value(value, f"the places of {call.name}")
    ids = tracer.channels(x, 1, f"{call.name} over a shape whose other axes carry channels")
    if ids is None:
        tracer.freeze_value(x, f"{call.name} of a parameter")
        tracer.set_shadow(out, None)
        return
    _channels_of_maps(tracer, out, ids)


def _channels_of_maps(tracer: Tracer, out: Tensor, ids: Tensor) -> None:
    """Attach the ids of the channels of maps `(..., channels, height, width)`; three axes behind them for volumes."""
    dim = out.dim() - 3 if out.dim() < 5 else 1
    tracer.set_shadow(out, ids.view([-1 if d == dim else 1 for d in range(out.dim())]).expand(out.shape))


def deformable_convolution(call: TracedCall) -> None:
    """Handle torchvision's deformable convolution without groups as a convolution; its offsets stay."""
    tracer, out = call.tracer, call.out
    x, weight, offset, mask, bias = call.args[:5]
    for value in (offset, mask):
        tracer.freeze_value(value, "the offsets of a deformable convolution")
    into, onto, groups = tracer.axis(weight, 1), tracer.axis(weight, 0), call.args[11:13]
    if into is None or onto is None or tuple(groups) != (1, 1):
        _freeze_computed(call, x, weight, "a deformable convolution in groups, or with a weight that is computed")
        tracer.freeze_value(bias, "a deformable convolution in groups, or with a weight that is computed")
        return
    _read(tracer, tracer.channels(x, 1, "convolution over a shape whose spatial axes carry channels"), into)
    _couple_vector(tracer, bias, onto)
    tracer.write(onto, out, 1)


def recurrent(call: TracedCall) -> None:
    """Handle LSTM, GRU and RNN: the channels that they read can go; their hidden size is fixed in the module."""
    tracer, x, one_layer = call.tracer, call.args[0], call.name == "mkldnn_rnn_layer"
    weights = list(call.args[1:5] if one_layer else call.args[2])
    ids = tracer.channels(x, x.dim() - 1, "a recurrent layer over a shape whose other axes carry channels")
    # Every direction of the first layer has a weight of (gates, inputs) first.
    first = weights[:1] if one_layer else _first_layer(call, weights)
    for weight in weights:
        for dim in range(weight.dim()):
            use = tracer.axis(weight, dim)
            if dim == 1 and use is not None and any(weight is one for one in first):
                _read(tracer, ids, use)
            else:
                tracer.fix_axis(use, weight, "the hidden size of a recurrent layer is fixed in the module")
    states = call.args[5:7] if one_layer else (call.args[1],)
    for value in states:
        for state in value if isinstance(value, list | tuple) else (value,):
            tracer.freeze_value(state, "the hidden size of a recurrent layer is fixed in the module")
    for value in call.out:
        if isinstance(value, Tensor):
            tracer.set_shadow(value, None)


def _first_layer(call: TracedCall, weights: list[Tensor]) -> list[Tensor]:
    """Return the weights that read the input: one for each direction."""
    layers, two_ways = int(call.args[4]), bool(call.args[7])
    step = len(weights) // (layers * (1 + two_ways))
    return [weights[0], weights[step]] if two_ways else [weights[0]]


def _first(out: Any) -> Tensor:
    first = out[0] if isinstance(out, list | tuple) else out
    assert isinstance(first, Tensor)
    return first


_RESHAPES = {aten.view, aten._unsafe_view, aten.reshape, aten._reshape_alias, aten.view_copy}
_COPIES = {aten.clone, aten._to_copy, aten.detach, aten.alias, aten.lift_fresh, aten.contiguous, aten.lift_fresh_copy}


def _packets(names: str) -> list[Any]:
    """Return the operators of these names that this version of PyTorch has."""
    return [getattr(aten, name) for name in names.split() if hasattr(aten, name)]


_TABLE: list[tuple[Callable[[TracedCall], None], str]] = [
    (convolution, "convolution convolution_overrideable"),
    (matrix_product, "mm addmm"),
    (vector_product, "mv dot vdot"),
    (weight_norm, "_weight_norm_interface"),
    (embedding, "embedding"),
    (batched_product, "bmm baddbmm"),
    (
        attention,
        "_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention "
        "_scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention "
        "_scaled_dot_product_fused_attention_overrideable",
    ),
    (batch_norm, "native_batch_norm _native_batch_norm_legit_no_training cudnn_batch_norm miopen_batch_norm"),
    (group_norm, "native_group_norm"),
    (layer_norm, "native_layer_norm"),
    (
        pointwise,
        "hardswish hardswish_ _prelu_kernel where masked_fill masked_fill_ relu relu_ lerp addcmul addcdiv clamp_min "
        "clamp_max gelu_ celu celu_ selu selu_ mish mish_ threshold_ native_dropout",
    ),
    (copy_into, "copy_"),
    (same_shape_constant, "zeros_like ones_like empty_like full_like rand_like randn_like"),
    (only_shape, "new_zeros new_ones new_empty new_full new_empty_strided"),
    (fill, "zero_ fill_"),
    (
        spatial,
        "max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices avg_pool1d avg_pool2d avg_pool3d "
        "_adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_max_pool2d adaptive_max_pool3d upsample_nearest1d "
        "upsample_nearest2d upsample_nearest3d upsample_linear1d upsample_bilinear2d upsample_trilinear3d "
        "upsample_bicubic2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa _upsample_nearest_exact1d "
        "_upsample_nearest_exact2d _upsample_nearest_exact3d reflection_pad1d reflection_pad2d reflection_pad3d "
        "replication_pad1d replication_pad2d replication_pad3d mkldnn_max_pool2d fractional_max_pool2d "
        "fractional_max_pool3d",
    ),
    (reduction, "mean sum amax amin max min var std var_mean prod linalg_vector_norm norm logsumexp argmax any all"),
    (along_axis, "_softmax _log_softmax _safe_softmax cumsum"),
    (
        move,
        "permute transpose t expand squeeze unsqueeze clone _to_copy detach alias lift_fresh lift_fresh_copy "
        "permute_copy transpose_copy t_copy expand_copy squeeze_copy unsqueeze_copy repeat",
    ),
    (at_fixed_positions, "slice select index index_select roll flip diagonal gather unfold narrow unbind"),
    (split, "split split_with_sizes unsafe_split unsafe_chunk unsafe_split_with_sizes"),
    (view, "view _unsafe_view reshape _reshape_alias"),
    (concatenate, "cat stack"),
    (pad, "constant_pad_nd"),
    (restride, "as_strided as_strided_"),
    (shuffle_pixels, "pixel_shuffle"),
    (unshuffle_pixels, "pixel_unshuffle"),
    (sample, "grid_sampler_2d grid_sampler_3d cudnn_grid_sampler"),
    (recurrent, "mkldnn_rnn_layer lstm gru rnn_tanh rnn_relu"),
]

RULES: dict[Any, Callable[[TracedCall], None]] = {
    "pointwise": pointwise,
    "torchvision.roi_align": sample,
    "torchvision.roi_pool": sample,
    "torchvision.deform_conv2d": deformable_convolution,
    **{packet: rule for rule, names in _TABLE for packet in _packets(names)},
}
"""Rule of each operator, or of its name if another library defines it.

`"pointwise"` is the rule of every operator that PyTorch itself tags as pointwise.
"""
