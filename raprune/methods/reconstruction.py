"""Reconstruction error: channels go whose absence the others make up for best, and the others then do so.

Kamma, Wada: "Reconstruction Error Aware Pruning for Accelerating Neural Networks", ISVC 2019 (doi
10.1007/978-3-030-33720-9_5), "REAP". Another method of that abbreviation prunes the experts of language models.

A layer gives Y = X W for the patches X that it reads; channel c owns the columns I of X. With G = X^T X and H = G^-1,

    e_c = tr( W_I^T (H_II)^-1 W_I )                 the squared error once c is gone and all others are refitted
    W  <-  W - H_:I (H_II)^-1 W_I                   the refitted weights
    H  <-  H - H_:I (H_II)^-1 H_I:                  the same without c

so one matrix serves the scores of all channels, and a removal is a downdate of rank |I|: the biorthogonal system of X
and X H. The paper's: scores by the error after a least-squares refit of the layer, at low cost, and that refit.

Ours, as only its abstract was at hand: the formulas above; one channel after another, so that the order is nested and
each group has a curve of errors; both forms (`block`, patches; `map`, one coefficient for a channel's whole map); a
ridge; groups that several layers read, whose errors are added up as shares of each layer's outputs; and `sensitivity`:
curves in units of what is left of the errors in the network's predictions, measured at some widths of each group.
A channel's score is the error once it and all before it in the order are gone.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from raprune.channels.graph import ChannelGraph, Member
from raprune.methods.least_squares import (
    PATCHES,
    PATCHES_A_WEIGHT,
    Moments,
    Patches,
    evaluating,
    factored,
    refit,
    scale_of,
    structure_of,
)
from raprune.methods.magnitude import sum_over_layers
from raprune.methods.method import Batches, Cut, Method, Scores

Curve = npt.NDArray[np.float64]

BLOCK = 4608
"""Weights of a filter above which the map form is taken: its matrix is smaller by the square of the kernel's size."""
PRICED_AT = (0.4, 0.8)
"""Shares of a group's channels that are gone when it is measured what that costs; between them it is interpolated."""


@dataclass(frozen=True, kw_only=True)
class Reconstruction(Method):
    """Greedy removal by the error after a refit; then the refit."""

    title: ClassVar[str] = "error left after the others are refitted by least squares (REAP; Kamma et al., ISVC 2019)"
    comparable: ClassVar[bool] = True

    form: str = field(default="block", metadata={"search": {"choices": ("block", "map")}})
    """What is refitted when scores are computed: each weight, or one coefficient for each pair of channels."""
    ridge: float = 1e-6
    """Weight of keeping the weights as they were, relative to the mean square of what they multiply."""
    sensitivity: float = 1.0
    """0: a layer's errors count as shares of its outputs, as if all layers were alike. 1: as what they do to the
    network's predictions: their divergence from the dense network's once this group alone is cut and all layers behind
    it are refitted. Between: geometric mean.
    Measured on ResNet-20, CIFAR-10 (JPEG), `least_damage` at 50, 25 and 12.5 % of the FLOPs, 5,000 validation images,
    one run each: 0 gives 72.9, 59.1 and 48.4 %, 1 gives 77.1, 64.0 and 49.6 % (`uniform`: 74.2, 57.6 and 47.9 %)."""
    target: str = field(
        default="asymmetric", metadata={"search": {"choices": ("asymmetric", "symmetric")}, "repair": True}
    )
    """What the refit starts from: layers before it that are cut and refitted already, or the dense network's."""
    error_budget: float = field(default=1.0, metadata={"search": {"low": 0.05, "high": 1.0}, "repair": True})
    """Share of its readers' outputs that a group may lose; `least_damage` goes beyond it only when all groups did."""

    def score(self, model: nn.Module, graph: ChannelGraph, batches: Batches, *, seed: int) -> Scores:
        with evaluating(model), torch.no_grad():
            problems = _problems(model, graph, batches, self.form)
        scores = {}
        for group in graph.groups:
            mine = [problem for problem in problems if problem.group == group.name]
            if mine:
                order, errors = removal([p.solution(self.ridge) for p in mine])
            else:
                # No layer reads it: what its filters weigh is all there is to go by.
                order, errors = _by_weight(model, graph.only([group.name]))
            scores[group.name] = np.empty(group.num_channels)
            scores[group.name][order] = errors
        return scores

    def priced_at(self, num_channels: int) -> tuple[int, ...]:
        if self.sensitivity == 0:
            return ()
        return tuple(sorted({round(share * num_channels) for share in PRICED_AT} - {0, num_channels}))

    def priced(self, scores: Curve, prices: Mapping[int, float]) -> Curve:
        order = np.argsort(scores, kind="stable")
        found = np.empty(len(scores))
        found[order] = _in_units_of(scores[order], prices, self.sensitivity)
        return found

    def damage(self, scores: Scores) -> Scores:
        return {name: _beyond(np.r_[0.0, np.sort(errors)], self.error_budget) for name, errors in scores.items()}

    def repair(self, model: nn.Module, batches: Batches, cut: Cut) -> None:
        refit(model, batches, cut, asymmetric=self.target == "asymmetric", ridge=self.ridge)


def removal(readers: Sequence[Solution], count: int | None = None) -> tuple[list[int], Curve]:
    """The channels in the order in which they go, and the error after each: `count` of them, or all."""
    left = list(range(len(readers[0].columns)))
    order: list[int] = []
    errors: list[float] = []
    stop = 0 if count is None else len(left) - count
    while len(left) > stop:
        increase = torch.stack([reader.errors(left) for reader in readers]).sum(0).clamp(min=0)
        # Of equal channels the last one goes, as the candidate keeps the first.
        place = len(left) - 1 - int(increase.flip(0).argmin())
        order.append(left.pop(place))
        errors.append(float(increase[place]))
        for reader in readers:
            reader.remove(order[-1])
    return order, np.cumsum(errors)


def within(curve: Curve, budget: float) -> int:
    """How many channels can go before the error passes the share `budget` of the error without any channel."""
    return int((curve <= budget * curve[-1]).sum()) - 1


class Solution:
    """The least-squares weights of a layer's remaining channels, and the error that each one's removal adds.

    `H` and `W` are in units in which the Gram matrix has a diagonal of ones; leading axis: the layer's groups.
    """

    def __init__(self, gram: Tensor, weight: Tensor, columns: Tensor, *, ridge: float, unit: float = 1.0) -> None:
        """`gram (G, P, P)`, `weight (G, P, M)`; channel c owns `columns[c]`; errors are multiplied by `unit`."""
        scale = scale_of(gram)
        self.columns = columns
        self.H = torch.cholesky_inverse(factored(gram, scale, ridge))
        self.W = weight * torch.where(scale > 0, 1 / scale, 0.0)[:, :, None]
        self._unit = unit
        # Where a column of P is now; columns of removed channels leave when they are many.
        self._place = torch.arange(gram.shape[-1], device=gram.device)
        self._gone = 0

    def errors(self, channels: Sequence[int]) -> Tensor:
        """What the removal of each of these would add to the squared error; float64, on the CPU."""
        own = self._place[self.columns[list(channels)]]
        H_II, W_I = self.H[:, own[:, :, None], own[:, None, :]], self.W[:, own]
        return self._unit * (W_I * torch.linalg.solve(H_II, W_I)).sum((0, 2, 3)).cpu()

    def remove(self, channel: int) -> None:
        """Take the channel out, and refit the others."""
        own = self._place[self.columns[channel]]
        H_I, W_I = self.H[:, own], self.W[:, own]
        factor = torch.linalg.solve(H_I[:, :, own], torch.cat([H_I, W_I], dim=2))
        H_to_I = self.H[:, :, own].clone()
        self.H.baddbmm_(H_to_I, factor[:, :, : self.H.shape[2]], alpha=-1)
        self.W.baddbmm_(H_to_I, factor[:, :, self.H.shape[2] :], alpha=-1)
        self._place[self.columns[channel]] = -1
        self._gone += len(own)
        if 4 * self._gone >= self.H.shape[1]:
            self._compact()

    def _compact(self) -> None:
        held = self._place >= 0
        stay = self._place[held]
        self.H, self.W = self.H[:, stay[:, None], stay].contiguous(), self.W[:, stay].contiguous()
        self._place[held] = torch.arange(len(stay), device=stay.device)
        self._gone = 0


@dataclass
class Reading:
    """What a layer reads over all batches, and with which weights."""

    module: str
    weight: Tensor
    """`(G, P, outputs, rest)`, float64."""
    centred: bool
    """Whether a bias or a batch norm holds the mean."""
    read: Callable[[Tensor, int], Iterator[Tensor]]
    """Parts of what the layer reads, `(G, N, P)`, from its input, for images from a number on."""
    sums: Moments = field(default_factory=Moments)


@dataclass(frozen=True)
class Problem:
    """A group and a layer that reads it."""

    group: str
    reading: Reading
    columns: Tensor
    """`(channels, columns of each)`, of P."""

    def solution(self, ridge: float) -> Solution:
        layer = self.reading
        gram, weight = layer.sums.gram(centred=layer.centred), layer.weight.flatten(2)
        energy = float((weight * (gram @ weight)).sum())
        return Solution(gram, weight, self.columns, ridge=ridge, unit=1 / energy if energy > 0 else 0.0)


def _in_units_of(errors: Curve, prices: Mapping[int, float], sensitivity: float) -> Curve:
    """The errors after each removal, times what one costs: measured after some, interpolated between; rising."""
    rates = {gone: price / errors[gone - 1] for gone, price in sorted(prices.items()) if errors[gone - 1] > 0}
    if not rates:
        return errors
    between = np.interp(np.arange(1, len(errors) + 1), list(rates), np.clip(list(rates.values()), 1e-9, None))
    found = errors * between**sensitivity
    for place in range(1, len(found)):
        # A price may be off; the order is the errors' all the same.
        rises = errors[place] > errors[place - 1]
        found[place] = max(found[place], np.nextafter(found[place - 1], np.inf)) if rises else found[place - 1]
    return found


def _problems(model: nn.Module, graph: ChannelGraph, batches: Batches, form: str) -> list[Problem]:
    """A problem for every group and layer that reads it, with what the batches hold of it."""
    modules = dict(model.named_modules())
    total = sum(len(images) for images, _ in batches())
    ran, _ = structure_of(model, next(iter(batches()))[0][:2])
    problems: list[Problem] = []
    shared: dict[str, Reading] = {}
    for group in graph.groups:
        for member in group.members:
            name, _, attribute = member.parameter.rpartition(".")
            module = modules[name]
            if attribute != "weight" or not _reads(module, member):
                continue
            own = torch.as_tensor(member.indices, device=cast(Tensor, module.weight).device)
            centred = module.bias is not None or (name in ran and ran[name].norm is not None)
            if form == "block" and name in ran and cast(Tensor, module.weight)[0].numel() <= BLOCK:
                if name not in shared:
                    patches = Patches.drawn(module, ran[name].output, total, _seed(name))
                    shared[name] = _block(name, module, patches, centred=centred)
                taps = math.prod(getattr(module, "kernel_size", ()))
                columns = (own[:, :, None] * taps + torch.arange(taps, device=own.device)).flatten(1)
                problems.append(Problem(group.name, shared[name], columns))
            elif isinstance(module, nn.Linear) and own.shape[1] > 1:
                columns = torch.arange(len(own), device=own.device)[:, None]
                problems.append(Problem(group.name, _flattened_map(name, module, own, total, centred=centred), columns))
            else:
                if name not in shared:
                    shared[name] = _map(name, module, total, centred=centred)
                problems.append(Problem(group.name, shared[name], own))
    first = 0

    def add(reading: Reading, x: Tensor, y: Tensor) -> None:
        for read in reading.read(x, first):
            reading.sums.add(read, read[:, :, :0])

    with _watching(model, problems, add):
        for images, _ in batches():
            model(images)
            first += len(images)
    return [problem for problem in problems if problem.reading.sums.count > 0]


def _reads(module: nn.Module, member: Member) -> bool:
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        return not member.writes and member.axis == 0 and module.groups == 1
    depthwise = isinstance(module, nn.modules.conv._ConvNd) and 1 < module.groups == module.in_channels
    return isinstance(module, nn.Linear | nn.modules.conv._ConvNd) and member.axis == 1 and not depthwise


def _block(name: str, module: nn.Module, patches: Patches, *, centred: bool) -> Reading:
    """The block form: a channel owns all weights that read it."""
    weight_GPM = cast(Tensor, module.weight).detach().double().unflatten(0, (patches.groups, -1)).flatten(2).mT

    def read(x: Tensor, first: int) -> Iterator[Tensor]:
        return (part for _, part in patches.of_input(x, first))

    return Reading(name, weight_GPM[..., None], centred, read)


def _map(name: str, module: nn.Module, total: int, *, centred: bool) -> Reading:
    """The map form: a channel owns one column, its map, whatever the kernel; positions of the map are the samples."""
    weight = cast(Tensor, module.weight).detach().double()
    groups = cast(int, getattr(module, "groups", 1))
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        weight_GPMT = weight.flatten(2)[None]
    else:
        weight_GPMT = weight.unflatten(0, (groups, -1)).unsqueeze(-1).flatten(3).transpose(1, 2)
    draw = _drawing(name, weight_GPMT.shape[1], total)

    def read(x: Tensor, first: int) -> Iterator[Tensor]:
        rows = x if isinstance(module, nn.Linear) else x.movedim(1, -1)
        yield draw(rows.reshape(len(x), -1, rows.shape[-1])).unflatten(1, (groups, -1)).transpose(0, 1)

    return Reading(name, weight_GPMT, centred, read)


def _flattened_map(name: str, module: nn.Module, own: Tensor, total: int, *, centred: bool) -> Reading:
    """The map form for a linear layer that reads flattened maps, of which channel c is at `own[c]`."""
    weight_1PMT = cast(Tensor, module.weight).detach().double()[:, own].transpose(0, 1)[None]
    draw = _drawing(name, len(own), total)

    def read(x: Tensor, first: int) -> Iterator[Tensor]:
        yield draw(x[..., own].movedim(-2, -1).reshape(len(x), -1, len(own)))[None]

    return Reading(name, weight_1PMT, centred, read)


def _drawing(name: str, columns: int, total: int) -> Callable[[Tensor], Tensor]:
    """Takes what an image has at each position, `(B, positions, P)`, and gives random ones, `(N, P)`, float64."""
    each = -(-max(PATCHES, PATCHES_A_WEIGHT * columns) // total)
    generator = torch.Generator().manual_seed(_seed(name))

    def draw(rows: Tensor) -> Tensor:
        count, positions, _ = rows.shape
        if each < positions:
            chosen = torch.randint(positions, (count, each), generator=generator).to(rows.device)
            rows = rows[torch.arange(count, device=rows.device)[:, None], chosen]
        return rows.flatten(0, 1).double()

    return draw


def _seed(name: str) -> int:
    return zlib.crc32(name.encode())


@contextmanager
def _watching(
    model: nn.Module, problems: Sequence[Problem], see: Callable[[Reading, Tensor, Tensor], None]
) -> Iterator[None]:
    """Inside, `see(reading, input, output)` is called whenever a layer runs that is read from."""
    modules, handles = dict(model.named_modules()), []
    for reading in {id(problem.reading): problem.reading for problem in problems}.values():

        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, reading: Reading = reading) -> None:
            see(reading, inputs[0], output)

        handles.append(modules[reading.module].register_forward_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _by_weight(model: nn.Module, graph: ChannelGraph) -> tuple[list[int], Curve]:
    """Of the one group of `graph`: ascending squared norms of its filters, and their sums as shares."""
    (squares,) = sum_over_layers(model, graph, lambda filters_OI: filters_OI.square().sum(dim=1)).values()
    order = np.argsort(squares, kind="stable")
    return order.tolist(), np.cumsum(squares[order]) / max(float(squares.sum()), 1e-30)


def _beyond(curve: Curve, budget: float) -> Curve:
    """The curve, a thousand times as steep beyond the budget."""
    return curve + 1000 * np.maximum(0.0, curve - curve[within(curve, budget)])
