"""Rules of matrix products and of attention."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from raprune.channels.elementwise import elementwise
from raprune.channels.ids import ParameterShadow, compact, line, varies
from raprune.channels.layers import linear
from raprune.channels.movement import first
from raprune.channels.positions import IndexArray
from raprune.channels.query_keys import record_product
from raprune.channels.shadow import CostRecord, TracedCall, Tracer

aten = torch.ops.aten


def matrix_product(call: TracedCall) -> None:
    """Handle mm and addmm: a linear layer if the right side is a parameter, else a contraction of two activations."""
    left, right = call.args[-2:]
    bias = call.args[0] if len(call.args) == 3 else None
    tracer = call.tracer
    table = tracer.shadow(left)
    # A buffer is data, such as the coordinates of a window: its columns stay, as an image's colours do.
    data = isinstance(table, ParameterShadow) and table.name in tracer.buffers
    if isinstance(table, ParameterShadow) and isinstance(tracer.shadow(right), ParameterShadow) and not data:
        _read_table(call, left)
    if isinstance(tracer.shadow(right), ParameterShadow) and (
        data or not isinstance(tracer.shadow(left), ParameterShadow)
    ):
        linear(call, left, right, bias)
    else:
        _contraction(call, left, right)
        if bias is not None:
            elementwise(tracer, (call.out, bias), call.out)


def _read_table(call: TracedCall, table: Tensor) -> None:
    """Let a parameter that a layer reads, as a detector's queries, be an activation: its columns are channels."""
    use = call.tracer.axis(table, 1)
    if use is not None:
        for axis in range(len(call.tracer.shapes[use.parameter])):
            if axis != use.axis:
                call.tracer.freeze(call.tracer.axis_ids(use.parameter, axis), "the rows of a table")
        call.tracer.write(use, table, 1)


def batched_product(call: TracedCall) -> None:
    """Handle bmm and baddbmm over activations."""
    left, right = call.args[-2:]
    _contraction(call, left, right)
    if len(call.args) == 3:
        elementwise(call.tracer, (call.out, call.args[0]), call.out)


def _contraction(call: TracedCall, left: Tensor, right: Tensor) -> None:
    """Handle a product of two activations: channels that are summed over are coupled, those of the columns pass on."""
    tracer, out = call.tracer, call.out
    for value in (left, right):
        if isinstance(tracer.shadow(value), ParameterShadow):
            tracer.freeze_value(value, "a product with a parameter on the left")
    a, b = tracer.activation(left), tracer.activation(right)
    if a is not None and _are_heads(call, a, right):
        a = None
    tracer.count(call.func, call.args, call.kwargs, out, ())
    tracer.set_shadow(out, None)
    inner_a = a is not None and varies(a, a.dim() - 1)
    inner_b = b is not None and varies(b, b.dim() - 2)
    rows = a is not None and any(varies(a, d) for d in range(a.dim() - 1))
    columns = b is not None and any(varies(b, d) for d in range(b.dim()) if d != b.dim() - 2)
    if a is not None and b is not None and inner_a and inner_b and not (rows or columns):
        summed = line(a, a.dim() - 1)
        tracer.couple(summed, line(b, b.dim() - 2))
        tracer.contracted.append(_numbers(summed))
        record_product(tracer, left, right, transposed=True)
        _recount(call, summed)
        return
    if a is not None and b is not None and rows and columns and not (inner_a or inner_b):
        # The result has channels along two axes; those of the larger one pass on.
        fewer = min((a, b), key=lambda ids: int(compact(ids).unique().numel()))
        tracer.freeze(compact(fewer), f"{call.name} with channels on both sides")
        if fewer is a:
            a, rows = None, False
        else:
            b, columns = None, False
    # Channels on one side of the sum meet an axis without channels on the other side; what else runs there passes on.
    if a is not None and b is not None and inner_b and rows and not (inner_a or columns):
        tracer.freeze(compact(b), f"{call.name} contracts over channels of an activation")
        b = None
    if a is not None and b is not None and inner_a and columns and not (inner_b or rows):
        tracer.freeze(compact(a), f"{call.name} contracts over channels of an activation")
        a, inner_a = None, False
    if a is not None and b is None and rows and not inner_a and not any(varies(a, d) for d in range(a.dim() - 2)):
        _recount(call, line(a, a.dim() - 2))
        tracer.set_shadow(out, a.narrow(a.dim() - 1, 0, 1).expand(out.shape))
        return
    # A product whose cost or meaning depends on channels of more than one axis is frozen.
    if columns and b is not None and not (inner_a or inner_b or rows):
        if a is not None:
            tracer.freeze(compact(a), f"{call.name} with channels on both sides")
        if call.func.overloadpacket in (aten.bmm, aten.mm) and not varies(b, 0):
            _recount(call, line(b, b.dim() - 1))
        else:
            tracer.freeze(compact(b), f"{call.name} over channels in a batch axis")
            return
        tracer.set_shadow(out, b.narrow(b.dim() - 2, 0, 1).expand(out.shape))
        return
    for ids in (a, b):
        if ids is not None:
            tracer.freeze(compact(ids), f"{call.name} contracts over channels of an activation")


def _are_heads(call: TracedCall, ids: Tensor, right: Tensor) -> bool:
    """Return True if channels along the batch axis of the left side are the heads of the right side.

    A layer that mixes the products of all heads writes such channels. They go with the heads, and not by themselves.
    """
    heads = [layer for layer in call.tracer.heads.layers(right) if varies(layer, 0)]
    if not heads or any(varies(ids, dim) != (dim == 0) for dim in range(ids.dim())):
        return False
    call.tracer.heads.tag(_numbers(line(ids, 0)), _numbers(line(heads[0], 0)))
    call.tracer.freeze(line(ids, 0), "they are the heads of attention")
    return True


def _recount(call: TracedCall, ids: Tensor) -> None:
    """Count the cost of a product again, as a function of the channels `ids`."""
    costs = call.tracer.costs
    costs[-1] = replace(costs[-1], widths=(_numbers(ids),))


def attention(call: TracedCall) -> None:
    """Couple the widths of queries and keys in fused attention; the values pass on.

    Without a scale, PyTorch divides the products by the root of the width. A cut changes the queries' weights, so that
    the products keep the scale of the dense network; where no weights are known that do it, the width stays.
    """
    tracer, out = call.tracer, first(call.out)
    reason = f"{call.name} over a shape whose other axes carry channels"
    q, k, v = (tracer.channels(value, 3, reason) for value in call.args[:3])
    for value in call.args[:3]:
        if isinstance(tracer.shadow(value), ParameterShadow):
            tracer.freeze_value(value, "fused attention with a parameter")
    for mask in (*call.args[3:], *call.kwargs.values()):
        tracer.freeze_value(mask, "they are the heads of attention")
    tracer.fused += 1
    pairs = [ids for ids in (q, k) if ids is not None and bool(ids.any())]
    own = _positions_of(tracer, call.args[0])
    if len(pairs) == 1 or (pairs and call.kwargs.get("scale") is None and own is None):
        for ids in pairs:
            tracer.freeze(ids, _FOLLOWS)
        q = None
    elif pairs:
        tracer.couple(pairs[0], pairs[1])
        tracer.contracted.append(_numbers(pairs[0]))
        record_product(tracer, *call.args[:2])
        if call.kwargs.get("scale") is None and own is not None:
            tracer.heads.scales.append((_numbers(pairs[0]), own))
    _count_both(call, q, v)
    for value in call.out if isinstance(call.out, tuple) else (call.out,):
        if isinstance(value, Tensor):
            tracer.set_shadow(value, None)
    if v is not None:
        tracer.set_shadow(out, v.view(1, 1, 1, -1).expand(out.shape))


_FOLLOWS = "the scale of attention follows the width"


def _positions_of(tracer: Tracer, query: Tensor) -> IndexArray | None:
    """Return the ids that the elements of the queries had before they were split into heads; None if not known."""
    own = tracer.heads.own(query)
    if own is None:  # one head: the channels were never split
        ids = tracer.activation(query)
        if ids is None or query.shape[:-2].numel() > len(query):
            return None
        own = ids
    return np.unique(compact(own).numpy())


class ScaledAttention(TorchFunctionMode):
    """Mode that sees the calls of PyTorch's attention that run as single operations, such as one over five axes.

    Their scale is a number that follows the width of the queries, as that of fused attention.
    """

    def __init__(self, tracer: Tracer) -> None:
        super().__init__()
        self._tracer = tracer

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not functional.scaled_dot_product_attention:
            return func(*args, **kwargs)
        before = self._tracer.fused
        out = func(*args, **kwargs)
        if self._tracer.fused == before and kwargs.get("scale") is None:
            self._follow(args[0] if args else kwargs["query"])
        return out

    def _follow(self, query: Tensor) -> None:
        tracer, ids = self._tracer, self._tracer.activation(query)
        if ids is None or not varies(ids, ids.dim() - 1):
            return
        widths, own = line(ids, ids.dim() - 1), _positions_of(tracer, query)
        if own is None:
            tracer.freeze(widths, _FOLLOWS)
        else:
            tracer.heads.scales.append((_numbers(widths), own))


def _numbers(ids: Tensor) -> IndexArray:
    return np.asarray(ids.numpy())


def _count_both(call: TracedCall, q: Tensor | None, v: Tensor | None) -> None:
    """Count the two products of attention apart: the width of the queries and that of the values are their factors."""
    costs = call.tracer.costs
    before = len(costs)
    call.tracer.count(call.func, call.args, call.kwargs, call.out, ())
    if len(costs) == before:
        return
    (both,) = costs[before:]
    scores, values = call.args[0].shape[3], call.args[2].shape[3]
    share = both.total // (scores + values)
    assert share * (scores + values) == both.total
    costs[before:] = [
        CostRecord(both.module, share * size, (), () if ids is None else (_numbers(ids),))
        for size, ids in ((scores, q), (values, v))
    ]
