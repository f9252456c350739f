"""Rules of pooling, resizing and reductions: an axis of channels passes by, or freezes."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from raprune.channels.elementwise import pointwise
from raprune.channels.ids import ParameterShadow, collapse, compact, varies
from raprune.channels.movement import first
from raprune.channels.shadow import NO_CHANNEL, TracedCall, Tracer
from raprune.channels.statistics import SYMMETRIC, reduced_axes


def spatial(call: TracedCall) -> None:
    """Handle pooling, resizing and border padding: each channel by itself, the image axes change size."""
    tracer, x, out = call.tracer, call.args[0], first(call.out)
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
    """Handle mean, sum, max and norm over axes: harmless along axes without channels.

    Across all channels, a mean, a sum, a deviation, a norm or the largest value is as symmetric as a layer norm; the
    channels may go. Where one of them is taken decides, as for `argmax`, they stay.
    """
    tracer, x, out = call.tracer, call.args[0], first(call.out)
    if len(call.args) > 1 and isinstance(call.args[1], Tensor):  # max(a, b)
        pointwise(call)
        return
    dims, keepdim = reduced_axes(call.name, call.args, call.kwargs)
    shadow = tracer.shadow(x)
    if isinstance(shadow, ParameterShadow) and call.name in _STATISTICS:
        _reduced_parameter(call, shadow, dims, keepdim)
        return
    ids = tracer.activation(x)
    if ids is not None and call.name in ("sum", "mean"):
        ids = _equal_along(tracer, ids, dims)
    if ids is not None and any(varies(ids, dim) for dim in dims):
        if call.name in SYMMETRIC and not any(varies(ids, dim) for dim in range(x.dim()) if dim not in dims):
            _across(call, ids)
        else:
            tracer.freeze_value(x, f"{call.name} across channels")
        ids = None
    elif ids is None:
        tracer.freeze_value(x, f"{call.name} across channels")
    for value in call.out if isinstance(call.out, tuple) else (out,):
        reduced = ids
        if reduced is not None:
            for dim in reversed(dims):
                reduced = reduced.narrow(dim, 0, 1) if keepdim else reduced.select(dim, 0)
        tracer.set_shadow(value, reduced)


def _across(call: TracedCall, ids: Tensor) -> None:
    """Record a statistic over channels; the places of the largest and smallest values must not be used."""
    numbers = np.unique(compact(ids).numpy())
    numbers = numbers[numbers != NO_CHANNEL]
    call.tracer.across.append(numbers)
    call.tracer.summed.append(numbers)
    for value in call.out[1:] if call.name in ("max", "min") and isinstance(call.out, tuple) else ():
        call.tracer.freeze_if_used(value, numbers, f"the place of {call.name} across channels")


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
    for value in call.out if isinstance(call.out, tuple) else (first(call.out),):
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
