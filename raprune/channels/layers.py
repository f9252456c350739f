"""Rules of layers with weights: convolutions, linear layers, norms, embeddings, recurrent layers."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor, nn

from raprune.channels.elementwise import elementwise_parameters
from raprune.channels.ids import AxisUse, ParameterShadow, collapse, compact, line, varies
from raprune.channels.movement import equal_parts, first
from raprune.channels.parts import SizedPart
from raprune.channels.shadow import TracedCall, Tracer


def convolution(call: TracedCall) -> None:
    """Couple the input ids with the weight's input axis; the output axis has new ids.

    A depthwise convolution passes the ids through; the groups of a grouped convolution stay equal.
    """
    tracer, out = call.tracer, call.out
    x, weight, bias = call.args[:3]
    transposed, groups = call.arg(6, "transposed", False), call.arg(8, "groups", 1)
    if _beside_channels(call):
        return
    ids = tracer.channels(x, 1, "convolution over a shape whose spatial axes carry channels")
    into, onto = tracer.axis(weight, 1), tracer.axis(weight, 0)
    if transposed:
        into, onto = onto, into
    if into is None or onto is None:
        freeze_computed(call, x, weight, "convolution with a weight that is computed")
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
        read_channels(tracer, ids, into)
    couple_vector(tracer, bias, onto)
    tracer.write(onto, out, 1)
    if groups > 1 and groups != in_channels:
        equal_parts(tracer, out, 1, groups)
    elif groups == in_channels == len(onto.ids) and not isinstance(tracer.running, nn.modules.conv._ConvNd):
        # A module with a convolution in its code, such as a blur, keeps the number of its groups.
        names = tracer.numbers.get(groups, ())
        if len(names) == 1:
            tracer.record_part(SizedPart(tracer.module, names[0], None, onto.ids))


def _beside_channels(call: TracedCall) -> bool:
    """Let channels along a spatial axis pass a convolution that takes each place of this axis by itself.

    So CoaT mixes the class tokens of several maps. The maps that it reads and writes stay.
    """
    tracer, (x, weight, bias), out = call.tracer, call.args[:3], call.out
    ids = tracer.activation(x)
    dims = [] if ids is None else [dim for dim in range(ids.dim()) if dim != 1 and varies(ids, dim)]
    if ids is None or len(dims) != 1 or dims[0] < 2 or call.arg(6, "transposed", False):
        return False
    dim = dims[0] - 2
    single = weight.shape[dims[0]] == 1 and all(
        _at(call.args[place], dim) == value for place, value in ((3, 1), (4, 0))
    )
    if not single:
        return False
    if varies(ids, 1):  # the maps have channels of their own: these are coupled, as in a sum
        equal, small = collapse(ids, [1]), compact(ids)
        tracer.couple(small, compact(equal).expand(small.shape))
        ids = equal
    for value in (weight, bias):
        if isinstance(value, Tensor):
            tracer.freeze_value(value, "reads or writes maps beside the channels")
    tracer.count(call.func, call.args, call.kwargs, out, (line(ids, dims[0]),))
    tracer.set_shadow(out, ids.narrow(1, 0, 1).expand(out.shape))
    return True


def _at(sizes: Any, dim: int) -> int:
    """Return the stride or padding of a spatial axis; a single number is that of all."""
    return int(sizes[dim] if len(sizes) > 1 else sizes[0])


def freeze_computed(call: TracedCall, x: Tensor, weight: Tensor, reason: str) -> None:
    """Freeze the input and a weight that is no plain view of a parameter: its use of the channels is not known."""
    for value in (x, weight):
        call.tracer.freeze_value(value, reason)
    call.tracer.set_shadow(call.out, None)
    call.tracer.count(call.func, call.args, call.kwargs, call.out, ())


def read_channels(tracer: Tracer, ids: Tensor | None, into: AxisUse) -> None:
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
    read_channels(tracer, ids, into)
    if groups == len(into.ids):
        tracer.freeze(onto.ids, "the output channels of one group of a depthwise transposed convolution")
        use, written = into, into.ids.repeat(len(onto.ids))
    else:
        parts = into.ids.reshape(groups, -1)
        tracer.couple(parts[1:], parts[:1])
        use, written = onto, np.tile(onto.ids, groups)
    couple_vector(tracer, bias, AxisUse(use.parameter, use.axis, written))
    tracer.write(use, call.out, 1, written)


def couple_vector(tracer: Tracer, vector: Any, onto: AxisUse) -> None:
    """Couple a bias, or any parameter with one entry per channel, with the channels that `onto` writes."""
    if not isinstance(vector, Tensor):
        return
    use = tracer.axis(vector, 0)
    joined = tracer.activation(vector)
    if use is not None:
        tracer.couple(use.ids, onto.ids)
    elif joined is not None and tuple(joined.shape) == onto.ids.shape:
        tracer.couple(joined, onto.ids)
        tracer.heads.joined.append((np.asarray(joined.numpy()), onto.ids))
    else:
        tracer.freeze(onto.ids, "a bias that is computed")
        tracer.freeze_value(vector, "a bias that is computed")


def linear(call: TracedCall, x: Tensor, weight: Tensor, bias: Any) -> None:
    tracer, out = call.tracer, call.out
    into, onto = tracer.axis(weight, 0), tracer.axis(weight, 1)
    ids = tracer.channels(x, 1, "linear layer over an input whose rows carry channels")
    if into is None or onto is None:
        freeze_computed(call, x, weight, "linear layer with a weight that is computed")
        return
    tracer.count(call.func, call.args, call.kwargs, out, (into.ids, onto.ids))
    read_channels(tracer, ids, into)
    couple_vector(tracer, bias, onto)
    tracer.write(onto, out, 1)


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
        equal_parts(call.tracer, x, 1, groups)
    elif groups > 1:
        call.tracer.freeze_value(x, "group norm with one channel a group")
    _normalised(call, 1, call.args[1:3], across=True)


def layer_norm(call: TracedCall) -> None:
    """Couple weight and bias with the channels; the normalisation runs across the channels, so masking differs."""
    x, shape, weight = call.args[0], call.args[1], call.arg(2, "weight")
    if len(shape) == 1 and isinstance(weight, Tensor):
        _normalised(call, x.dim() - 1, call.args[2:4], across=True)
        return
    if len(shape) == 1 and weight is None and call.arg(3, "bias") is None and _follows(call):
        _normalised(call, x.dim() - 1, (), across=True)
        return
    call.tracer.freeze_value(x, "layer norm over several axes or without weights")
    for value in call.args[2:4]:
        call.tracer.freeze_value(value, "layer norm over several axes")
    call.tracer.set_shadow(first(call.out), None)


def _follows(call: TracedCall) -> bool:
    """Return True if the shape of a layer norm without weights is that of its module, which a cut sets."""
    tracer, x = call.tracer, call.args[0]
    ids = tracer.activation(x)
    if ids is None or not isinstance(tracer.running, nn.LayerNorm) or not varies(ids, x.dim() - 1):
        return False
    tracer.record_part(SizedPart(tracer.module, "normalized_shape", 0, line(ids, x.dim() - 1).numpy()))
    return True


def _normalised(call: TracedCall, dim: int, vectors: tuple[Any, ...], *, across: bool = False) -> None:
    tracer, x, out = call.tracer, call.args[0], first(call.out)
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
    if ids is not None:
        weight = tracer.axis(vectors[0], 0) if vectors and isinstance(vectors[0], Tensor) else None
        tracer.normed.append((ids.numpy(), None if weight is None else weight.ids))
        if across:
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
    tracer, x, out = call.tracer, call.args[0], first(call.out)
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
    tracer, (v, g), out = call.tracer, call.args[:2], first(call.out)
    if isinstance(tracer.shadow(v), ParameterShadow) and tracer.shadow(g) is not None:
        elementwise_parameters(tracer, (v, g), [tracer.shadow(v), tracer.shadow(g)], out)
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
                read_channels(tracer, ids, use)
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
