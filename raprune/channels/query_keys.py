"""The products of queries and keys in which the basis of a head's width is free, from what a trace has seen.

A layer writes queries, another one or the same writes keys, both are split into heads, and each head sums over its
width. If nothing else happens to them, any basis of the width gives the same products, and a repair may choose it
(`raprune.methods.query_key`). That nothing else happens is proved on the network (`proof.py`).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from raprune.channels.ids import varies
from raprune.channels.members import HeadRows, QueryKeyProduct
from raprune.channels.positions import IndexArray
from raprune.channels.shadow import Tracer


def record_product(tracer: Tracer, queries: Tensor, keys: Tensor, *, transposed: bool = False) -> None:
    """Record a product of queries `(..., tokens, width)` and keys, which have the same axes or are `transposed`."""
    rows = [_rows(tracer, queries, -2), _rows(tracer, keys, -1 if transposed else -2)]
    if rows[0] is None or rows[1] is None:
        return
    shape = torch.broadcast_shapes(*(ids.shape for ids in rows if ids is not None))
    width = shape[-1]
    both = torch.cat([ids.expand(shape).reshape(-1, width) for ids in rows if ids is not None], dim=1).unique(dim=0)
    tracer.heads.products.append((both[:, :width].numpy(), both[:, width:].numpy()))


def _rows(tracer: Tracer, value: Tensor, tokens: int) -> Tensor | None:
    """Return the ids that each head's channels had before the split, `(..., width)`; None if not known.

    `tokens` is the axis of the tokens.
    """
    own = tracer.heads.own(value)
    if own is None and not tracer.heads.layers(value):  # one head: the channels were never split
        own = tracer.activation(value)
    return None if own is None or varies(own, own.dim() + tokens) else own.select(tokens, 0)


def query_key_products(tracer: Tracer) -> tuple[QueryKeyProduct, ...]:
    """Return the products whose queries and keys are rows of layers, and of no other product's layers."""
    found: dict[bytes, QueryKeyProduct] = {}
    seen: list[IndexArray] = []
    for queries, keys in tracer.heads.products:
        sides = [tuple(_written(tracer, ids)) for ids in (queries, keys)]
        if not all(sides) or not _each_once(queries) or not _each_once(np.unique(keys, axis=0)):
            continue
        key = queries.tobytes() + keys.tobytes()
        if key not in found:
            found[key] = QueryKeyProduct(sides[0], sides[1])
            seen += [np.unique(queries), np.unique(keys)]
    numbers, counts = np.unique(np.concatenate(seen or [np.arange(0)]), return_counts=True)
    several = set(numbers[counts > 1].tolist())
    return tuple(
        product
        for ids, product in zip(zip(seen[::2], seen[1::2], strict=True), found.values(), strict=True)
        if several.isdisjoint(np.concatenate(ids).tolist())
    )


def _each_once(ids: IndexArray) -> bool:
    return len(np.unique(ids)) == ids.size


def _written(tracer: Tracer, ids: IndexArray) -> Iterator[HeadRows]:
    """Yield the weight that writes the channels `ids`, and the vectors that are added; nothing if it is no layer's."""
    for (name, axis), base in tracer.axis_base.items():
        shape = tracer.shapes[name]
        if axis != 0 or len(shape) < 2 or ids.min() < base or ids.max() >= base + shape[0]:
            continue
        module = name.rpartition(".")[0]
        layer = tracer.modules[module]
        if not isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.MultiheadAttention)):
            return
        if getattr(layer, "groups", 1) > 1:  # a depthwise convolution writes each width from its own
            return
        yield HeadRows(name, ids - base)
        for vector, parameter in layer.named_parameters(prefix=module, recurse=False):
            if parameter.dim() == 1 and len(parameter) == shape[0]:
                yield HeadRows(vector, ids - base)
        for bias, channels in tracer.heads.joined:
            yield from (rows for rows in _joined(tracer, bias, channels, ids) if rows.parameter not in tracer.buffers)
        return


def _joined(tracer: Tracer, bias: IndexArray, channels: IndexArray, ids: IndexArray) -> Iterator[HeadRows]:
    """Yield the parameter that is the part of a joined bias which belongs to the channels `ids`."""
    if not np.isin(ids, channels).all():
        return
    of_channel = dict(zip(channels.tolist(), bias.tolist(), strict=True))
    own = np.array([[of_channel[one] for one in row] for row in ids.tolist()], dtype=np.int64)
    for (name, axis), base in tracer.axis_base.items():
        if axis == 0 and own.min() >= base and own.max() < base + tracer.shapes[name][0]:
            yield HeadRows(name, own - base)
