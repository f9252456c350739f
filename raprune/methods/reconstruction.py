"""Reconstruction error: channels are removed whose absence the others can compensate best, by least squares.

Kamma, Wada: "Reconstruction Error Aware Pruning for Accelerating Neural Networks", ISVC 2019 (doi
10.1007/978-3-030-33720-9_5), "REAP". Another method of that abbreviation prunes the experts of language models.

A layer gives Y = X W for the patches X that it reads; channel c owns the columns I of X. With G = X^T X and H = G^-1,

    e_c = tr( W_I^T (H_II)^-1 W_I )                 the squared error once c is removed and all others are refitted
    W  <-  W - H_:I (H_II)^-1 W_I                   the refitted weights
    H  <-  H - H_:I (H_II)^-1 H_I:                  H without c

so one matrix gives the scores of all channels, and a removal is a downdate of rank |I|: the biorthogonal system of X
and X H. The paper's: scores by the error after a least-squares refit of the layer, at low cost, and this refit.

Ours, because we had only the abstract: the formulas above; one channel after another, so that the order is nested and
each group has a curve of errors; both forms (`block`, patches; `map`, one coefficient for a channel's whole map); a
ridge; for groups that several layers read, the sum of the errors as fractions of each layer's outputs; and
`sensitivity`: curves in units of their effect on the network's predictions, measured at some widths of each group.
A channel's score is the error once this channel and all channels before it in the order are removed.
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

from raprune.channels.evaluating import evaluating
from raprune.channels.graph import ChannelGraph, Member
from raprune.methods.least_squares import Moments, factored, refit, scale_of, structure_of
from raprune.methods.magnitude import sum_over_layers
from raprune.methods.method import Batches, Cut, Method, Scores
from raprune.methods.patches import PATCHES, PATCHES_A_WEIGHT, Patches

Curve = npt.NDArray[np.float64]

BLOCK = 4608
"""Weights per filter above which the map form is used; its matrix is smaller by the squared kernel size."""
MEASURED_AT = (0.4, 0.8)
"""Fractions of removed channels of a group at which the sensitivity is measured; it is interpolated between them."""


@dataclass(frozen=True, kw_only=True)
class Reconstruction(Method):
    """Greedy removal by the error after a least-squares refit; then this refit."""

    title: ClassVar[str] = "error left after the others are refitted by least squares (REAP; Kamma et al., ISVC 2019)"
    comparable: ClassVar[bool] = True

    form: str = field(default="block", metadata={"search": {"choices": ("block", "map")}})
    """Unknowns of the refit for scores: each weight (`block`), or one coefficient per pair of channels (`map`)."""
    ridge: float = 1e-6
    """Weight of the penalty on changes of the weights, relative to the mean square of the weights' inputs."""
    sensitivity: float = 1.0
    """0: a layer's errors count as fractions of its outputs, as if all layers were equally sensitive. 1: they count by
    the measured sensitivity, the divergence of the network's predictions from the dense network's once this group alone
    is cut and all layers behind it are refitted. Between 0 and 1: the geometric mean.
    Measured on ResNet-20, CIFAR-10 (JPEG), `least_damage` at 50, 25 and 12.5 % of the FLOPs, 5,000 validation images,
    one run each: 0 gives 72.9, 59.1 and 48.4 %, 1 gives 77.1, 64.0 and 49.6 % (`uniform`: 74.2, 57.6 and 47.9 %)."""
    target: str = field(
        default="asymmetric", metadata={"search": {"choices": ("asymmetric", "symmetric")}, "repair": True}
    )
    """Inputs of the refit: from layers that are cut and refitted already (`asymmetric`), or from the dense network."""
    error_budget: float = field(default=1.0, metadata={"search": {"low": 0.05, "high": 1.0}, "repair": True})
    """Fraction of its readers' outputs that a group may lose; `least_damage` exceeds it only if all groups must."""

    def score(self, model: nn.Module, graph: ChannelGraph, batches: Batches, *, seed: int) -> Scores:
        with evaluating(model), torch.no_grad():
            problems = _problems(model, graph, batches, self.form)
        scores = {}
        for group in graph.groups:
            mine = [problem for problem in problems if problem.group == group.name]
            if mine:
                order, errors = removal([p.solution(self.ridge) for p in mine])
            else:
                # No layer reads the group, so the norms of its filters decide.
                order, errors = _by_weight(model, graph.only([group.name]))
            scores[group.name] = np.empty(group.num_channels)
            scores[group.name][order] = errors
        return scores

    def measured_at(self, num_channels: int) -> tuple[int, ...]:
        if self.sensitivity == 0:
            return ()
        return tuple(sorted({round(fraction * num_channels) for fraction in MEASURED_AT} - {0, num_channels}))

    def rescaled(self, scores: Curve, divergences: Mapping[int, float]) -> Curve:
        order = np.argsort(scores, kind="stable")
        found = np.empty(len(scores))
        found[order] = _in_units_of(scores[order], divergences, self.sensitivity)
        return found

    def damage(self, scores: Scores) -> Scores:
        return {name: _beyond(np.r_[0.0, np.sort(errors)], self.error_budget) for name, errors in scores.items()}

    def repair(self, model: nn.Module, batches: Batches, cut: Cut) -> None:
        refit(model, batches, cut, asymmetric=self.target == "asymmetric", ridge=self.ridge)


def removal(readers: Sequence[Solution], count: int | None = None) -> tuple[list[int], Curve]:
    """Return the channels in the order of removal, and the error after each removal: `count` channels, or all.

    The order stays on the device until the end, so that the CPU does not wait for each channel.

    Raises:
        FloatingPointError: if an error is not finite.
    """
    total = len(readers[0].columns)
    count = total if count is None else count
    left = torch.arange(total, device=readers[0].columns.device)
    order, errors = left.new_empty(count), readers[0].H.new_empty(count)
    for step in range(count):
        increase = torch.stack([reader.errors(left) for reader in readers]).sum(0).clamp(min=0)
        # Of equal channels the last is removed, because the candidate keeps the first.
        place = len(left) - 1 - increase.flip(0).argmin().view(1)
        channel = order[step : step + 1] = left.index_select(0, place)
        errors[step : step + 1] = increase.index_select(0, place)
        following = torch.arange(len(left) - 1, device=left.device)
        left = left.index_select(0, following + (following >= place))
        for reader in readers:
            reader.remove(channel)
    curve = np.cumsum(errors.cpu().numpy())
    if not np.isfinite(curve).all():
        raise FloatingPointError("Reconstruction: the errors of a layer's channels are not finite.")
    return order.tolist(), curve


def within(curve: Curve, budget: float) -> int:
    """Return the number of removals before the error exceeds the fraction `budget` of the error without any channel."""
    return int((curve <= budget * curve[-1]).sum()) - 1


class Solution:
    """The least-squares weights of a layer's remaining channels, and the error that each one's removal adds.

    `H` and `W` are in units in which the Gram matrix has a diagonal of ones; their leading axis is the layer's groups.
    """

    def __init__(
        self, gram: Tensor, weight: Tensor, columns: Tensor, *, ridge: float, unit: float | Tensor = 1.0
    ) -> None:
        """Solve for `gram` `(G, P, P)` and `weight` `(G, P, M)`.

        Channel c owns the columns `columns[c]`; errors are multiplied by `unit`.
        """
        scale = scale_of(gram)
        self.columns = columns
        self.H = torch.cholesky_inverse(factored(gram, scale, ridge))
        self.W = weight * torch.where(scale > 0, 1 / scale, 0.0)[:, :, None]
        self._unit = unit
        # The present place of each column of P; columns of removed channels are deleted once there are many.
        self._place = torch.arange(gram.shape[-1], device=gram.device)
        self._held = gram.shape[-1]

    def errors(self, channels: Tensor) -> Tensor:
        """Return the increase of the squared error by the removal of each of `channels`, float64."""
        own = self._place[self.columns.index_select(0, channels)]
        W_I = self.W[:, own]
        return self._unit * (W_I * _solved(self.H[:, own[:, :, None], own[:, None, :]], W_I)).sum((0, 2, 3))

    def remove(self, channel: Tensor) -> None:
        """Remove the channel, of shape `(1,)`, and refit the others."""
        columns = self.columns.index_select(0, channel)[0]
        own = self._place.index_select(0, columns)
        H_I, W_I = self.H[:, own], self.W[:, own]
        factor = _solved(H_I[:, :, own], torch.cat([H_I, W_I], dim=2))
        H_to_I = self.H[:, :, own].clone()
        self.H.baddbmm_(H_to_I, factor[:, :, : self.H.shape[2]], alpha=-1)
        self.W.baddbmm_(H_to_I, factor[:, :, self.H.shape[2] :], alpha=-1)
        self._place.index_fill_(0, columns, -1)
        self._held -= len(own)
        if 4 * (self.H.shape[1] - self._held) >= self.H.shape[1]:
            self._compact()

    def _compact(self) -> None:
        # Columns that are held come first, in their order; their number is known, so that nobody waits for it.
        held = (self._place < 0).byte().argsort(stable=True)[: self._held]
        stay = self._place[held]
        self.H, self.W = self.H[:, stay[:, None], stay].contiguous(), self.W[:, stay].contiguous()
        self._place[held] = torch.arange(self._held, device=stay.device)


def _solved(matrices: Tensor, values: Tensor) -> Tensor:
    """Return the solutions for positive definite matrices, without a check that the CPU would wait for."""
    return torch.cholesky_solve(values, torch.linalg.cholesky_ex(matrices).L)


@dataclass
class LayerInputs:
    """The inputs of a layer over all batches, and the layer's weights."""

    module: str
    weight: Tensor
    """Weights, shape `(G, P, outputs, rest)`, float64."""
    centred: bool
    """True if a bias or a batch norm can represent the mean."""
    read: Callable[[Tensor, int], Iterator[Tensor]]
    """Function of the layer's input and the index of its first image that yields samples, shape `(G, N, P)`."""
    sums: Moments = field(default_factory=Moments)


@dataclass(frozen=True)
class ReaderProblem:
    """The least-squares problem of a group and a layer that reads this group."""

    group: str
    reading: LayerInputs
    columns: Tensor
    """Columns of P that belong to each channel, shape `(channels, columns per channel)`."""

    def solution(self, ridge: float) -> Solution:
        layer = self.reading
        gram, weight = layer.sums.gram(centred=layer.centred), layer.weight.flatten(2)
        energy = (weight * (gram @ weight)).sum()
        return Solution(gram, weight, self.columns, ridge=ridge, unit=torch.where(energy > 0, 1 / energy, 0.0))


def _in_units_of(errors: Curve, divergences: Mapping[int, float], sensitivity: float) -> Curve:
    """Multiply the errors after each removal by the measured sensitivity, interpolated between; the result ascends."""
    rates = {gone: nats / errors[gone - 1] for gone, nats in sorted(divergences.items()) if errors[gone - 1] > 0}
    if not rates:
        return errors
    between = np.interp(np.arange(1, len(errors) + 1), list(rates), np.clip(list(rates.values()), 1e-9, None))
    found = errors * between**sensitivity
    for place in range(1, len(found)):
        # A measured sensitivity may be wrong; the order of the errors is kept in any case.
        rises = errors[place] > errors[place - 1]
        found[place] = max(found[place], np.nextafter(found[place - 1], np.inf)) if rises else found[place - 1]
    return found


def _problems(model: nn.Module, graph: ChannelGraph, batches: Batches, form: str) -> list[ReaderProblem]:
    """Return a problem for every group and layer that reads this group, with the sums over the batches."""
    modules = dict(model.named_modules())
    total = sum(len(images) for images, _ in batches())
    ran, _ = structure_of(model, next(iter(batches()))[0][:2])
    problems: list[ReaderProblem] = []
    shared: dict[str, LayerInputs] = {}
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
                problems.append(ReaderProblem(group.name, shared[name], columns))
            elif isinstance(module, nn.Linear) and own.shape[1] > 1:
                columns = torch.arange(len(own), device=own.device)[:, None]
                problems.append(
                    ReaderProblem(group.name, _flattened_map(name, module, own, total, centred=centred), columns)
                )
            else:
                if name not in shared:
                    shared[name] = _map(name, module, total, centred=centred)
                problems.append(ReaderProblem(group.name, shared[name], own))
    first = 0

    def add(reading: LayerInputs, x: Tensor, y: Tensor) -> None:
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


def _block(name: str, module: nn.Module, patches: Patches, *, centred: bool) -> LayerInputs:
    """Return the inputs in block form: a channel owns all weights that read it."""
    weight_GPM = cast(Tensor, module.weight).detach().double().unflatten(0, (patches.groups, -1)).flatten(2).mT

    def read(x: Tensor, first: int) -> Iterator[Tensor]:
        return (part for _, part in patches.of_input(x, first))

    return LayerInputs(name, weight_GPM[..., None], centred, read)


def _map(name: str, module: nn.Module, total: int, *, centred: bool) -> LayerInputs:
    """Return the inputs in map form: a channel owns one column, its map; positions of the map are the samples."""
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

    return LayerInputs(name, weight_GPMT, centred, read)


def _flattened_map(name: str, module: nn.Module, own: Tensor, total: int, *, centred: bool) -> LayerInputs:
    """Return the inputs in map form for a linear layer on flattened maps, with channel c at `own[c]`."""
    weight_1PMT = cast(Tensor, module.weight).detach().double()[:, own].transpose(0, 1)[None]
    draw = _drawing(name, len(own), total)

    def read(x: Tensor, first: int) -> Iterator[Tensor]:
        yield draw(x[..., own].movedim(-2, -1).reshape(len(x), -1, len(own)))[None]

    return LayerInputs(name, weight_1PMT, centred, read)


def _drawing(name: str, columns: int, total: int) -> Callable[[Tensor], Tensor]:
    """Return a function that draws random rows, `(N, P)` in float64, from rows `(B, positions, P)`."""
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
    model: nn.Module, problems: Sequence[ReaderProblem], see: Callable[[LayerInputs, Tensor, Tensor], None]
) -> Iterator[None]:
    """Within the context, call `see(reading, input, output)` whenever a layer of the problems runs."""
    modules, handles = dict(model.named_modules()), []
    for reading in {id(problem.reading): problem.reading for problem in problems}.values():

        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, reading: LayerInputs = reading) -> None:
            see(reading, inputs[0], output)

        handles.append(modules[reading.module].register_forward_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _by_weight(model: nn.Module, graph: ChannelGraph) -> tuple[list[int], Curve]:
    """Return the channels of the only group of `graph` by squared filter norm, and the cumulative fractions."""
    (squares,) = sum_over_layers(model, graph, lambda filters_OI: filters_OI.square().sum(dim=1)).values()
    order = np.argsort(squares, kind="stable")
    return order.tolist(), np.cumsum(squares[order]) / max(float(squares.sum()), 1e-30)


def _beyond(curve: Curve, budget: float) -> Curve:
    """Return the curve made a thousand times as steep beyond the budget."""
    return curve + 1000 * np.maximum(0.0, curve - curve[within(curve, budget)])
