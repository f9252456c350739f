"""Rules of operations on maps: pixel shuffles, sampling at places that another input gives, maps of regions."""

from __future__ import annotations

from torch import Tensor

from raprune.channels.ids import compact, varies
from raprune.channels.layers import couple_vector, freeze_computed, read_channels
from raprune.channels.movement import first
from raprune.channels.shadow import TracedCall, Tracer


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
    tracer, x, out = call.tracer, call.args[0], first(call.out)
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


def put_rows(call: TracedCall) -> None:
    """Handle `a[rows] = b`, by which maps of regions are gathered: all rows of `a` have the channels of `b`.

    Channels that rows had before are coupled with those of `b`; rows of zeros lose what the others lose.
    """
    tracer, target, indices, values = call.tracer, *call.args[:3]
    if values.numel() == 0:
        return
    ids = tracer.activation(values)
    own = tracer.activation(target)
    along_rows = indices[0] is not None and not any(index is not None for index in indices[1:])
    if ids is None or not along_rows or values.shape[1:] != target.shape[1:] or varies(ids, 0):
        for value in (target, values):
            tracer.freeze_value(value, "written at positions that another tensor gives")
        tracer.set_shadow(target, None)
    else:
        row = ids.narrow(0, 0, 1)
        if own is not None:
            tracer.couple(compact(own.narrow(0, 0, 1)), compact(row))
        tracer.set_shadow(target, row.expand(target.shape))


def deformable_convolution(call: TracedCall) -> None:
    """Handle torchvision's deformable convolution without groups as a convolution; its offsets stay."""
    tracer, out = call.tracer, call.out
    x, weight, offset, mask, bias = call.args[:5]
    for value in (offset, mask):
        tracer.freeze_value(value, "the offsets of a deformable convolution")
    into, onto, groups = tracer.axis(weight, 1), tracer.axis(weight, 0), call.args[11:13]
    if into is None or onto is None or tuple(groups) != (1, 1):
        freeze_computed(call, x, weight, "a deformable convolution in groups, or with a weight that is computed")
        tracer.freeze_value(bias, "a deformable convolution in groups, or with a weight that is computed")
        return
    read_channels(tracer, tracer.channels(x, 1, "convolution over a shape whose spatial axes carry channels"), into)
    couple_vector(tracer, bias, onto)
    tracer.write(onto, out, 1)
