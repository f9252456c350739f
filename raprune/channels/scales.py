"""The weights that take up the scale of PyTorch's fused attention, which follows the width of the queries."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch import nn

from raprune.channels.grouping import Grouping
from raprune.channels.members import WidthScale
from raprune.channels.positions import IndexArray
from raprune.channels.shadow import Tracer


def width_scales(tracer: Tracer, grouping: Grouping) -> tuple[WidthScale, ...]:
    """Return the parameters that take up the scale of fused attention: weight and bias of the layer in front of it."""
    found = []
    for widths, own in tracer.heads.scales:
        numbers = np.unique(grouping.of_id[widths])
        own = _behind_norms(tracer, own)
        if len(numbers) != 1 or numbers[0] < 0 or not len(own):
            continue
        writer = next((name for name, axis in tracer.axis_base if axis == 0 and _holds(tracer, name, own)), None)
        if writer is None:
            continue
        positions = own - tracer.axis_base[writer, 0]
        module = writer.rpartition(".")[0]
        if isinstance(tracer.modules[module], nn.MultiheadAttention):  # whose cut module keeps the scale
            continue
        group = grouping.groups[int(numbers[0])].name
        for name, _ in tracer.modules[module].named_parameters(prefix=module, recurse=False):
            found.append(WidthScale(name, positions, group))
        for bias, channels in tracer.heads.joined:
            found += [
                WidthScale(name, places, group) for name, places in _vectors(tracer, bias[np.isin(channels, own)])
            ]
    return tuple(found)


def _behind_norms(tracer: Tracer, own: IndexArray) -> IndexArray:
    """Return the ids of the weights of the last norm over the channels `own`, which set their scale.

    Without a norm the ids are `own` itself; where a norm has no weights, or runs over some of the channels, there are
    none.
    """
    for ids, weights in reversed(tracer.normed):
        inside = np.isin(own, ids)
        if inside.any():
            known = dict(zip(ids.tolist(), () if weights is None else weights.tolist(), strict=False))
            return np.unique([known[one] for one in own.tolist()]) if inside.all() and known else own[:0]
    return own


def _vectors(tracer: Tracer, ids: IndexArray) -> Iterator[tuple[str, IndexArray]]:
    """Yield the parameters on whose first axis the ids are, and their positions."""
    for (name, axis), base in tracer.axis_base.items():
        inside = (ids >= base) & (ids < base + tracer.shapes[name][axis])
        if axis == 0 and inside.any():
            yield name, ids[inside] - base


def _holds(tracer: Tracer, name: str, ids: IndexArray) -> bool:
    base = tracer.axis_base[name, 0]
    return bool(ids.min() >= base and ids.max() < base + tracer.shapes[name][0])
