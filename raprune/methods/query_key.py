"""Queries and keys of fewer widths: the products of a head stay as close to the dense network's as its width allows.

With the queries Q and the keys K of a head, `(tokens, D)`, over all calibration images, the best products of width r
are the truncated singular value decomposition of Q K^T:

    Q K^T = U S V^T,    Q' = U_r S_r^1/2,    K' = V_r S_r^1/2,    || Q' K'^T - Q K^T ||_F is the least possible.

Q' = Q A and K' = K B need no more than the Gram matrices of Q and K, `(D, D)`: with L = (K^T K)^1/2, and V_r the
eigenvectors of the r largest eigenvalues S^2 of L Q^T Q L,

    A = L V_r S_r^-1/2,    B = L^-1 V_r S_r^1/2.

A^T and B^T times the rows of weight and bias, all D of them, take the place of the rows that stay. The basis of a
head's width is free (`raprune.channels.query_keys`): of all bases with these products, the one is taken in which Q' and
K' are closest to the columns of Q and K that stay. Heads that share their keys share A and B, by the sum of their
Q^T Q. The scale of the dense network is kept as in a cut without repair.

Queries and keys behind a norm or a rotation by positions have no free basis and are left as they are.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from raprune.channels.graph import ChannelGraph, KeptPositions
from raprune.channels.inputs import call
from raprune.channels.members import Group, HeadRows, QueryKeyProduct
from raprune.channels.positions import IndexArray
from raprune.methods.method import Cut
from raprune.methods.sensitivity import LayerChange

RIDGE = 1e-9
"""Fraction of the mean square of queries and keys that is added to each square, so that all directions have one."""


def match_products(model: nn.Module, parts: Iterable[Tensor], cut: Cut) -> dict[str, Tensor]:
    """Give the queries and keys of `model`, which `cut` describes, the best products, in place, where widths went.

    `parts` are batches of images, which the dense network sees once. Both networks are in evaluation mode. Return for
    each weight that was changed how the layer's outputs that stay are made of those of the dense layer: by its name,
    `(dense outputs, outputs)`, float64.

    Raises:
        FloatingPointError: if queries or keys are not finite on the images.
    """
    stays = KeptPositions(cut.graph, cut.kept)
    narrowed = [product for product in cut.graph.products if _widths(product, stays) is not None]
    if not narrowed:
        return {}
    dense = dict(cut.dense.named_parameters())
    with _GramMatrices(dense, [side[0] for p in narrowed for side in (p.queries, p.keys)]) as grams:
        for images in parts:
            call(cut.dense, images)
    mixes: dict[str, Tensor] = {}
    for product in narrowed:
        found = [grams.of(side[0]) for side in (product.queries, product.keys)]
        if found[0] is None or found[1] is None:  # written by something else than a linear layer or a convolution
            continue
        widths, heads = _widths(product, stays), _heads(product, stays)
        assert widths is not None
        bases = _bases(found[0][heads], found[1][heads], product.keys[0].positions[heads], widths)
        for side, basis in zip((product.queries, product.keys), bases, strict=True):
            for rows in side:
                if rows.parameter not in mixes:
                    mixes[rows.parameter] = _selection(dense[rows.parameter], stays, rows.parameter)
                own = replace(rows, positions=rows.positions[heads])
                _put(mixes[rows.parameter], basis, own, widths, stays)
    _write(model, dense, mixes, stays)
    return {name: mix for name, mix in mixes.items() if dense[name].dim() > 1}


@dataclass(frozen=True)
class WidthError:
    """The error of the best products of fewer widths, for a group of widths and one product that it narrows."""

    group: str
    product: QueryKeyProduct
    weight: Tensor
    bias: Tensor | None
    """Parameters of the layer that writes the queries."""
    queries: Tensor
    keys: Tensor
    """Gram matrices of the heads, `(heads, width, width)`."""

    def curve(self) -> npt.NDArray[np.float64]:
        """Return the squared error after 1, 2, ... widths are gone, as a fraction of the squared products."""
        _, _, energies = _factors(self.queries, self.keys, self.product.keys[0].positions)
        lost = energies.sum(0).cumsum(0)
        return np.asarray((lost / lost[-1].clamp(min=1e-300)).cpu().numpy())

    def change(self, gone: int) -> LayerChange:
        """Return the change of the layer's queries that gives the best products without `gone` of the widths."""
        width = self.queries.shape[-1]
        left = np.arange(width - gone)
        A, B = _bases(self.queries, self.keys, self.product.keys[0].positions, left)
        changed = B @ A.mT - torch.eye(width, dtype=A.dtype, device=A.device)
        rows = torch.from_numpy(self.product.queries[0].positions).to(self.weight.device)

        def of(parameter: Tensor) -> Tensor:
            own, change = parameter.double()[rows], torch.zeros_like(parameter)
            change[rows] = (changed @ own.reshape(*rows.shape, -1)).view_as(own).to(parameter.dtype)
            return change

        module = self.product.queries[0].parameter.rpartition(".")[0]
        return LayerChange(module, of(self.weight), None if self.bias is None else of(self.bias))


def width_errors(
    model: nn.Module, graph: ChannelGraph, parts: Iterable[Tensor], layers: Container[str]
) -> list[WidthError]:
    """Return the errors for every group of widths and every product whose queries one of the `layers` writes.

    `parts` are batches of images, which the network, in evaluation mode, sees once.
    """
    parameters = dict(model.named_parameters())
    found = [
        (group, product)
        for product in graph.products
        for group in graph.groups
        if product.queries[0].parameter.rpartition(".")[0] in layers and _narrows(group, product)
    ]
    if not found:
        return []
    with _GramMatrices(parameters, [side[0] for _, p in found for side in (p.queries, p.keys)]) as grams:
        for images in parts:
            call(model, images)
    errors = []
    for group, product in found:
        queries, keys = (grams.of(side[0]) for side in (product.queries, product.keys))
        weight = product.queries[0].parameter
        bias = parameters.get(f"{weight.rpartition('.')[0]}.bias")
        if queries is not None and keys is not None:
            own = None if bias is None else bias.detach()
            errors.append(WidthError(group.name, product, parameters[weight].detach(), own, queries, keys))
    return errors


def _narrows(group: Group, product: QueryKeyProduct) -> bool:
    """Return True if the channels of the group are the widths of the product's heads, in order."""
    rows = product.queries[0]
    return any(
        (member.parameter, member.axis) == (rows.parameter, 0)
        and group.num_channels == rows.positions.shape[1]
        and all(np.isin(own, places).all() for own, places in zip(rows.positions.T, member.indices, strict=True))
        for member in group.members
    )


def _heads(product: QueryKeyProduct, stays: KeptPositions) -> IndexArray:
    """Return the heads of a product that stay."""
    return np.flatnonzero(_staying(product.queries[0], stays).any(axis=1))


def _widths(product: QueryKeyProduct, stays: KeptPositions) -> IndexArray | None:
    """Return the widths that stay in all heads of a product; None if all do, or not the same ones everywhere."""
    heads = _heads(product, stays)
    sides = np.concatenate([_staying(side[0], stays)[heads] for side in (product.queries, product.keys)])
    if not len(heads) or sides.all() or (sides != sides[0]).any():
        return None
    return np.flatnonzero(sides[0])


def _staying(rows: HeadRows, stays: KeptPositions) -> Any:
    if (rows.parameter, 0) not in stays.sliced:
        return np.ones(rows.positions.shape, dtype=bool)
    return np.isin(rows.positions, stays.of(rows.parameter, 0))


def _bases(queries_HDD: Tensor, keys_HDD: Tensor, key_rows: IndexArray, widths: IndexArray) -> tuple[Tensor, Tensor]:
    """Return A and B of each head, `(H, D, width)`, from the Gram matrices of queries and keys.

    Heads with equal `key_rows` share their keys.
    """
    left_HDD, right_HDD, energies = _factors(queries_HDD, keys_HDD, key_rows)
    best = slice(-len(widths), None)
    S = energies[:, None, best].sqrt()
    A, B = left_HDD[..., best] * _inverse(S.sqrt()), right_HDD[..., best] * S.sqrt()
    queries_HDD, kept = _of_shared(queries_HDD, key_rows), torch.from_numpy(widths).to(A.device)
    left, _, right = torch.linalg.svd(A.mT @ queries_HDD[..., kept] + B.mT @ keys_HDD[..., kept])
    return A @ (left @ right), B @ (left @ right)


def _factors(queries_HDD: Tensor, keys_HDD: Tensor, key_rows: IndexArray) -> tuple[Tensor, Tensor, Tensor]:
    """Return L V and L^-1 V, `(H, D, D)`, and the eigenvalues S^2, `(H, D)`, from the smallest to the largest."""
    squares, vectors = torch.linalg.eigh(_ridged(keys_HDD))
    root = squares.clamp(min=0).sqrt()[:, None]
    L, inverse = (vectors * root) @ vectors.mT, (vectors * _inverse(root)) @ vectors.mT
    energies, V = torch.linalg.eigh(L @ _ridged(_of_shared(queries_HDD, key_rows)) @ L)
    return L @ V, inverse @ V, energies.clamp(min=0)


def _of_shared(queries_HDD: Tensor, key_rows: IndexArray) -> Tensor:
    """Return for each head the sum of the matrices of all heads with the same keys."""
    shared = torch.from_numpy((key_rows[:, None] == key_rows[None]).all(-1)).to(queries_HDD)
    return (shared @ queries_HDD.flatten(1)).view_as(queries_HDD)


def _ridged(gram: Tensor) -> Tensor:
    diagonal = gram.diagonal(dim1=-2, dim2=-1)
    return gram + RIDGE * torch.diag_embed(diagonal.mean(-1, keepdim=True).expand_as(diagonal))


def _inverse(values: Tensor) -> Tensor:
    return torch.where(values > 0, 1 / values, 0.0)


def _selection(parameter: Tensor, stays: KeptPositions, name: str) -> Tensor:
    """Return the matrix that takes the outputs that stay from those of the dense layer, with the factors of a cut."""
    rows = torch.from_numpy(stays.of(name, 0))
    selection = torch.zeros(len(parameter), len(rows), dtype=torch.float64)
    selection[rows, torch.arange(len(rows))] = _gain(stays, name)
    return selection.to(parameter.device)


def _gain(stays: KeptPositions, name: str) -> Tensor:
    gain = stays.gain(name)
    return torch.ones(len(stays.of(name, 0)), dtype=torch.float64) if gain is None else torch.from_numpy(gain)


def _put(mix: Tensor, bases: Tensor, rows: HeadRows, widths: IndexArray, stays: KeptPositions) -> None:
    """Put the bases of the heads in the place of the rows that stay, in a matrix of `_selection`, in place."""
    left, gain = stays.of(rows.parameter, 0), _gain(stays, rows.parameter).to(mix.device)
    for head, basis in zip(rows.positions, bases, strict=True):
        columns = torch.from_numpy(np.searchsorted(left, head[widths])).to(mix.device)
        mix[:, columns] = 0.0
        mix[torch.from_numpy(head).to(mix.device)[:, None], columns] = basis * gain[columns]


def _write(model: nn.Module, dense: dict[str, nn.Parameter], mixes: dict[str, Tensor], stays: KeptPositions) -> None:
    """Set the parameters of the cut network, in place."""
    smaller = dict(model.named_parameters())
    for name, mix in mixes.items():
        rows = dense[name].double()
        for axis in range(1, rows.dim()):
            if (name, axis) in stays.sliced:
                rows = rows.index_select(axis, torch.from_numpy(stays.of(name, axis)).to(rows.device))
        smaller[name].copy_((mix.mT @ rows.reshape(len(rows), -1)).view_as(smaller[name]))


@dataclass
class _Sum:
    rows: HeadRows
    gram: Tensor | None = None


class _GramMatrices(TorchFunctionMode):
    """Context that sums the Gram matrices of heads, `(heads, width, width)`, where a weight is used.

    The weight may be used by its module, or by the code around it, whole or in a part, as queries, keys and values are.
    """

    def __init__(self, parameters: dict[str, nn.Parameter], heads: Sequence[HeadRows]) -> None:
        super().__init__()
        self._sums = {(rows.parameter, rows.positions.tobytes()): _Sum(rows) for rows in heads}
        self._names = {
            parameters[s.rows.parameter].untyped_storage().data_ptr(): s.rows.parameter for s in self._sums.values()
        }
        self._parameters = parameters

    def of(self, rows: HeadRows) -> Tensor | None:
        """Return the sum of these heads; None if no layer was seen that uses the weight.

        Raises:
            FloatingPointError: if it is not finite.
        """
        gram = self._sums[rows.parameter, rows.positions.tobytes()].gram
        if gram is not None and not bool(gram.isfinite().all()):
            raise FloatingPointError(f"Queries or keys of {rows.parameter} are not finite on the calibration images.")
        return gram

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in _LAYERS and len(args) > 1:
            name = self._names.get(args[1].untyped_storage().data_ptr())
            if name is not None:
                self._add(name, args[1], out.movedim(1, -1) if func is not functional.linear else out)
        return out

    def _add(self, name: str, used: Tensor, out: Tensor) -> None:
        whole = self._parameters[name]
        if used.shape[1:] != whole.shape[1:] or used.stride() != whole.stride():
            return
        first = int(used.storage_offset() - whole.storage_offset()) // max(whole.stride(0), 1)
        for one in self._sums.values():
            places = one.rows.positions - first
            if one.rows.parameter == name and places.min() >= 0 and places.max() < len(used):
                heads = out.flatten(0, -2).double()[:, torch.from_numpy(places).to(out.device)].transpose(0, 1)
                gram = heads.mT @ heads
                one.gram = gram if one.gram is None else one.gram + gram


_LAYERS = (functional.linear, functional.conv1d, functional.conv2d)
