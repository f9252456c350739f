"""Rules of operations that move data: the same operation runs on the shadow."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from raprune.channels.code import attribute_here, name_here
from raprune.channels.ids import ParameterShadow, Shadow, axis_blocks, collapse, compact, joined, line, reshaped, varies
from raprune.channels.parts import SizedPart, sequences_of
from raprune.channels.positions import IndexArray
from raprune.channels.shadow import TracedCall, Tracer

aten = torch.ops.aten


def move(call: TracedCall) -> None:
    """Run the same operation on the shadow; the operation does not depend on the number of channels."""
    tracer, shadow = call.tracer, call.tracer.shadow(call.args[0])
    outs = call.out if isinstance(call.out, list | tuple) else [call.out]
    for part, value in enumerate(outs):
        tracer.set_shadow(value, moved(call, shadow, part))


def moved(call: TracedCall, shadow: Shadow | None, part: int) -> Shadow | None:
    if shadow is None:
        return None

    def run(ids: Tensor) -> Tensor:
        args: tuple[Any, ...] = tuple(a.cpu() if isinstance(a, Tensor) else _indices(a) for a in call.args[1:])
        if call.func.overloadpacket in RESHAPES:
            return reshaped(ids, call.out.shape)
        if call.func.overloadpacket in COPIES:
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
    touched = touched_axes(call)
    if ids is not None and any(varies(ids, dim) for dim in touched) and not _sliced_at_a_number(call, ids):
        tracer.freeze(compact(ids), f"{call.name} at fixed positions of the channels")
    move(call)


def _sliced_at_a_number(call: TracedCall, ids: Tensor) -> bool:
    """Return True for `x[:, :self.n]` and `x[:, self.n:]` along an axis of channels, where n can follow the cut."""
    x = call.args[0]
    if call.name != "slice" or call.arg(4, "step", 1) != 1:
        return False
    dim = int(call.arg(1, "dim", 0)) % x.dim()
    start, end = call.arg(2, "start") or 0, call.arg(3, "end")
    end = x.shape[dim] if end is None else min(end, x.shape[dim])
    at = end if start == 0 else start
    if not 0 < at < x.shape[dim] or (start and end < x.shape[dim]):
        return False
    if any(varies(ids, other) for other in range(ids.dim()) if other != dim):
        return False
    return not _over_heads(call, dim) and call.tracer.size_parts([line(ids, dim).numpy()[:at]]) is not None


def touched_axes(call: TracedCall) -> list[int]:
    x, name = call.args[0], call.name
    if name == "index":
        return [dim for dim, index in enumerate(call.args[1]) if index is not None]
    if name in ("roll", "flip"):
        dims = call.arg(2 if name == "roll" else 1, "dims") or range(x.dim())
        return [d % x.dim() for d in dims]
    if "split" in name or "chunk" in name:
        return [int(call.arg(2, "dim", 0)) % x.dim()]
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
            equal_parts(tracer, x, dim, len(call.out))
            first_part, count = line(ids, dim).numpy()[: call.out[0].shape[dim]], len(call.out)
            if not _over_heads(call, dim):
                tracer.size_parts([first_part] * count, _heads_beside(call, dim))
        else:
            _unequal_parts(call, ids, dim)
    move(call)


def _unequal_parts(call: TracedCall, ids: Tensor, dim: int) -> None:
    """Let the parts of a split lose channels apart, if numbers on the module say where it splits; else freeze."""
    tracer = call.tracer
    if any(varies(ids, other) for other in range(ids.dim()) if other != dim):
        tracer.freeze(compact(ids), "split into unequal parts")
        return
    parts = np.split(line(ids, dim).numpy(), np.cumsum([part.shape[dim] for part in call.out])[:-1])
    found = None if _over_heads(call, dim) else tracer.size_parts(parts, _heads_beside(call, dim))
    if found is None:
        tracer.freeze(compact(ids), "split into unequal parts")
        return
    by_number: dict[tuple[str, int | None], IndexArray] = {}
    for part in parts:  # parts of one size that have one number stay equal
        for one in found:
            if one.place is None and len(part) == len(one.ids) and part is not one.ids:
                tracer.couple(part, by_number.setdefault((one.name, None), one.ids))


def _over_heads(call: TracedCall, dim: int) -> bool:
    """Return True if an axis has the widths of all heads in a row: its parts have no number of their own."""
    return any(varies(layer, dim) for layer in call.tracer.heads.layers(call.args[0]))


def _heads_beside(call: TracedCall, dim: int) -> IndexArray | None:
    """Return the ids of the heads of a tensor whose widths are split along `dim`; None if it has no heads."""
    for layer in call.tracer.heads.layers(call.args[0]):
        others = [other for other in range(layer.dim()) if other != dim and varies(layer, other)]
        if len(others) == 1 and not varies(layer, dim):
            return line(layer, others[0]).numpy()
    return None


def equal_parts(tracer: Tracer, value: Tensor, dim: int, parts: int) -> None:
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
        _record_shape(tracer, x, out)
        return
    after = reshaped(ids, out.shape)
    blocks = axis_blocks(x.shape, out.shape)
    same = [(outside[0], inside[0]) for inside, outside in blocks if len(inside) == len(outside) == 1]
    for inside, outside in blocks:
        if len(outside) < 2 or not any(varies(ids, dim) for dim in inside):
            continue
        changing = [dim for dim in outside if varies(after, dim)]
        if len(changing) < 2:
            continue
        if sum(x.shape[dim] > 1 for dim in inside) > 1:
            tracer.freeze(compact(after), "a reshape that mixes channels with another axis")
            continue
        # a*b -> a, b: the b positions are the channels, the same in each of the a parts.
        kept = changing[-1]
        small = compact(after)
        equal = collapse(after, changing[:-1])
        with tracer.heads.inside():  # the heads have equal widths, but go one by one
            tracer.couple(small, compact(equal).expand(small.shape))
        tracer.split_heads(x, out, after, kept, changing[:-1])
        tracer.heads.record_reshape(tracer.module, changing, out.dim(), same)
        after = equal
        if 1 in out.shape[changing[0] + 1 : kept]:  # parts of one head: the numbers of a head are those of the channels
            _record_number(tracer, out, after)
    if not tracer.heads.layers(x) and not tracer.heads.layers(out):
        _record_number(tracer, out, after)
        _record_name(tracer, x, out, after)
    if tracer.heads.layers(x):
        tracer.heads.record_reshape(tracer.module, [d for d in range(out.dim()) if varies(after, d)], out.dim())
    tracer.set_shadow(out, after)


def _record_number(tracer: Tracer, out: Tensor, ids: Tensor) -> None:
    """Record an attribute that the code passes to a reshape as the number of channels: `x.reshape(n, self.dim, -1)`."""
    numbers = tracer.numbers
    for dim in range(out.dim()) if numbers else ():
        if out.shape[dim] in numbers and varies(ids, dim):
            name = attribute_here(dim, out.dim())
            if name in numbers[out.shape[dim]]:
                tracer.record_part(SizedPart(tracer.module, name, None, line(ids, dim).numpy()))


def _record_shape(tracer: Tracer, x: Tensor, out: Tensor) -> None:
    """Record the number of channels or heads in a shape that the module keeps for a parameter.

    `self.scale.view(self.shape)` is one case, and `self.table[self.index].view(self.bias_shape)` another.
    """
    if not isinstance(tracer.shadow(out), ParameterShadow):
        return
    # A method of a part may be called in place of the part itself, as `self.rel_pos.get_bias()`.
    prefix = f"{tracer.module}." if tracer.module else ""
    owners = [(tracer.module, tracer.running), *((prefix + n, m) for n, m in tracer.running.named_children())]
    for module, owner in owners:
        for name, values in sequences_of(owner):
            if tuple(values) == tuple(out.shape):
                for place, size in enumerate(values):
                    use = tracer.axis(out, place) if size > 1 else None
                    if use is not None and len(use.ids) == tracer.shapes[use.parameter][use.axis]:
                        tracer.record_part(SizedPart(module, name, place, use.ids))


def _record_name(tracer: Tracer, x: Tensor, out: Tensor, ids: Tensor) -> None:
    """Record a reshape that names the channels by a number of another tensor: `self.conv(x).reshape(B, C, -1)`."""
    dims = [dim for dim in range(out.dim()) if varies(ids, dim)]
    if len(dims) == 1 and dims[0] < x.dim() and x.shape[: dims[0] + 1] == out.shape[: dims[0] + 1]:
        reshape = name_here(tracer.module, dims[0], out.dim(), dims[0])
        if reshape is not None:
            tracer.heads.reshapes[reshape] = None


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
        vectors = [tracer.axis(value, 0) if value.dim() == 1 else None for value in values]
        uses = [use for use in vectors if use is not None]
        if call.name == "cat" and len(uses) == len(vectors):
            # One bias of several, as for queries, keys and values.
            tracer.set_shadow(out, torch.from_numpy(np.concatenate([use.ids for use in uses])))
            return
        for value in values:
            tracer.freeze_value(value, "parameters joined before use")
        tracer.set_shadow(out, None)
        return
    parts = [_part(tracer, value, axes) for value in values]
    axis = dim % out.dim()
    if call.name == "cat" and axis - out.dim() not in axes:
        tracer.set_shadow(out, _side_by_side(tracer, parts, axis, out.shape))
        return
    tracer.set_shadow(out, joined([part.unsqueeze(axis) for part in parts] if call.name == "stack" else parts, axis))


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


def first(out: Any) -> Tensor:
    first = out[0] if isinstance(out, list | tuple) else out
    assert isinstance(first, Tensor)
    return first


RESHAPES = {aten.view, aten._unsafe_view, aten.reshape, aten._reshape_alias, aten.view_copy}
COPIES = {aten.clone, aten._to_copy, aten.detach, aten.alias, aten.lift_fresh, aten.contiguous, aten.lift_fresh_copy}


def packets(names: str) -> list[Any]:
    """Return the operators of these names that this version of PyTorch has."""
    return [getattr(aten, name) for name in names.split() if hasattr(aten, name)]
