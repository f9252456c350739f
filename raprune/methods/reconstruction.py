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
`sensitivity`: curves in units of their effect on the network's logits, estimated at two widths of each group.
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
from raprune.channels.graph import ChannelGraph
from raprune.channels.inputs import call
from raprune.channels.members import Group, Member
from raprune.channels.multihead import projections_called
from raprune.methods.block_matching import match_blocks
from raprune.methods.layer_observer import ObservedLayer, structure_of
from raprune.methods.least_squares import refit
from raprune.methods.magnitude import sum_over_layers
from raprune.methods.method import Batches, Cut, Method, Scores
from raprune.methods.moments import Halves, Moments, factored, scale_of, solved
from raprune.methods.patches import PATCHES, PATCHES_A_WEIGHT, Patches
from raprune.methods.query_key import width_errors
from raprune.methods.sensitivity import LayerChange, ParameterChange, effects_of_layers, effects_of_parameters

Curve = npt.NDArray[np.float64]

BLOCK = 4608
"""Weights per filter above which the map form is used; its matrix is smaller by the squared kernel size."""
ESTIMATED_AT = (0.4, 0.8)
"""Fractions of removed channels of a group at which the sensitivity is estimated; it is interpolated between them."""
IMAGES = 512
"""Maximum number of images for scores, unless a layer needs more for `ENOUGH`."""
FRACTION = 0.5
"""Fraction of the patches of a refit that scores look at: an order of channels is sure before weights are."""
ENOUGH = 10
"""Patches per weight of a filter that `IMAGES` must have at least; of fewer, more images are taken."""
SENSITIVITY_IMAGES = 128
"""Maximum number of images on which the sensitivity is estimated."""
SENSITIVITY_BYTES = 2**30
"""Bytes that the activations of one pass forth and back may take, roughly."""
GRAPH = 4
"""Activations that a pass back needs, in bytes of the outputs of convolutions and linear layers."""
UNREAD_IMAGES = 32
"""Maximum number of images, one at a time, on which the sensitivity to groups without a reader is estimated."""


@dataclass(frozen=True, kw_only=True)
class Reconstruction(Method):
    """Greedy removal by the error after a least-squares refit; then this refit."""

    title: ClassVar[str] = "error left after the others are refitted by least squares (REAP; Kamma et al., ISVC 2019)"
    comparable: ClassVar[bool] = True

    form: str = field(default="block", metadata={"search": {"choices": ("block", "map")}})
    """Unknowns of the refit for scores: each weight (`block`), or one coefficient per pair of channels (`map`)."""
    ridge: float = 1e-6
    """Minimum weight of the penalty on changes of the weights, relative to the mean square of the weights' inputs. A
    layer with few samples gets a larger one (`moments.Halves`)."""
    sensitivity: float = 1.0
    """0: a layer's errors count as fractions of its outputs, as if all layers were equally sensitive. 1: they count by
    the sensitivity, how far the network's logits move once this group alone is cut and the layers that read it are
    refitted (`sensitivity.py`). Between 0 and 1: the geometric mean.
    Measured on ResNet-20, CIFAR-10 (JPEG), `least_damage` at 50, 25 and 12.5 % of the FLOPs, 5,000 validation images,
    one run each: 0 gives 72.9, 59.1 and 48.4 %, 1 gives 77.1, 64.0 and 49.6 % (`uniform`: 74.2, 57.6 and 47.9 %), with
    the divergence of cut and refitted networks as the sensitivity, which the estimate stands for."""
    target: str = field(
        default="asymmetric", metadata={"search": {"choices": ("asymmetric", "symmetric")}, "repair": True}
    )
    """Inputs of the refit: from layers that are cut and refitted already (`asymmetric`), or from the dense network."""
    error_budget: float = field(default=1.0, metadata={"search": {"low": 0.05, "high": 1.0}, "repair": True})
    """Fraction of its readers' outputs that a group may lose; `least_damage` exceeds it only if all groups must."""

    match_steps: int = field(default=0, metadata={"repair": True})
    """Steps in which each block learns the dense block's outputs after the refit, without labels
    (`block_matching.py`), for example 200. 0: none, because they take minutes for a network."""

    def score(self, model: nn.Module, graph: ChannelGraph, batches: Batches, *, seed: int) -> Scores:
        with projections_called(model):
            return self._scored(model, graph, batches)

    def _scored(self, model: nn.Module, graph: ChannelGraph, batches: Batches) -> Scores:
        with evaluating(model), torch.no_grad():
            structure, _ = structure_of(model, next(iter(batches()))[0][:2])
            # Layers that run several times have the map form: positions of all their runs are the samples.
            ran = {name: here for name, here in structure.items() if len(here.outputs) == 1}
            parts = enough_images(model, ran, batches)
            problems = reader_problems(model, graph, parts, ran, self.form)
            narrower = width_errors(model, graph, parts, ran)
            orders, curves, of_layers, of_parameters = {}, {}, {}, {}
            for group in graph.groups:
                products = [error for error in narrower if error.group == group.name]
                mine = [problem for problem in problems if problem.group == group.name]
                if mine:
                    ridges = [problem.ridge(self.ridge) for problem in mine]
                    solutions = [problem.solution(ridge) for problem, ridge in zip(mine, ridges, strict=True)]
                    orders[group.name], curves[group.name] = removal(solutions)
                else:
                    ridges = []
                    # No layer reads the group, so the norms of its filters decide.
                    orders[group.name], curves[group.name] = _by_weight(model, graph.only([group.name]))
                if products:
                    # Queries and keys may choose their basis, so that the number of widths counts, and not which.
                    before = curves[group.name] if mine else np.zeros(group.num_channels)
                    curves[group.name] = sum((error.curve() for error in products), before)
                for gone in self._estimated_at(group.num_channels):
                    removed = orders[group.name][:gone]
                    if mine or products:
                        of_layers[group.name, gone] = [
                            *(problem.change(removed, ridge) for problem, ridge in zip(mine, ridges, strict=True)),
                            *(error.change(gone) for error in products),
                        ]
                    else:
                        of_parameters[group.name, gone] = _without(model, group, removed)
        images = torch.cat(parts)
        effects = effects_of_layers(model, of_layers, images[:SENSITIVITY_IMAGES], batch_size=_pass_images(ran))
        effects |= effects_of_parameters(model, of_parameters, images[:UNREAD_IMAGES])
        scores = {}
        for group in graph.groups:
            found = {gone: effect for (name, gone), effect in effects.items() if name == group.name}
            scores[group.name] = np.empty(group.num_channels)
            scores[group.name][orders[group.name]] = _in_units_of(curves[group.name], found, self.sensitivity)
        return scores

    def _estimated_at(self, num_channels: int) -> tuple[int, ...]:
        """Return the numbers of removals in a group at which the sensitivity is estimated."""
        if self.sensitivity == 0:
            return ()
        return tuple(sorted({round(fraction * num_channels) for fraction in ESTIMATED_AT} - {0, num_channels}))

    def damage(self, scores: Scores) -> Scores:
        return {name: _beyond(np.r_[0.0, np.sort(errors)], self.error_budget) for name, errors in scores.items()}

    def repair(self, model: nn.Module, batches: Batches, cut: Cut) -> None:
        refit(model, batches, cut, asymmetric=self.target == "asymmetric", ridge=self.ridge)
        if self.match_steps > 0:
            match_blocks(model, batches, cut, steps=self.match_steps)


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
    """Function of the layer's input for every second image from an index on that yields samples, `(G, N, P)`."""
    as_weight: Callable[[Tensor], Tensor]
    """Function of weights in the shape of `weight` that returns them in the shape of the layer's."""
    taps_met: float = 1.0
    """Fraction of the taps of a filter that an output reads, in the map form."""
    sums: Halves = field(default_factory=Halves)


@dataclass(frozen=True)
class ReaderProblem:
    """The least-squares problem of a group and a layer that reads this group."""

    group: str
    reading: LayerInputs
    columns: Tensor
    """Columns of P that belong to each channel, shape `(channels, columns per channel)`."""

    def ridge(self, least: float) -> float:
        """Return the ridge with which the half of the channels predicts the other half best on other images."""
        layer = self.reading
        gone, left = self._divided(range(0, len(self.columns), 2))

        def system(sums: Moments) -> tuple[Tensor, Tensor]:
            gram = sums.gram(centred=layer.centred)
            return gram[:, left[:, None], left], gram[:, left[:, None], gone] @ layer.weight.flatten(2)[:, gone]

        return layer.sums.ridge_for(layer.weight.shape[1], least, system)

    def _divided(self, removed: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return the columns of the channels `removed`, and all others."""
        gone = self.columns[list(removed)].flatten()
        is_gone = torch.zeros(self.reading.weight.shape[1], dtype=torch.int64, device=gone.device)
        is_gone[gone] = 1
        # Sorted, because the positions of the ones have a number that the CPU would wait for.
        order = is_gone.argsort(stable=True)
        num_left = len(order) - len(gone)
        return order[num_left:], order[:num_left]

    def solution(self, ridge: float) -> Solution:
        layer = self.reading
        gram, weight = layer.sums.whole.gram(centred=layer.centred), layer.weight.flatten(2)
        energy = (weight * (gram @ weight)).sum()
        return Solution(gram, weight, self.columns, ridge=ridge, unit=torch.where(energy > 0, 1 / energy, 0.0))

    def change(self, removed: Sequence[int], ridge: float) -> LayerChange:
        """Return the change of the layer once the channels `removed` are gone and its other weights are refitted."""
        layer = self.reading
        sums = layer.sums.whole
        gram, weight = sums.gram(centred=layer.centred), layer.weight.flatten(2)
        gone, left = self._divided(removed)
        change = torch.zeros_like(weight)
        change[:, gone] = -weight[:, gone]
        lost = gram[:, left[:, None], gone] @ weight[:, gone]
        change[:, left] = solved(gram[:, left[:, None], left], lost, ridge)
        shift = None
        if layer.centred:
            # Of the map form all taps of a channel have the same mean.
            means = (sums.means[0][:, None, :] @ change)[:, 0]
            shift = -layer.taps_met * means.unflatten(1, layer.weight.shape[2:]).sum(2).reshape(-1)
        return LayerChange(layer.module, layer.as_weight(change.unflatten(2, layer.weight.shape[2:])), shift)


def _in_units_of(errors: Curve, effects: Mapping[int, float], sensitivity: float) -> Curve:
    """Multiply the errors after each removal by the sensitivity, interpolated between; the result ascends."""
    rates = {gone: effect / errors[gone - 1] for gone, effect in sorted(effects.items()) if errors[gone - 1] > 0}
    if not rates:
        return errors
    between = np.interp(np.arange(1, len(errors) + 1), list(rates), np.clip(list(rates.values()), 1e-9, None))
    found = errors * between**sensitivity
    for place in range(1, len(found)):
        # The sensitivity is an estimate; the order of the errors is kept in any case.
        rises = errors[place] > errors[place - 1]
        found[place] = max(found[place], np.nextafter(found[place - 1], np.inf)) if rises else found[place - 1]
    return found


def enough_images(model: nn.Module, ran: Mapping[str, ObservedLayer], batches: Batches) -> list[Tensor]:
    """Return the first of the images, as many as all layers of `ran` need, in parts.

    The number does not depend on the groups that are scored: a group's scores are the same whatever the others are.
    """
    modules = dict(model.named_modules())
    needed = IMAGES
    for name, here in ran.items():
        weight = cast(Tensor, modules[name].weight)
        if weight[0].numel() <= BLOCK:
            positions = here.outputs[0][0].numel() // len(weight)
            needed = max(needed, -(-ENOUGH * weight[0].numel() // positions))
    parts = []
    for images, _ in batches():
        parts.append(images[:needed])
        needed -= len(parts[-1])
        if needed == 0:
            break
    return parts


def _pass_images(ran: Mapping[str, ObservedLayer]) -> int:
    """Return the number of images of one pass forth and back within `SENSITIVITY_BYTES`."""
    outputs = sum(here.outputs[0][0].numel() * here.outputs[0].element_size() for here in ran.values())
    return max(1, SENSITIVITY_BYTES // max(1, GRAPH * outputs))


def _without(model: nn.Module, group: Group, removed: Sequence[int]) -> list[ParameterChange]:
    """Return the changes of parameters for a group without the channels `removed`: their entries become 0.

    Of the parameters that read the group all, else the weight of the first layer that writes it, and its bias.
    """
    parameters = dict(model.named_parameters())
    members = [member for member in group.members if member.parameter in parameters]
    reading = [member for member in members if not member.writes and parameters[member.parameter].ndim > 1]
    if not reading:
        first = next((member for member in members if parameters[member.parameter].ndim > 1), None)
        reading = [
            member
            for member in members
            if first is not None
            and member.parameter.rpartition(".")[0] == first.parameter.rpartition(".")[0]
            and np.array_equal(member.indices, first.indices)
        ]
    changes = []
    for member in reading:
        parameter = parameters[member.parameter].detach()
        gone = torch.zeros(parameter.shape[member.axis], dtype=torch.bool)
        gone[torch.as_tensor(member.indices[list(removed)].reshape(-1))] = True
        shape = [-1 if axis == member.axis else 1 for axis in range(parameter.ndim)]
        changes.append(ParameterChange(member.parameter, -parameter * gone.to(parameter.device).reshape(shape)))
    return changes


def reader_problems(
    model: nn.Module, graph: ChannelGraph, parts: Sequence[Tensor], ran: Mapping[str, ObservedLayer], form: str
) -> list[ReaderProblem]:
    """Return a problem for every group and layer that reads this group, with the sums over the images."""
    modules = dict(model.named_modules())
    total = sum(len(images) for images in parts)
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
                    patches = Patches.drawn(module, ran[name].outputs[0], total, _seed(name), fraction=FRACTION)
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
        for offset in range(min(2, len(x))):
            for read in reading.read(x[offset::2], first + offset):
                reading.sums.parts[(first + offset) % 2].add(read, read[:, :, :0])

    with _watching(model, problems, add):
        for images in parts:
            call(model, images)
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
        return (part for _, part in patches.of_input(x, first, step=2))

    def as_weight(change_GPMT: Tensor) -> Tensor:
        return change_GPMT[..., 0].mT.reshape(cast(Tensor, module.weight).shape)

    return LayerInputs(name, weight_GPM[..., None], centred, read, as_weight)


def _map(name: str, module: nn.Module, total: int, *, centred: bool) -> LayerInputs:
    """Return the inputs in map form: a channel owns one column, its map; positions of the map are the samples."""
    weight = cast(Tensor, module.weight).detach().double()
    groups = cast(int, getattr(module, "groups", 1))
    transposed = isinstance(module, nn.modules.conv._ConvTransposeNd)
    if transposed:
        weight_GPMT = weight.flatten(2)[None]
    else:
        weight_GPMT = weight.unflatten(0, (groups, -1)).unsqueeze(-1).flatten(3).transpose(1, 2)
    draw = _drawing(name, weight_GPMT.shape[1], total)

    def read(x: Tensor, first: int) -> Iterator[Tensor]:
        rows = x if isinstance(module, nn.Linear) else x.movedim(1, -1)
        yield draw(rows.reshape(len(x), -1, rows.shape[-1])).unflatten(1, (groups, -1)).transpose(0, 1)

    def as_weight(change_GPMT: Tensor) -> Tensor:
        return (change_GPMT if transposed else change_GPMT.transpose(1, 2)).reshape(weight.shape)

    # An output of a transposed convolution meets one tap for every step of the stride.
    met = 1 / math.prod(cast(tuple[int, ...], module.stride)) if transposed else 1.0
    return LayerInputs(name, weight_GPMT, centred, read, as_weight, met)


def _flattened_map(name: str, module: nn.Module, own: Tensor, total: int, *, centred: bool) -> LayerInputs:
    """Return the inputs in map form for a linear layer on flattened maps, with channel c at `own[c]`."""
    weight_1PMT = cast(Tensor, module.weight).detach().double()[:, own].transpose(0, 1)[None]
    draw = _drawing(name, len(own), total)

    def read(x: Tensor, first: int) -> Iterator[Tensor]:
        yield draw(x[..., own].movedim(-2, -1).reshape(len(x), -1, len(own)))[None]

    def as_weight(change_1PMT: Tensor) -> Tensor:
        change = torch.zeros_like(cast(Tensor, module.weight), dtype=torch.float64)
        change[:, own] = change_1PMT[0].transpose(0, 1)
        return change

    return LayerInputs(name, weight_1PMT, centred, read, as_weight)


def _drawing(name: str, columns: int, total: int) -> Callable[[Tensor], Tensor]:
    """Return a function that draws random rows, `(N, P)` in float64, from rows `(B, positions, P)`."""
    each = math.ceil(FRACTION * max(PATCHES, PATCHES_A_WEIGHT * columns) / total)
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
