"""Rules of matrix products and of attention."""

from __future__ import annotations

import torch
from torch import Tensor

from raprune.channels.elementwise import elementwise
from raprune.channels.layers import linear
from raprune.channels.shadow import ParameterShadow, TracedCall, compact, line, varies

aten = torch.ops.aten


def matrix_product(call: TracedCall) -> None:
    """Handle mm and addmm: a linear layer if the right side is a parameter, else a contraction of two activations."""
    left, right = call.args[-2:]
    bias = call.args[0] if len(call.args) == 3 else None
    tracer = call.tracer
    if isinstance(tracer.shadow(right), ParameterShadow) and not isinstance(tracer.shadow(left), ParameterShadow):
        linear(call, left, right, bias)
    else:
        _contraction(call, left, right)
        if bias is not None:
            elementwise(tracer, (call.out, bias), call.out)


def batched_product(call: TracedCall) -> None:
    """Handle bmm and baddbmm over activations."""
    left, right = call.args[-2:]
    _contraction(call, left, right)
    if len(call.args) == 3:
        elementwise(call.tracer, (call.out, call.args[0]), call.out)


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
