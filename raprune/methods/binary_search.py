"""Binary search: each layer loses as many of its smallest neurons as the accuracy allows.

Zhang, Qin, Chan: "An Efficient Binary Search Based Neuron Pruning Method for ConvNet Condensation", ICONIP 2017
(https://doi.org/10.1007/978-3-319-70096-0_20). For layer l with neurons in ascending order of magnitude, the largest m
with accuracy(without the m smallest) >= accuracy(dense) - tolerance, found in ceil(log2 N_l) evaluations.

The paper's: magnitude, the binary search of the number, layer by layer. We had only its abstract, so the rest is ours:
the L1 norm, the order of the layers, the tolerance, a comparison on fixed images, training between layers, the task's
metric where that is not accuracy, and one channel of a group of layers as a neuron. A probe is a network that is really
cut, which gives the same outputs as masking after the activation and is faster. The batch-norm statistics of a probe do
not change: re-estimation on 1,024 images for each probe allows no larger removal (ResNet-56, six groups, 2 points:
96.2 % of the FLOPs are left with and without), on 128 images a smaller one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import ClassVar, Literal

import numpy as np
from torch import nn

from raprune.channels.graph import ChannelGraph
from raprune.channels.members import Term
from raprune.methods.magnitude import sum_over_layers
from raprune.methods.method import Batches, Method, Network, Scores, Step, TrainingServices, reestimate_batch_norm


@dataclass(frozen=True, kw_only=True)
class BinarySearch(Method):
    """The largest m with accuracy(m smallest removed) >= accuracy(dense) - tolerance, for each group."""

    title: ClassVar[str] = "largest removal that the accuracy allows, group by group (Zhang et al., ICONIP 2017)"
    data_free: ClassVar[bool] = True

    norm: Literal["l1", "l2"] = field(default="l1", metadata={"search": {"choices": ("l1", "l2")}})
    """Norm that measures the magnitude of a neuron."""
    order: Literal["forward", "backward", "most_params_first", "most_flops_first"] = field(
        default="forward",
        metadata={"search": {"choices": ("forward", "backward", "most_params_first", "most_flops_first")}},
    )
    """Order in which the groups are searched."""
    tolerance: float = field(default=0.005, metadata={"search": {"low": 0.001, "high": 0.05, "log": True}})
    """Loss of accuracy, or of the task's metric, against the dense network that is allowed before training."""
    tolerance_split: Literal["global", "split"] = field(
        default="global", metadata={"search": {"choices": ("global", "split")}}
    )
    """`global`: every group may use the rest of the tolerance. `split`: l of L groups may use l/L of the tolerance."""
    probe_epochs: float = 0.0
    """Epochs of training of a probe before its accuracy is measured."""
    finetune_epochs: float = 1.0
    """Epochs of training after each group that lost channels."""
    sweeps: int = 1
    """Maximum number of rounds over all groups; a round in which no group shrinks is the last."""
    images: int = 5000
    """Number of validation images for all comparisons; 0: the whole split."""
    gallop: bool = False
    """True if larger removals are tried where the search ends, because accuracy is not monotone."""

    def score(self, model: nn.Module, graph: ChannelGraph, batches: Batches, *, seed: int) -> Scores:
        power = {"l1": 1, "l2": 2}[self.norm]
        return sum_over_layers(model, graph, lambda filters_OI: filters_OI.norm(p=power, dim=1))

    def behind_scores(self) -> dict[str, bool | int | float | str]:
        return {"norm": self.norm}

    def path(self, dense: Network, widths: Mapping[str, int], services: TrainingServices) -> Iterator[Step]:
        """Yield a step after each group. Epochs include those of rejected probes."""
        search = _Search(self, services, dense)
        network, names = dense, self._ordered(dense.graph)
        for sweep in range(max(1, self.sweeps)):
            before = network.graph.widths
            for done, name in enumerate(names, start=1):
                fraction = done / len(names) if self.tolerance_split == "split" and sweep == 0 else 1.0
                network = search.shrink(network, name, self.tolerance * fraction)
                yield search.step(network)
            if network.graph.widths == before:
                break
        left = network.graph.widths
        above = {name: left[name] - width for name, width in widths.items() if left[name] > width}
        if above:
            network = search.without_smallest(network, above)
            # Unlike the removals of a probe, this removal may be large.
            reestimate_batch_norm(network.model, services.calibration)
            yield search.step(search.trained(network, self.finetune_epochs))

    def largest_removal(self, count: int, accept: Callable[[int], bool]) -> int:
        return largest_removal(count, accept, gallop=self.gallop)

    def _ordered(self, graph: ChannelGraph) -> list[str]:
        names = list(graph.widths)
        if self.order == "backward":
            return names[::-1]
        if self.order == "forward":
            return names
        cost = cost_of_groups(graph, graph.params if self.order == "most_params_first" else graph.flops)
        return sorted(names, key=lambda name: -cost[name])


class _Search:
    """The state of a search: the dense network's metric, and the evaluations and epochs that were used."""

    def __init__(self, method: BinarySearch, services: TrainingServices, dense: Network) -> None:
        self._method = method
        self._services = services
        self._reference = self._metric(dense.model)
        self._evaluations = 0
        self._epochs = 0.0

    def step(self, network: Network) -> Step:
        """Return `network` as a step. `evaluations` counts the probes so far, without the dense network."""
        return Step(network=network, epochs=self._epochs, settings={"evaluations": self._evaluations})

    def shrink(self, network: Network, name: str, tolerance: float) -> Network:
        """Remove as many of the group's smallest channels as the tolerance allows, and train the network."""
        best = network

        width = network.graph.widths[name]
        *narrower, _ = self._services.allowed(width)
        removals = [width - left for left in narrower[::-1]]

        def accept(number: int) -> bool:
            nonlocal best
            smaller = self.without_smallest(network, {name: removals[number - 1]})
            probe = self.trained(smaller, self._method.probe_epochs)
            self._evaluations += 1
            accepted = self._within(probe.model, tolerance)
            # The next probe removes more channels than the accepted one.
            best = probe if accepted else best
            return accepted

        found = self._method.largest_removal(len(removals), accept)
        return self.trained(best, self._method.finetune_epochs) if found else network

    def without_smallest(self, network: Network, counts: Mapping[str, int]) -> Network:
        """Remove from each group of `counts` that many channels of smallest magnitude; of equal ones the last."""
        graph = network.graph.only(counts)
        scores = self._method.score(network.model, graph, self._services.calibration, seed=self._services.seed)
        kept = {}
        for name, count in counts.items():
            largest = np.argsort(-scores[name], kind="stable")[: len(scores[name]) - count]
            kept[name] = tuple(sorted(largest.tolist()))
        return self._services.cut(network, kept)

    def trained(self, network: Network, epochs: float) -> Network:
        if epochs > 0:
            self._services.train(network.model, epochs)
            self._epochs += epochs
        return network

    def _within(self, model: nn.Module, tolerance: float) -> bool:
        # On the same images: those that both networks answer alike, most of the sampling error, cancel.
        return self._reference - self._metric(model) <= tolerance + 1e-12

    def _metric(self, model: nn.Module) -> float:
        return self._services.metric(model, self._method.images or None)


def largest_removal(count: int, accept: Callable[[int], bool], *, gallop: bool = False) -> int:
    """Return the largest m in 0 .. `count` with `accept(m)`, by binary search: at most ceil(log2(count + 1)) calls.

    0 counts as accepted and is not tested. If `accept` is not monotone, the result is accepted, but a larger number may
    be accepted too. `gallop` then tests 2, 4, 8, ... beyond the result, and continues from a number that is accepted.
    """
    asked: dict[int, bool] = {0: True}

    def ask(removed: int) -> bool:
        if removed not in asked:
            asked[removed] = accept(removed)
        return asked[removed]

    low = _bisected(0, count, ask)
    step = 2
    while gallop and low + step <= count:
        if ask(low + step):
            low, step = _bisected(low + step, count, ask), 2
        else:
            step *= 2
    return low


def _bisected(low: int, high: int, accept: Callable[[int], bool]) -> int:
    while low < high:
        middle = (low + high + 1) // 2
        if accept(middle):
            low = middle
        else:
            high = middle - 1
    return low


def cost_of_groups(graph: ChannelGraph, terms: tuple[Term, ...]) -> dict[str, int]:
    """Return for each group the part of a cost that removing all of the group's channels would save."""
    widths = graph.widths
    sizes = [factor.size(widths) for factor in graph.factors]
    saved = dict.fromkeys(widths, 0)
    for term in terms:
        whole = prod(sizes[position] for position in term.factors)
        for name in {g for position in term.factors for g in graph.factors[position].groups}:
            left = [sizes[p] - graph.factors[p].part_of(name, widths) for p in term.factors]
            saved[name] += term.coefficient * (whole - prod(left))
    return saved
