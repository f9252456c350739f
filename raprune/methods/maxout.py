"""Maxout: neurons compete in units of k, and of each unit the one that wins least often goes, until one is left.

Rueda, Grzeszick, Fink: "Neuron Pruning for Compressing Deep Networks Using Maxout Architectures", GCPR 2017 (arXiv
1707.06838). Unit u gives max_i z_ui over its k adjacent neurons; the relevance of candidate i is
c_ui = #{samples: argmax_j z_uj = i}, counted over the whole training set. Each round drops the least relevant candidate
of every unit and trains again; with one candidate left, the layer is an ordinary one. Then weights of small magnitude
are zeroed and the others trained again.

The paper's: units of adjacent neurons, a network that is trained from scratch with them, the counts, one candidate a
unit a round, training between rounds, weight pruning at the end. Ours, as the paper leaves it open or its script was
wrong: counts without dropout, over samples and positions, of the candidates that are left, ties split equally, and
none where a unit is off (a ReLU follows, and the maximum is not above 0); a trained network as the start, either with
neighbours grouped into units (the readers' weights added up, which trains better than their mean) or with every neuron
expanded into k noisy copies; batch norm before the maximum; fewer units where narrower widths are asked for; weight
pruning by a quantile in each layer, reached in equal parts.

Layers that take units: a convolution or linear layer that alone writes its channels, behind it at most one batch norm,
before layers that read all of a channel. Others, residual streams among them, are cut by magnitude at the start.
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

from raprune.channels.graph import ChannelGraph, Group, Member
from raprune.channels.maxout import insert, units
from raprune.methods.activations import readers, watching
from raprune.methods.magnitude import sum_over_layers
from raprune.methods.method import Batches, Bench, Method, Network, Scores, Step

Units = Mapping[str, str]
"""Group -> the module behind which its units' maximum stands, for every group that takes units."""

Hook = Callable[[nn.Module, Any, Tensor], Tensor | None]
"""A forward hook."""


@dataclass(frozen=True, kw_only=True)
class Maxout(Method):
    """The least relevant of k candidates a unit, argmin_i c_ui, goes in each of k - 1 rounds."""

    title: ClassVar[str] = "rarest winner of each maxout unit, then small weights (Moya Rueda et al., GCPR 2017)"
    data_free: ClassVar[bool] = True

    candidates: int = field(default=2, metadata={"search": {"choices": (2, 3, 4)}})
    """Of each unit at the start, k."""
    mode: Literal["group", "expand"] = field(default="group", metadata={"search": {"choices": ("group", "expand")}})
    """`group`: k neighbours become a unit, so that at most a k-th of a layer's channels stays. `expand`: every channel
    that is to stay becomes a unit of k noisy copies; such a network is larger than the dense one, so that the first
    step is the last round's network."""
    noise: float = 0.01
    """Of the copies, relative to the norm of the neuron's weights."""
    from_scratch: bool = False
    """Whether the network with maxout units is initialised anew, as in the paper. Needs more epochs."""
    epochs: float = 5.0
    """Of training in each round, the first included."""
    weight_pruning: float = field(default=0.7, metadata={"search": {"choices": (0.0, 0.5, 0.7, 0.8, 0.9)}})
    """Share of each layer's weights that is zero at the end; 0 leaves this stage out."""
    weight_rounds: int = 2
    """Rounds of zeroing and training in which that share is reached."""

    def score(self, model: nn.Module, graph: ChannelGraph, batches: Batches, *, seed: int) -> Scores:
        return sum_over_layers(model, graph, lambda filters_OI: filters_OI.norm(dim=1))

    def behind_scores(self) -> dict[str, bool | int | float | str]:
        return {}

    def path(self, dense: Network, widths: Mapping[str, int], bench: Bench) -> Iterator[Step]:
        scores = self.score(dense.model, dense.graph, bench.calibration, seed=bench.seed)
        places = self._places(dense, scores, bench)
        network, outer = self._united(dense, places, widths, scores, bench)
        if self.from_scratch:
            _initialise(network.model, bench.seed)
        bench.train(network.model, self.epochs)
        epochs = self.epochs
        for left in range(self.candidates if places else 1, 1, -1):
            if self.mode == "group":
                yield Step(network=network, epochs=epochs)
            counts = wins(network.model, places, left, outer, bench.training)
            network = bench.cut(network, {name: survivors(count) for name, count in counts.items()})
            insert(network.model, dict.fromkeys(places.values(), left - 1))
            bench.train(network.model, self.epochs)
            epochs += self.epochs
        plain = Network(network.model, dense.graph.after(network.kept), network.kept)
        yield Step(network=plain, epochs=epochs)
        for number in range(1, self.weight_rounds + 1) if self.weight_pruning else ():
            share = self.weight_pruning * number / self.weight_rounds
            bench.train(plain.model, self.epochs, regularize=zero_smallest(plain.model, share))
            epochs += self.epochs
            yield Step(network=plain, epochs=epochs, settings={"weights_pruned": share})

    def _places(self, dense: Network, scores: Scores, bench: Bench) -> dict[str, str]:
        """Where units can stand: by the structure of the groups, and as the network's code then still runs."""
        images = next(iter(bench.calibration()))[0][:2]

        def runs(places: Units) -> bool:
            model = self._united(dense, places, dense.graph.widths, scores, bench)[0].model.eval()
            try:
                with torch.no_grad():
                    model(images)
            except (RuntimeError, ValueError):
                # Not everything that reads the channels reads them behind the maximum.
                return False
            return True

        each = self.candidates if self.mode == "group" else 1
        wide = [g for g in dense.graph.groups if bench.allowed(g.num_channels)[0] * each <= g.num_channels]
        found = {group.name: _behind(dense.model, group) for group in wide}
        places = {name: behind for name, behind in found.items() if behind is not None}
        return places if runs(places) else {name: behind for name, behind in places.items() if runs({name: behind})}

    def _united(
        self, dense: Network, places: Units, widths: Mapping[str, int], scores: Scores, bench: Bench
    ) -> tuple[Network, ChannelGraph]:
        """The network with units, described as far as the maxima; and the graph of what stands behind these."""
        grouped = self.mode == "group"
        kept = {}
        for group in dense.graph.groups:
            count = widths[group.name]
            if grouped and group.name in places:
                most = min(group.num_channels // self.candidates, count)
                count = max(width for width in bench.allowed(group.num_channels) if width <= most) * self.candidates
            kept[group.name] = tuple(sorted(np.argsort(-scores[group.name], kind="stable")[:count].tolist()))
        network = bench.cut(dense, kept)
        inner, outer = (_half(network, places, written=written) for written in (True, False))
        if grouped:
            _add_up_columns(network.model, outer, self.candidates)
            firsts = {group.name: tuple(range(0, group.num_channels, self.candidates)) for group in outer.groups}
            model = bench.cut(replace(network, graph=outer), firsts).model
            network, outer = Network(model, inner, network.kept), outer.after(firsts)
        else:
            network = self._expanded(replace(network, graph=inner), bench.seed)
        insert(network.model, dict.fromkeys(places.values(), self.candidates))
        return network, outer

    def _expanded(self, network: Network, seed: int) -> Network:
        """The network with k copies of every channel that `network.graph` has, all but the first with noise."""
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
        # Drawn on the CPU, so that a seed gives the same on every device.
        drawn = torch.randn(filters.shape, generator=generator, dtype=torch.float64).to(filters.device)
        norms = filters.double().flatten(1).norm(dim=1) / filters[0].numel() ** 0.5
        drawn *= self.noise * norms.view(-1, *[1] * (filters.dim() - 1))
        drawn[:: self.candidates] = 0
        return drawn.to(filters.dtype)


def wins(model: nn.Module, places: Units, candidates: int, outer: ChannelGraph, batches: Batches) -> dict[str, Tensor]:
    """Group -> over how many samples and positions each candidate is its unit's largest, `(units, candidates)`.

    Equals share. Where a ReLU stands between a unit and its readers, those of `outer`, a unit that is off has no
    winner. The model is put in evaluation mode: dropout would count other networks.
    """
    model.eval()
    # One pass: the training set may be read from its files for it.
    passing = iter(batches())
    first = next(passing)
    rectified = _rectified(model, places, outer, first[0][:2])
    counts: dict[str, Tensor] = {}

    def hook_of(name: str) -> Hook:
        def count(module: nn.Module, inputs: Any, output: Tensor) -> None:
            z, axis = units(module, output, candidates)
            largest = z.amax(dim=axis, keepdim=True)
            won = z == largest
            share = won / won.sum(dim=axis, keepdim=True)
            if name in rectified:
                share = share * (largest > 0)
            others = [dim for dim in range(z.dim()) if dim not in (axis - 1, axis)]
            counts[name] = counts.get(name, 0) + share.sum(dim=others, dtype=torch.float64)

        return count

    with torch.no_grad(), _hooked(model, places, hook_of, prepend=True):
        for images, _ in chain([first], passing):
            model(images)
    return counts


def _rectified(model: nn.Module, places: Units, outer: ChannelGraph, images: Tensor) -> set[str]:
    """The groups whose readers see zeros alone when all units are negative."""
    seen = readers(model, outer)
    through: set[str] = set()

    def see(number: int, x: Tensor) -> None:
        if seen[number].channels(x).any():
            through.add(seen[number].group)

    def hook_of(name: str) -> Hook:
        return lambda module, inputs, output: torch.full_like(output, -1)

    with torch.no_grad(), watching(model, seen, see), _hooked(model, places, hook_of, prepend=False):
        model(images)
    return set(places) - through


@contextmanager
def _hooked(model: nn.Module, places: Units, hook_of: Callable[[str], Hook], *, prepend: bool) -> Iterator[None]:
    """Inside, each group's hook stands behind its module: before the maximum (`prepend`) or after it."""
    modules = dict(model.named_modules())
    handles = [modules[behind].register_forward_hook(hook_of(n), prepend=prepend) for n, behind in places.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def survivors(counts: Tensor) -> tuple[int, ...]:
    """The channels that stay when of each unit the candidate with the lowest count goes; counts `(units, candidates)`.

    Of equals the first goes.
    """
    stays = torch.ones_like(counts, dtype=torch.bool)
    stays[torch.arange(len(counts)), counts.cpu().numpy().argmin(axis=1)] = False
    return tuple(stays.flatten().nonzero().flatten().tolist())


def zero_smallest(model: nn.Module, share: float) -> Callable[[nn.Module], None]:
    """Zero, in place, this share of each layer's weights, the smallest; and what keeps them zero in training."""
    layers = {id(layer.weight) for layer in model.modules() if isinstance(layer, nn.modules.conv._ConvNd | nn.Linear)}
    masks: dict[str, Tensor] = {}
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if id(weight) in layers:
                smallest = weight.abs().flatten().argsort(stable=True)[: round(share * weight.numel())]
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
    """The module behind which the group's units can stand: the writer, or its batch norm; None: nowhere."""
    modules = dict(model.named_modules())
    writers = {_owner(member) for member in group.members if member.writes}
    norms = {_owner(m) for m in group.members if isinstance(modules[_owner(m)], nn.modules.batchnorm._BatchNorm)}
    whole = np.arange(group.num_channels)[:, None]
    for member in group.members:
        module = modules[_owner(member)]
        if _owner(member) in writers | norms:
            # All channels of the layer, in its own order.
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
    """The graph of what stands before the maxima of `places` (the groups' writers and norms), or of their readers."""
    groups = []
    for group in network.graph.groups:
        if group.name in places:
            before = {_owner(member) for member in group.members if member.writes} | {places[group.name]}
            members = tuple(member for member in group.members if (_owner(member) in before) is written)
            groups.append(replace(group, members=members))
    return replace(network.graph, groups=tuple(groups))


def _add_up_columns(model: nn.Module, outer: ChannelGraph, candidates: int) -> None:
    """In place: the readers' weights for the first channel of each unit become the sum of those for all of its."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for group in outer.groups:
            for member in group.members:
                weight = parameters[member.parameter]
                indices = torch.as_tensor(member.indices, device=weight.device).unflatten(0, (-1, candidates))
                added = weight[:, indices].double().sum(dim=2).to(weight.dtype)
                weight[:, indices[:, 0]] = added


def _replace(module: nn.Module, attribute: str, value: Tensor) -> None:
    """Give a writer or a batch norm other values of another first size."""
    if attribute in module._parameters:
        module._parameters[attribute] = nn.Parameter(value)
    else:
        module._buffers[attribute] = value
    for size in ("out_channels", "out_features", "num_features"):
        if hasattr(module, size):
            setattr(module, size, len(value))


def _initialise(model: nn.Module, seed: int) -> None:
    """Every layer's own initialisation, afresh."""
    devices = {parameter.device for parameter in model.parameters() if parameter.is_cuda}
    with torch.random.fork_rng(list(devices)):
        torch.manual_seed(seed)
        for module in model.modules():
            initialise = getattr(module, "reset_parameters", None)
            if callable(initialise):
                initialise()


def _owner(member: Member) -> str:
    return member.parameter.rpartition(".")[0]
