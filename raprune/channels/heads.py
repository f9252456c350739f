"""The effect of each operation on head ids (`head_shadows.py`): they move, are coupled, tag positions, or freeze.

An operation that is not in `HEAD_RULES` freezes the heads that enter it. The rules of the channels themselves
(`rules.py`) run first and know nothing of heads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raprune.channels.ids import AxisUse, ParameterShadow, compact, line, varies
from raprune.channels.movement import COPIES, RESHAPES, first, moved, packets, touched_axes
from raprune.channels.shadow import TracedCall, Tracer
from raprune.channels.statistics import reduced_axes

aten = torch.ops.aten


def head_rule(call: TracedCall) -> None:
    """Apply the rule of heads of one operation, some of whose tensors have heads."""
    rule = HEAD_RULES.get(call.func.overloadpacket)
    if rule is None and torch.Tag.pointwise in call.func.tags:
        rule = pointwise
    if rule is None:
        _freeze_all(call, f"{call.func.overloadpacket} has no rule for heads")
    else:
        rule(call)


# -- moving data ---------------------------------------------------------------------------------------------------


def move(call: TracedCall) -> None:
    """Move the layers with the data; heads at fixed positions stay."""
    heads, x = call.tracer.heads, call.args[0]
    touched = [] if call.func.overloadpacket not in _AT_POSITIONS else touched_axes(call)
    layers = _without(call, heads.layers(x), touched, f"{call.name} at fixed positions of the heads")
    own = heads.own(x)
    outs = call.out if isinstance(call.out, list | tuple) else [call.out]
    for part, value in enumerate(outs):
        new = []
        for layer in layers:
            after = moved(call, layer, part)
            assert isinstance(after, Tensor)
            if len(_dims(after)) > 1:
                _freeze(call, after, "a reshape that splits the heads")
            else:
                new.append(after)
        heads.set_layers(value, [*heads.layers(value), *new])
        if own is not None:
            after_own = moved(call, own, part)
            heads.set_own(value, after_own if isinstance(after_own, Tensor) else None)


def concatenate(call: TracedCall) -> None:
    """Couple the heads of the parts, which run along the same axis; parts side by side along the heads freeze."""
    heads, out = call.tracer.heads, call.out
    values = [v for v in call.args[0] if v.shape != (0,)]
    joined = int(call.arg(1, "dim", 0)) % out.dim()
    known = [heads.layers(value) for value in values]
    dims = [[_dims(layer) for layer in layers] for layers in known]
    stacked = call.name == "stack"
    if any(d != dims[0] for d in dims) or (not stacked and any(joined in dim for dim in dims[0])):
        _freeze_all(call, f"{call.name} of heads")
        return
    for layers in known[1:]:
        for layer, one in zip(layers, known[0], strict=True):
            heads.couple(_line(layer), _line(one))
    parts = [layer.unsqueeze(joined) if stacked else layer.narrow(joined, 0, 1) for layer in known[0]]
    heads.set_layers(out, [part.expand(out.shape) for part in parts])


def pad(call: TracedCall) -> None:
    """Pass heads through padding along other axes."""
    heads, x, out = call.tracer.heads, call.args[0], call.out
    padded = [x.dim() - 1 - step for step in range(len(call.args[1]) // 2) if any(call.args[1][2 * step :][:2])]
    layers = _without(call, heads.layers(x), padded, "padding beside the heads")
    for dim in padded:
        layers = [layer.narrow(dim, 0, 1) for layer in layers]
    heads.set_layers(out, [layer.expand(out.shape) for layer in layers])


# -- element by element ----------------------------------------------------------------------------------------------


def pointwise(call: TracedCall) -> None:
    """Couple heads that meet element by element, and tag the positions of parameters and channels that they meet."""
    inputs = [value for value in (*call.args, *call.kwargs.values()) if isinstance(value, Tensor)]
    _meet(call, inputs, first(call.out))
    own = [call.tracer.heads.own(value) for value in inputs if value.numel() > 1]
    if call.name in _LINEAR and len(own) == 1 and own[0] is not None and own[0].shape == first(call.out).shape:
        call.tracer.heads.set_own(first(call.out), own[0])


def _meet(call: TracedCall, inputs: list[Tensor], out: Tensor) -> None:
    heads = call.tracer.heads
    found: dict[tuple[int, ...], Tensor] = {}
    for value in inputs:
        for layer in heads.layers(value):
            spread = layer.expand(out.shape)
            known = found.setdefault(_dims(spread), spread)
            if known is not spread:
                heads.couple(_line(known), _line(spread))
    kept = []
    for dims, layer in found.items():
        if not dims or all(_passes(call, value, dims[0] - out.dim(), layer) for value in inputs):
            kept.append(layer)
        else:
            _freeze(call, layer, "meets something of the shape of the heads")
    heads.set_layers(out, kept)


def _passes(call: TracedCall, value: Tensor, dim: int, layer: Tensor) -> bool:
    """Return False if `value` has another meaning along the heads' axis `dim`, counted from the end."""
    tracer = call.tracer
    if value.dim() < -dim or compact(value).shape[dim] == 1:
        return True
    if any(dim + value.dim() in _dims(own) for own in tracer.heads.layers(value)):
        return True
    shadow, ids = tracer.shadow(value), _line(layer)
    if isinstance(shadow, ParameterShadow):
        use = tracer.axis(value, dim)
        if use is None:
            tracer.freeze_value(value, "a view of a parameter that mixes heads with another axis")
            return False
        tracer.heads.tag(use.ids, ids)
        return True
    if shadow is not None and _dims(shadow) == (dim + value.dim(),):
        # Channels that a layer writes for the heads, such as a bias of each head.
        tracer.heads.tag(line(shadow, dim + value.dim()).numpy(), ids)
        tracer.set_shadow(first(call.out), None)
        return True
    return False


def keep(call: TracedCall) -> None:
    """Pass heads on where the operation works along other axes and keeps the shape."""
    along = [int(call.args[1]) % call.args[0].dim()] if call.func.overloadpacket in _ALONG else []
    layers = _without(call, call.tracer.heads.layers(call.args[0]), along, f"{call.name} across heads")
    call.tracer.heads.set_layers(first(call.out), layers)


def nothing(call: TracedCall) -> None:
    """Handle an operation that only reads the shape of its argument."""


# -- products --------------------------------------------------------------------------------------------------------


def product(call: TracedCall) -> None:
    """Handle mm, addmm, bmm and baddbmm: head by head along the batch axis, or a linear layer that reads heads."""
    left, right = call.args[-2:]
    if isinstance(call.tracer.shadow(right), ParameterShadow) and left.dim() == 2:
        _linear(call, left, right)
        return
    heads, out, batch = call.tracer.heads, call.out, left.dim() == 3
    sides = [[layer for layer in heads.layers(value) if batch and _dims(layer) == (0,)] for value in (left, right)]
    for value, own in zip((left, right), sides, strict=True):
        for layer in heads.layers(value):
            if not any(layer is one for one in own):
                _freeze(call, layer, f"{call.name} over heads")
    ids = call.tracer.activation(left)
    if not sides[0] and sides[1] and ids is not None and varies(ids, 0):
        sides[0] = sides[1]  # `products.py` has tagged the channels that are these heads
    for one, other in ((0, 1), (1, 0)):
        value = (left, right)[other]
        if sides[one] and not heads.layers(value) and value.stride(0) == 0:  # all heads share these keys or values
            sides[other] = sides[one]
    if not all(sides):
        for layer in (*sides[0], *sides[1]):
            _freeze(call, layer, f"{call.name} with a tensor that has no heads")
        return
    used = _line(sides[0][0])
    for layer in (*sides[0][1:], *sides[1]):
        heads.couple(used, _line(layer))
    heads.used.append(used)
    _add_axis(call, used)
    heads.set_layers(out, [sides[0][0].narrow(2, 0, 1).narrow(1, 0, 1).expand(out.shape)])
    if len(call.args) == 3:
        _meet(call, [out, call.args[0]], out)


def _linear(call: TracedCall, x: Tensor, weight: Tensor) -> None:
    tracer = call.tracer
    passed = []
    for layer in tracer.heads.layers(x):
        dims, into = _dims(layer), tracer.axis(weight, 0)
        if dims == (1,) and into is not None:
            tracer.heads.tag(into.ids, _line(layer))
        elif dims == (0,):
            _add_axis(call, _line(layer))
            passed.append(layer.narrow(1, 0, 1).expand(call.out.shape))
        else:
            _freeze(call, layer, "a linear layer over heads")
    tracer.heads.set_layers(call.out, passed)


def attention(call: TracedCall) -> None:
    """Couple the heads of queries, keys and values in fused attention."""
    heads, out = call.tracer.heads, first(call.out)
    layers = [[layer for layer in heads.layers(value) if _dims(layer) == (1,)] for value in call.args[:3]]
    others = [layer for value in call.args[:3] for layer in heads.layers(value) if _dims(layer) != (1,)]
    shared = [not heads.layers(value) and (value.shape[1] == 1 or value.stride(1) == 0) for value in call.args[:3]]
    if others or not layers[0] or not all(own or one for own, one in zip(layers, shared, strict=True)):
        _freeze_all(call, "fused attention with a tensor that has no heads")
        return
    used = _line(layers[0][0])
    for layer in [own for side in layers for own in side][1:]:
        heads.couple(used, _line(layer))
    heads.used.append(used)
    _add_axis(call, used)
    heads.set_layers(out, [layers[0][0].narrow(3, 0, 1).narrow(2, 0, 1).expand(out.shape)])
    for value in call.out[1:] if isinstance(call.out, tuple) else ():
        if isinstance(value, Tensor) and value.dim() == 3 and value.shape[1] == len(used):
            heads.set_layers(value, [torch.from_numpy(used).view(1, -1, 1).expand(value.shape)])
    masks = [value for value in (*call.args[3:], *call.kwargs.values()) if isinstance(value, Tensor)]
    if masks:
        _meet_mask(call, masks, out, used)


def _meet_mask(call: TracedCall, masks: list[Tensor], out: Tensor, used: Any) -> None:
    """Let the heads meet masks and biases, `(..., heads, queries, keys)`."""
    scores = torch.from_numpy(used).view(1, -1, 1, 1).expand(*out.shape[:3], masks[0].shape[-1])
    values = call.tracer.shadow(out)
    for mask in masks:
        for layer in call.tracer.heads.layers(mask):
            if _dims(layer) == (mask.dim() - 3,):
                call.tracer.heads.couple(used, _line(layer))
            else:
                _freeze(call, layer, "a mask with heads along another axis")
        if not _passes(call, mask, -3, scores):
            _freeze(call, scores, "a mask of the shape of the heads")
    call.tracer.set_shadow(out, values)  # not those that a mask has, as a sum of scores and mask would


def _add_axis(call: TracedCall, heads: Any) -> None:
    """Let the number of heads be a factor of the costs of this operation."""
    costs = call.tracer.costs
    for place in range(call.tracer.costs_before, len(costs)):
        costs[place] = replace(costs[place], axes=(*costs[place].axes, -heads))


def spatial(call: TracedCall) -> None:
    """Pass heads through pooling and resizing of the image axes, as the queries of Hiera."""
    heads, x, out = call.tracer.heads, call.args[0], first(call.out)
    dims = list(range(x.dim() - next(rank for rank in (1, 2, 3) if f"{rank}d" in call.name), x.dim()))

    def resized(ids: Tensor) -> Tensor:
        for dim in dims:
            ids = ids.narrow(dim, 0, 1)
        return ids.expand(out.shape)

    layers = _without(call, heads.layers(x), dims, f"{call.name} over heads")
    heads.set_layers(out, [resized(layer) for layer in layers])
    own = heads.own(x)
    if own is not None and not any(varies(own, dim) for dim in dims):
        heads.set_own(out, resized(own))


# -- layers with weights ---------------------------------------------------------------------------------------------


def convolution(call: TracedCall) -> None:
    """Tag the inputs of a convolution that reads heads; a depthwise one passes them on."""
    tracer, (x, weight, bias) = call.tracer, call.args[:3]
    into, onto, groups = tracer.axis(weight, 1), tracer.axis(weight, 0), call.arg(8, "groups", 1)
    passed = []
    for layer in tracer.heads.layers(x):
        dims = _dims(layer)
        if into is not None and onto is not None and dims == (1,) and not call.arg(6, "transposed", False):
            ids = _line(layer)
            if groups == 1:
                tracer.heads.tag(into.ids, ids)
                continue
            if groups == x.shape[1] == len(onto.ids):
                _tag_vectors(tracer, (weight, bias), ids)
                small = torch.from_numpy(ids).view([-1 if d == 1 else 1 for d in range(x.dim())])
                passed.append(small.expand(call.out.shape))
                continue
        _freeze(call, layer, "a convolution over heads")
    tracer.heads.set_layers(call.out, passed)


def _tag_vectors(tracer: Tracer, vectors: tuple[Any, ...], ids: Any) -> None:
    for vector in vectors:
        use: AxisUse | None = tracer.axis(vector, 0) if isinstance(vector, Tensor) else None
        if use is not None:
            tracer.heads.tag(use.ids, ids)


def batch_norm(call: TracedCall) -> None:
    """Tag the vectors of a norm over channels that are heads times widths."""
    _normalised(call, 1, call.args[1:5])
    weight, out = call.args[1], first(call.out)
    use = call.tracer.axis(weight, 0) if isinstance(weight, Tensor) else None
    if use is not None and call.tracer.heads.own(call.args[0]) is not None:
        shape = [-1 if dim == 1 else 1 for dim in range(out.dim())]
        call.tracer.heads.set_own(out, torch.from_numpy(use.ids).view(shape).expand(out.shape))


def layer_norm(call: TracedCall) -> None:
    """Tag the vectors of a layer norm over heads times widths; one over the widths alone passes the heads on."""
    x, shape = call.args[:2]
    if len(shape) != 1:
        _freeze_all(call, "layer norm over several axes")
        return
    _normalised(call, x.dim() - 1, call.args[2:4])
    weight = call.args[2]
    use = call.tracer.axis(weight, 0) if isinstance(weight, Tensor) else None
    if use is not None and call.tracer.heads.own(x) is not None:
        # Behind a norm, the scale of the tensor is that of the norm's weight and bias.
        call.tracer.heads.set_own(first(call.out), torch.from_numpy(use.ids).expand(first(call.out).shape))


def _normalised(call: TracedCall, dim: int, vectors: tuple[Any, ...]) -> None:
    layers = call.tracer.heads.layers(call.args[0])
    for layer in layers:
        if _dims(layer) == (dim,):
            _tag_vectors(call.tracer, vectors, _line(layer))
    call.tracer.heads.set_layers(first(call.out), layers)


def reduction(call: TracedCall) -> None:
    """Pass heads through a reduction over other axes."""
    heads, x = call.tracer.heads, call.args[0]
    if len(call.args) > 1 and isinstance(call.args[1], Tensor):
        pointwise(call)
        return
    dims, keepdim = reduced_axes(call.name, call.args, call.kwargs)
    known = heads.layers(x)
    layers = [layer for layer in known if not any(varies(layer, dim) for dim in dims)]
    mixed = [layer for layer in known if not any(layer is one for one in layers)]
    for dim in reversed(dims):
        layers = [layer.narrow(dim, 0, 1) if keepdim else layer.select(dim, 0) for layer in layers]
    own = heads.own(x) if call.name in _HOMOGENEOUS else None
    if own is not None and any(varies(own, dim) for dim in dims):
        own = None
    for dim in reversed(dims):
        if own is not None:
            own = own.narrow(dim, 0, 1) if keepdim else own.select(dim, 0)
    for value in call.out if isinstance(call.out, tuple) else (call.out,):
        heads.set_layers(value, layers)
        heads.set_own(value, own)
        for layer in mixed:
            # The mean of all heads' weights is often returned and never used.
            heads.freeze_if_used(value, _line(layer), call.tracer.module, f"{call.name} across heads")


# -- what the rules share --------------------------------------------------------------------------------------------


def _dims(ids: Tensor) -> tuple[int, ...]:
    return tuple(dim for dim in range(ids.dim()) if varies(ids, dim))


def _line(layer: Tensor) -> Any:
    """Return the head ids along the axis of a layer along which they change."""
    dims = _dims(layer)
    return line(layer, dims[0]).numpy() if dims else layer.reshape(-1)[:1].numpy()


def _without(call: TracedCall, layers: Any, dims: list[int], reason: str) -> list[Tensor]:
    """Return the layers that do not change along `dims`; freeze the others."""
    kept = []
    for layer in layers:
        if any(varies(layer, dim) for dim in dims):
            _freeze(call, layer, reason)
        else:
            kept.append(layer)
    return kept


def _freeze(call: TracedCall, layer: Tensor, reason: str) -> None:
    call.tracer.heads.freeze(np.unique(compact(layer).numpy()), call.tracer.module, reason)


def _freeze_all(call: TracedCall, reason: str) -> None:
    for value in (*call.args, *call.kwargs.values()):
        for one in value if isinstance(value, list | tuple) else (value,):
            for layer in call.tracer.heads.layers(one):
                _freeze(call, layer, reason)


_LINEAR = ("mul", "div", "neg", "native_dropout")
"""Operations that keep a tensor proportional to the weights that made it, if the other operand is a number."""
_HOMOGENEOUS = ("amax", "amin", "max", "min", "mean", "sum")
"""Reductions whose result is proportional to what they reduce."""
_AT_POSITIONS = set(packets("slice select index index_select roll flip narrow unbind")) | set(
    packets("split split_with_sizes unsafe_split unsafe_chunk unsafe_split_with_sizes")
)
_ALONG = set(packets("_softmax _log_softmax _safe_softmax cumsum"))

_TABLE: list[tuple[Callable[[TracedCall], None], str]] = [
    (product, "mm addmm bmm baddbmm"),
    (
        attention,
        "_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention "
        "_scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention "
        "_scaled_dot_product_fused_attention_overrideable",
    ),
    (convolution, "convolution convolution_overrideable"),
    (batch_norm, "native_batch_norm _native_batch_norm_legit_no_training cudnn_batch_norm miopen_batch_norm"),
    (layer_norm, "native_layer_norm"),
    (keep, "_softmax _log_softmax _safe_softmax cumsum zeros_like ones_like full_like"),
    (nothing, "new_zeros new_ones new_empty new_full new_empty_strided zero_ fill_ empty_like"),
    (pointwise, "where masked_fill masked_fill_ clamp_min clamp_max native_dropout hardswish relu lerp addcmul"),
    (reduction, "mean sum amax amin max min var std var_mean linalg_vector_norm norm"),
    (
        move,
        "permute transpose t expand squeeze unsqueeze repeat slice select index index_select roll flip narrow unbind "
        "split split_with_sizes unsafe_split unsafe_chunk unsafe_split_with_sizes",
    ),
    (
        spatial,
        "max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices avg_pool1d avg_pool2d avg_pool3d "
        "_adaptive_avg_pool2d _adaptive_avg_pool3d mkldnn_max_pool2d upsample_nearest1d upsample_nearest2d "
        "upsample_linear1d upsample_bilinear2d upsample_bicubic2d",
    ),
    (concatenate, "cat stack"),
    (pad, "constant_pad_nd"),
]

HEAD_RULES: dict[Any, Callable[[TracedCall], None]] = {
    **dict.fromkeys((*RESHAPES, *COPIES), move),
    **{packet: rule for rule, names in _TABLE for packet in packets(names)},
}
"""Rule of heads of each operator; operators that PyTorch tags as pointwise have the rule `pointwise`."""
