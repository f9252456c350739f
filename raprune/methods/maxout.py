"""Maxout: neurons compete in units of k; each unit loses its least frequent winner until one neuron is left.

Rueda, Grzeszick, Fink: "Neuron Pruning for Compressing Deep Networks Using Maxout Architectures", GCPR 2017 (arXiv
1707.06838). Unit u gives max_i z_ui over its k adjacent neurons; the relevance of candidate i is
c_ui = #{samples: argmax_j z_uj = i}, counted over the whole training set. Each round drops the least relevant candidate
of every unit and trains again; with one candidate left, the layer is an ordinary layer. Then weights of small magnitude
are zeroed and the other weights are trained again.

The paper's: units of adjacent neurons, a network that is trained from scratch with these units, the counts, one
candidate per unit and round, training between rounds, weight pruning at the end. Ours, because the paper leaves it open
or its script was wrong: counts without dropout, over samples and positions, of the candidates that are left, with ties
split equally, and no count if a unit is off (a ReLU follows, and the maximum is not above 0); a trained network as the
start, either with neighbours grouped into units (the readers' weights are added, which trains better than their mean)
or with every neuron expanded into k noisy copies; batch norm before the maximum; fewer units for narrower target
widths; weight pruning by a quantile in each layer, reached in equal parts.

A layer can have units if it is a convolution or linear layer that alone writes its channels, is followed by at most one
batch norm, and is read by layers that read whole channels. Other layers, for example those of residual streams, are cut
by magnitude at the start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from raprune.channels.graph import ChannelGraph
from raprune.channels.inputs import call
from raprune.channels.maxout import insert, units
from raprune.channels.members import Group, Member
from raprune.methods.activations import readers, watching
from raprune.methods.magnitude import sum_over_layers
from raprune.methods.method import Batches, Method, Network, Scores, Step, TrainingServices

Units = Mapping[str, str]
"""Module behind which a group's units have their maximum, by group, for every group with units."""

ForwardHook = Callable[[nn.Module, Any, Tensor], Tensor | None]
"""A forward hook of a module."""


@dataclass(frozen=True, kw_only=True)
class Maxout(Method):
    """Removal of the least relevant of k candidates per unit, argmin_i c_ui, in each of k - 1 rounds."""

    title: ClassVar[str] = "rarest winner of each maxout unit, then small weights (Moya Rueda et al., GCPR 2017)"
    data_free: ClassVar[bool] = True

    candidates: int = field(default=2, metadata={"search": {"choices": (2, 3, 4)}})
    """Number k of candidates of each unit at the start."""
    mode: Literal["group", "expand"] = field(default="group", metadata={"search": {"choices": ("group", "expand")}})
    """`group`: k neighbours become a unit, so that at most 1/k of a layer's channels stays. `expand`: every channel
    that is to stay becomes a unit of k noisy copies; such a network is larger than the dense one, so that the first
    step is the network of the last round."""
    noise: float = 0.01
    """Noise of the copies, relative to the norm of the neuron's weights."""
    from_scratch: bool = False
    """True if the network with maxout units is initialised again, as in the paper, which needs more epochs."""
    epochs: float = 5.0
    """Epochs of training in each round, including the first."""
    weight_pruning: float = field(default=0.7, metadata={"search": {"choices": (0.0, 0.5, 0.7, 0.8, 0.9)}})
    """Fraction of each layer's weights that is zero at the end; 0 skips this stage."""
    weight_rounds: int = 2
    """Number of rounds of zeroing and training in which this fraction is reached."""

    def score(self, model: nn.Module, graph: ChannelGraph, batches: Batches, *, seed: int) -> Scores:
        return sum_over_layers(model, graph, lambda filters_OI: filters_OI.norm(dim=1))

    def behind_scores(self) -> dict[str, bool | int | float | str]:
        return {}

    def path(self, dense: Network, widths: Mapping[str, int], services: TrainingServices) -> Iterator[Step]:
        scores = self.score(dense.model, dense.graph, services.calibration, seed=services.seed)
        places = self._places(dense, scores, services)
        network, outer = self._united(dense, places, widths, scores, services)
        if self.from_scratch:
            _initialise(network.model, services.seed)
        services.train(network.model, self.epochs)
        epochs = self.epochs
        for left in range(self.candidates if places else 1, 1, -1):
            if self.mode == "group":
                yield Step(network=network, epochs=epochs)
            counts = wins(network.model, places, left, outer, services.training)
            network = services.cut(network, {name: survivors(count) for name, count in counts.items()})
            insert(network.model, dict.fromkeys(places.values(), left - 1))
            services.train(network.model, self.epochs)
            epochs += self.epochs
        plain = Network(network.model, dense.graph.after(network.kept), network.kept)
        yield Step(network=plain, epochs=epochs)
        for number in range(1, self.weight_rounds + 1) if self.weight_pruning else ():
            fraction = self.weight_pruning * number / self.weight_rounds
            services.train(plain.model, self.epochs, regularize=zero_smallest(plain.model, fraction))
            epochs += self.epochs
            yield Step(network=plain, epochs=epochs, settings={"weights_pruned": fraction})

    def _places(self, dense: Network, scores: Scores, services: TrainingServices) -> dict[str, str]:
        """Return the places of units: groups with the right structure, with which the network's code still runs."""
        images = next(iter(services.calibration()))[0][:2]

        def runs(places: Units) -> bool:
            model = self._united(dense, places, dense.graph.widths, scores, services)[0].model.eval()
            try:
                with torch.no_grad():
                    call(model, images)
            except (RuntimeError, ValueError):
                # Some code reads the channels before the maximum.
                return False
            return True

        each = self.candidates if self.mode == "group" else 1
        wide = [g for g in dense.graph.groups if services.allowed(g.num_channels)[0] * each <= g.num_channels]
        found = {group.name: _behind(dense.model, group) for group in wide}
        places = {name: behind for name, behind in found.items() if behind is not None}
        return places if runs(places) else {name: behind for name, behind in places.items() if runs({name: behind})}

    def _united(
        self, dense: Network, places: Units, widths: Mapping[str, int], scores: Scores, services: TrainingServices
    ) -> tuple[Network, ChannelGraph]:
        """Build the network with units, whose graph ends at the maxima, and the graph of the layers behind them."""
        grouped = self.mode == "group"
        kept = {}
        for group in dense.graph.groups:
            count = widths[group.name]
            if grouped and group.name in places:
                most = min(group.num_channels // self.candidates, count)
                count = max(width for width in services.allowed(group.num_channels) if width <= most) * self.candidates
            kept[group.name] = tuple(sorted(np.argsort(-scores[group.name], kind="stable")[:count].tolist()))
        network = services.cut(dense, kept)
        inner, outer = (_half(network, places, written=written) for written in (True, False))
        if grouped:
            _add_up_columns(network.model, outer, self.candidates)
            firsts = {group.name: tuple(range(0, group.num_channels, self.candidates)) for group in outer.groups}
            model = services.cut(replace(network, graph=outer), firsts).model
            network, outer = Network(model, inner, network.kept), outer.after(firsts)
        else:
            network = self._expanded(replace(network, graph=inner), services.seed)
        insert(network.model, dict.fromkeys(places.values(), self.candidates))
        return network, outer

    def _expanded(self, network: Network, seed: int) -> Network:
        """Return the network with k copies of every channel of `network.graph`, all except the first with noise."""
        generator = torch.Generator().manual_seed(seed)
        modules, shapes, groups = dict(network.model.named_modules()), dict(network.graph.shapes), []
        for group in network.graph.groups:
            indices = np.arange(group.num_channels * self.candidates)[:, None]
            groups.append(
                replace(
                    group,
                    num_channels=len(indices),
                    members=tuple(replace(member, indices=indices) for member in group.members),
                )
            )
            for member in group.members:
                owner, _, attribute = member.parameter.rpartition(".")
                module = modules[owner]
                wider = getattr(module, attribute).detach().repeat_interleave(self.candidates, dim=0)
                if wider.dim() > 1:
                    wider += self._noise(wider, generator)
                shapes[member.parameter] = tuple(wider.shape)
                _replace(module, attribute, wider)
        graph = replace(network.graph, groups=tuple(groups), shapes=shapes)
        repeated = {
            group.name: tuple(np.repeat(network.kept[group.name], self.candidates).tolist()) for group in groups
        }
        return Network(network.model, graph, {**network.kept, **repeated})

    def _noise(self, filters: Tensor, generator: torch.Generator) -> Tensor:
        # Drawn on the CPU, so that a seed gives the same noise on every device.
        drawn = torch.randn(filters.shape, generator=generator, dtype=torch.float64).to(filters.device)
        norms = filters.double().flatten(1).norm(dim=1) / filters[0].numel() ** 0.5
        drawn *= self.noise * norms.view(-1, *[1] * (filters.dim() - 1))
        drawn[:: self.candidates] = 0
        return drawn.to(filters.dtype)


def wins(model: nn.Module, places: Units, candidates: int, outer: ChannelGraph, batches: Batches) -> dict[str, Tensor]:
    """Count for each group the samples and positions at which a candidate wins its unit, `(units, candidates)`.

    A tie counts in equal parts. If a ReLU is between a unit and its readers, which are those of `outer`, a unit that is
    off has no winner. The model is set to evaluation mode, because dropout would count other networks.
    """
    model.eval()
    # One pass: the training set may be read from its files for it.
    passing = iter(batches())
    first = next(passing)
    rectified = _rectified(model, places, outer, first[0][:2])
    counts: dict[str, Tensor] = {}

    def hook_of(name: str) -> ForwardHook:
        def count(module: nn.Module, inputs: Any, output: Tensor) -> None:
            z, axis = units(module, output, candidates)
            largest = z.amax(dim=axis, keepdim=True)
            won = z == largest
            part = won / won.sum(dim=axis, keepdim=True)
            if name in rectified:
                part = part * (largest > 0)
            others = [dim for dim in range(z.dim()) if dim not in (axis - 1, axis)]
            counts[name] = counts.get(name, 0) + part.sum(dim=others, dtype=torch.float64)

        return count

    with torch.no_grad(), _hooked(model, places, hook_of, prepend=True):
        for images, _ in chain([first], passing):
            call(model, images)
    return counts


def _rectified(model: nn.Module, places: Units, outer: ChannelGraph, images: Tensor) -> set[str]:
    """Return the groups whose readers get only zeros when all units are negative."""
    seen = readers(model, outer)
    through: set[str] = set()

    def see(number: int, x: Tensor) -> None:
        if seen[number].channels(x).any():
            through.add(seen[number].group)

    def hook_of(name: str) -> ForwardHook:
        return lambda module, inputs, output: torch.full_like(output, -1)

    with torch.no_grad(), watching(model, seen, see), _hooked(model, places, hook_of, prepend=False):
        call(model, images)
    return set(places) - through


@contextmanager
def _hooked(model: nn.Module, places: Units, hook_of: Callable[[str], ForwardHook], *, prepend: bool) -> Iterator[None]:
    """Add each group's hook to its module within the context: before the maximum (`prepend`) or after it."""
    modules = dict(model.named_modules())
    handles = [modules[behind].register_forward_hook(hook_of(n), prepend=prepend) for n, behind in places.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def survivors(counts: Tensor) -> tuple[int, ...]:
    """Return the channels that stay when each unit loses its candidate with the lowest count; of equal ones the first.

    `counts` has shape `(units, candidates)`.
    """
    stays = torch.ones_like(counts, dtype=torch.bool)
    stays[torch.arange(len(counts)), counts.cpu().numpy().argmin(axis=1)] = False
    return tuple(stays.flatten().nonzero().flatten().tolist())


def zero_smallest(model: nn.Module, fraction: float) -> Callable[[nn.Module], None]:
    """Zero, in place, the smallest `fraction` of each layer's weights; return a function that keeps them zero."""
    layers = {id(layer.weight) for layer in model.modules() if isinstance(layer, nn.modules.conv._ConvNd | nn.Linear)}
    masks: dict[str, Tensor] = {}
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if id(weight) in layers:
                smallest = weight.abs().flatten().argsort(stable=True)[: round(fraction * weight.numel())]
                masks[name] = torch.ones(weight.numel(), dtype=torch.bool, device=weight.device)
                masks[name][smallest] = False
                masks[name] = masks[name].view(weight.shape)
                weight.mul_(masks[name])

    def mask_gradients(model: nn.Module) -> None:
        for name, weight in model.named_parameters():
            if name in masks and weight.grad is not None:
                weight.grad.mul_(masks[name])

    return mask_gradients


def _behind(model: nn.Module, group: Group) -> str | None:
    """Return the module for the group's units, the writer or its batch norm; None if the group cannot have units."""
    modules = dict(model.named_modules())
    writers = {_owner(member) for member in group.members if member.writes}
    norms = {_owner(m) for m in group.members if isinstance(modules[_owner(m)], nn.modules.batchnorm._BatchNorm)}
    whole = np.arange(group.num_channels)[:, None]
    for member in group.members:
        module = modules[_owner(member)]
        if _owner(member) in writers | norms:
            # The group must have all channels of the layer, in the layer's order.
            size = getattr(module, member.parameter.rpartition(".")[2]).shape[0]
            fits = member.axis == 0 and size == len(whole) and np.array_equal(member.indices, whole)
        else:
            fits = member.parameter.endswith(".weight") and member.axis == 1
        if not fits or not (_owner(member) in norms or _is_plain(module)):
            return None
    if len(writers) != 1 or len(norms) > 1 or not group.maskable:
        return None
    return next(iter(norms or writers))


def _is_plain(module: nn.Module) -> bool:
    if isinstance(module, nn.modules.conv._ConvNd):
        return module.groups == 1 and not module.transposed
    return isinstance(module, nn.Linear)


def _half(network: Network, places: Units, *, written: bool) -> ChannelGraph:
    """Return the graph of the layers before the maxima of `places` (`written`), or of the layers that read them."""
    groups = []
    for group in network.graph.groups:
        if group.name in places:
            before = {_owner(member) for member in group.members if member.writes} | {places[group.name]}
            members = tuple(member for member in group.members if (_owner(member) in before) is written)
            groups.append(replace(group, members=members))
    # Heads have no units, so that the numbers of attention stay as they are.
    return replace(network.graph, groups=tuple(groups), attributes=(), scales=())


def _add_up_columns(model: nn.Module, outer: ChannelGraph, candidates: int) -> None:
    """Set, in place, the readers' weights for the first channel of each unit to the sum over all its channels."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for group in outer.groups:
            for member in group.members:
                weight = parameters[member.parameter]
                indices = torch.as_tensor(member.indices, device=weight.device).unflatten(0, (-1, candidates))
                added = weight[:, indices].double().sum(dim=2).to(weight.dtype)
                weight[:, indices[:, 0]] = added


def _replace(module: nn.Module, attribute: str, value: Tensor) -> None:
    """Replace a parameter or buffer of a writer or a batch norm by values with another first size."""
    if attribute in module._parameters:
        module._parameters[attribute] = nn.Parameter(value)
    else:
        module._buffers[attribute] = value
    for size in ("out_channels", "out_features", "num_features"):
        if hasattr(module, size):
            setattr(module, size, len(value))


def _initialise(model: nn.Module, seed: int) -> None:
    """Run every layer's own initialisation again."""
    devices = {parameter.device for parameter in model.parameters() if parameter.is_cuda}
    with torch.random.fork_rng(list(devices)):
        torch.manual_seed(seed)
        for module in model.modules():
            initialise = getattr(module, "reset_parameters", None)
            if callable(initialise):
                initialise()


def _owner(member: Member) -> str:
    return member.parameter.rpartition(".")[0]
