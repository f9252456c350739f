"""FLOPs and parameters of any width vector in closed form, and its latency by a table of measured times.

A multiply-add counts as 2 FLOPs, as in `torch.utils.flop_counter`, for one image; MACs are half of the FLOPs. Every
cost is a sum of products of axis sizes, and every axis size is affine in the widths, or in products of two of them
(`ChannelGraph.factors`), so two matrix products give the costs of thousands of width vectors. A latency table uses the
same axes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from math import prod

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from raprune.channels.evaluating import evaluating
from raprune.channels.graph import ChannelGraph
from raprune.channels.inputs import NetworkInputs, call
from raprune.channels.members import Factor, Term
from raprune.cost.latency import Floats, LatencyTable

Counts = npt.NDArray[np.int64]


class _Axes:
    """The sizes of axes for many width vectors at once."""

    def __init__(self, factors: Sequence[Factor], names: Sequence[str]) -> None:
        column = {name: i for i, name in enumerate(names)}
        self._constants = np.array([factor.constant for factor in factors], dtype=np.float64)
        self._coefficients = np.zeros((len(factors), len(column)))
        for row, factor in enumerate(factors):
            for name, coefficient in factor.coefficients.items():
                self._coefficients[row, column[name]] = coefficient
        self._products = [
            (row, column[g], column[h], coefficient)
            for row, factor in enumerate(factors)
            for g, h, coefficient in factor.products
        ]

    def at(self, widths: npt.ArrayLike) -> Floats:
        """Return the sizes at widths of shape `(..., G)`; shape `(..., F)`."""
        vectors = np.asarray(widths, dtype=np.float64)
        sizes: Floats = vectors @ self._coefficients.T + self._constants
        for row, g, h, coefficient in self._products:
            sizes[..., row] += coefficient * vectors[..., g] * vectors[..., h]
        return sizes


class CostModel:
    """The costs of a channel graph. Widths are arrays of shape `(..., G)` in the order of `group_names`.

    Counts are exact below 2**53 (nine peta-FLOPs per image). Without a `table` the latency is not known.
    """

    def __init__(
        self, graph: ChannelGraph, table: LatencyTable | None = None, *, dense: CostModel | None = None
    ) -> None:
        """`dense` has the costs of the dense network, if `graph` lacks some of its blocks."""
        self._graph = graph
        self._closed: dict[tuple[str, ...], CostModel] = {}
        self.table = table
        self._is_dense = dense is None
        self.group_names: tuple[str, ...] = tuple(group.name for group in graph.groups)
        self.kinds: Counts = np.array([graph.kinds[name] for name in self.group_names], dtype=np.int64)
        """Number of each group's kind: see `ChannelGraph.kinds`."""
        self.num_channels: Counts = np.array([group.num_channels for group in graph.groups], dtype=np.int64)
        self._sizes = _Axes(graph.factors, self.group_names)
        self._flops = _collect(graph.flops)
        self._params = _collect(graph.params)
        self._memory = _Axes(graph.memory, self.group_names)
        self.dense_flops: int = int(self.flops(self.num_channels)) if dense is None else dense.dense_flops
        self.dense_params: int = int(self.params(self.num_channels)) if dense is None else dense.dense_params
        self.dense_memory: int = int(self.memory_bytes(self.num_channels)) if dense is None else dense.dense_memory

    @property
    def gates(self) -> tuple[str, ...]:
        """Names of the blocks whose place `nn.Identity` can take."""
        return self._graph.gates

    def closed(self, gates: Sequence[str]) -> CostModel:
        """Return the costs of the network in which `nn.Identity` takes the place of the blocks `gates`.

        A block's terms have a factor of 0 or 1, its gate. The width vectors are those of the groups that are left; the
        dense network's costs stay those of the network with all its blocks. Computed once for each set of gates.
        """
        if not gates:
            return self
        names = tuple(sorted(gates))
        if names not in self._closed:
            table = None if self.table is None else self.table.without(names)
            self._closed[names] = CostModel(self._graph.closed(names), table, dense=self)
        return self._closed[names]

    def flops(self, widths: npt.ArrayLike) -> Counts:
        """Return the FLOPs for one image; shape `(...,)`."""
        return self._evaluate(self._flops, widths)

    def params(self, widths: npt.ArrayLike) -> Counts:
        """Return the number of parameters, without buffers; shape `(...,)`."""
        return self._evaluate(self._params, widths)

    def memory_bytes(self, widths: npt.ArrayLike) -> Counts:
        """Return the peak of the activations of one image, in bytes of float32, eager PyTorch; shape `(...,)`.

        It is the largest sum of tensors that live at the same time, the image included and the weights left out. 0 if
        the graph knows no moments.
        """
        moments = self._memory.at(widths)
        return np.rint(moments.max(axis=-1, initial=0.0)).astype(np.int64)

    def latency_ms(self, widths: npt.ArrayLike) -> Floats:
        """Predict the milliseconds of one batch by the table; shape `(...,)`.

        The dense network has the time that was measured for it.
        """
        assert self.table is not None, "latency needs a table"
        predicted = self.table.predict(self.sizes(widths))
        if not self._is_dense:
            return predicted
        return np.where(np.all(np.asarray(widths) == self.num_channels, axis=-1), self.table.dense_ms, predicted)

    @property
    def dense_latency_ms(self) -> float:
        """Milliseconds of one batch through the dense network, measured together with the table."""
        assert self.table is not None, "latency needs a table"
        return self.table.dense_ms

    def sizes(self, widths: npt.ArrayLike) -> Floats:
        """Return the sizes of the graph's axes, `ChannelGraph.factors`; shape `(..., F)`."""
        return self._sizes.at(widths)

    def vector(self, widths: Mapping[str, int]) -> Counts:
        """Return the width vector of a mapping, shape `(G,)`; groups that are not named stay whole."""
        return np.array(
            [widths.get(name, n) for name, n in zip(self.group_names, self.num_channels, strict=True)], dtype=np.int64
        )

    def smallest(self, *, min_channels: int = 1, multiple_of: int = 1) -> Counts:
        """Return the narrowest width vector that the two limits allow; shape `(G,)`."""
        floor = max(1, -(-min_channels // multiple_of)) * multiple_of
        return np.minimum(self.num_channels, floor)

    def flops_by_module(self, widths: npt.ArrayLike) -> dict[str, int]:
        """Return the FLOPs of each module at one width vector of shape `(G,)`, the most expensive module first."""
        return self._by_module(self._graph.flops, widths)

    def params_by_module(self, widths: npt.ArrayLike) -> dict[str, int]:
        """Return the number of parameters of each module at one width vector of shape `(G,)`, the largest first."""
        return self._by_module(self._graph.params, widths)

    def memory_by_group(self, widths: npt.ArrayLike) -> dict[str, int]:
        """Return the bytes of each group's activations at the peak of a width vector of shape `(G,)`, the most first.

        The name "" stands for activations whose size is fixed, such as the image.
        """
        at = dict(zip(self.group_names, np.asarray(widths, dtype=np.int64).tolist(), strict=True))
        peak = self._graph.memory[int(self._memory.at(widths).argmax())]
        parts = {name: count * at[name] for name, count in peak.coefficients.items()}
        for heads, width, count in peak.products:  # counted with the width
            parts[width] = parts.get(width, 0) + count * at[heads] * at[width]
        parts = {name: count for name, count in parts.items() if count}
        parts[""] = peak.constant
        return dict(sorted(parts.items(), key=lambda item: -item[1]))

    def latency_by_module(self, widths: npt.ArrayLike) -> dict[str, float]:
        """Return the milliseconds of each module's operations at a width vector of shape `(G,)`, the slowest first."""
        assert self.table is not None, "latency needs a table"
        return self.table.by_module(self.sizes(widths))

    def _by_module(self, terms: tuple[Term, ...], widths: npt.ArrayLike) -> dict[str, int]:
        factors = self.sizes(widths)
        by_module: dict[str, int] = defaultdict(int)
        for term in terms:
            by_module[term.module] += term.coefficient * prod(int(factors[position]) for position in term.factors)
        return dict(sorted(by_module.items(), key=lambda item: -item[1]))

    def _evaluate(self, terms: dict[tuple[int, ...], float], widths: npt.ArrayLike) -> Counts:
        vectors = np.asarray(widths, dtype=np.float64)
        factors = self.sizes(vectors)
        total = np.zeros(vectors.shape[:-1])
        by_rank: dict[int, list[tuple[tuple[int, ...], float]]] = defaultdict(list)
        for positions, coefficient in terms.items():
            by_rank[len(positions)].append((positions, coefficient))
        for rank, rows in by_rank.items():
            coefficients = np.array([coefficient for _, coefficient in rows])
            if rank == 0:
                total += coefficients.sum()
                continue
            products = factors[..., [positions[0] for positions, _ in rows]]
            for k in range(1, rank):
                products *= factors[..., [positions[k] for positions, _ in rows]]
            total += products @ coefficients
        return np.rint(total).astype(np.int64)


def measured(model: nn.Module, x: NetworkInputs) -> tuple[int, int]:
    """Count the FLOPs of a forward pass of the one image `x`, and the parameters; return both."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # the counter does not know its operations
    try:
        # The counter hooks the gradients of a module's inputs, even of a parameter that a layer takes as an input.
        for parameter in trained:
            parameter.requires_grad_(False)
        with evaluating(model), FlopCounterMode(display=False) as counter, torch.no_grad():
            call(model, x)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for parameter in trained:
            parameter.requires_grad_(True)
    return int(counter.get_total_flops()), sum(parameter.numel() for parameter in model.parameters())


def fractions_by_group(graph: ChannelGraph) -> dict[str, tuple[float, float]]:
    """Return for each group the fractions of the dense FLOPs and parameters that belong to the group's channels.

    A weight between two groups belongs to both groups, so the fractions add up to more than 1.
    """
    dense = graph.widths
    sizes = [factor.size(dense) for factor in graph.factors]
    fractions = []
    for terms in (graph.flops, graph.params):
        total = sum(_dense(term, sizes) for term in terms)
        by_group: dict[str, float] = defaultdict(float)
        for term in terms:
            for name in {g for position in term.factors for g in graph.factors[position].groups}:
                outside = prod(1 - graph.factors[p].part_of(name, dense) / sizes[p] for p in term.factors)
                by_group[name] += _dense(term, sizes) * (1 - outside)
        fractions.append({name: by_group[name] / total for name in dense})
    return {name: (fractions[0][name], fractions[1][name]) for name in dense}


def fractions_by_gate(graph: ChannelGraph) -> dict[str, tuple[float, float]]:
    """Return for each gate the fractions of the dense FLOPs and parameters that go with its block."""
    whole, fractions = CostModel(graph), {}
    for gate in graph.gates:
        without = CostModel(graph.closed([gate]))
        flops, params = whole.dense_flops - without.dense_flops, whole.dense_params - without.dense_params
        fractions[gate] = (flops / max(1, whole.dense_flops), params / max(1, whole.dense_params))
    return fractions


def prunable_params_fraction(graph: ChannelGraph) -> float:
    """Return the fraction of the dense parameters that belong to at least one removable channel, in [0, 1]."""
    dense = graph.widths
    sizes = [factor.size(dense) for factor in graph.factors]
    total = sum(_dense(term, sizes) for term in graph.params)
    fixed = sum(term.coefficient * prod(graph.factors[p].constant for p in term.factors) for term in graph.params)
    return 1 - fixed / total if total else 0.0


def _dense(term: Term, sizes: list[int]) -> int:
    return term.coefficient * prod(sizes[position] for position in term.factors)


def _collect(terms: tuple[Term, ...]) -> dict[tuple[int, ...], float]:
    """Add up terms with the same factors: with fewer terms, the cost of a vector is computed faster."""
    collected: dict[tuple[int, ...], float] = defaultdict(float)
    for term in terms:
        collected[tuple(sorted(term.factors))] += term.coefficient
    return dict(collected)
