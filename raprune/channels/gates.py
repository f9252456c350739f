"""Gates: the residual blocks that a network can do without, found by running the network and proved.

A residual block adds what it computes to its input, so without its weights it is the identity:

    block(x) = x + branch(x)  and  block(x; all weights 0) = x.

A *gate* is a module that passes this test where it stands in the network, that is called once with one tensor and gives
one tensor of the same shape, and that multiplies (a convolution, a linear layer or a product of matrices is inside). Of
modules inside one another only the innermost are gates: a block, and not the stage around it. `nn.Identity` can take
the place of a gate. The test needs no name of a class, so that residual blocks of ResNets, inverted bottlenecks and the
blocks of transformers are all found; a block with a projection in its shortcut, or of another stride, is none.

The proof, in float64 on a copy with random scales and statistics: the network with the identity in the place of all
gates has the outputs of the network whose weights inside the gates are 0, also for another batch, another size and in
training mode; and a random cut of the channels of the network without its gates has the outputs of the masked one.

Huang et al. (2016), "Deep Networks with Stochastic Depth", leave out whole blocks of a ResNet in training; Veit et al.
(2016), "Residual Networks Behave Like Ensembles of Relatively Shallow Networks", leave them out of a trained one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from raprune.channels.cut import put_identity, rebuild
from raprune.channels.graph import ChannelGraph
from raprune.channels.inputs import NetworkInputs
from raprune.channels.proof import TOLERANCE, TRAINING_TOLERANCE, ProofNetwork
from raprune.channels.situations import Situation


def with_gates(model: nn.Module, graph: ChannelGraph, example_input: NetworkInputs, *, seed: int = 0) -> ChannelGraph:
    """Return `graph` with the gates of `model`, which is not changed, in the order in which they run.

    `graph` is a proved graph of `model` (`raprune.channels.proof.prove`), `example_input` the inputs of its proof.

    Raises:
        ModelError: if the network does not run in float64, or gives no finite output.
    """
    network = ProofNetwork(model, graph, example_input, seed)
    found = _residual_blocks(network, graph)
    situations = [network.first, *network.situations(example_input)] if found else []
    if not _is_identity(network, found, situations):
        together: list[str] = []
        for gate in found:
            if _is_identity(network, [*together, gate], situations):
                together.append(gate)
        found = together
    proved = replace(graph, gates=tuple(found))
    return proved if _cuts_as_masked(network, proved, example_input, seed) else graph


@dataclass(frozen=True)
class _Call:
    """The only call of a module in a forward pass: its input, and its number in the order of calls."""

    x: Tensor
    turn: int


def _residual_blocks(network: ProofNetwork, graph: ChannelGraph) -> list[str]:
    """Return the innermost modules that are the identity once all tensors inside them are 0, in the order of calls."""
    calls = _calls(network, set(_candidates(network.model, graph)))
    blank = rebuild(network.model, _without_weights)
    found: list[str] = []
    # Innermost first: a module has more parts in its name than those around it.
    for name in sorted(calls, key=lambda name: -name.count(".")):
        if any(gate.startswith(f"{name}.") for gate in found):
            continue
        x = calls[name].x
        try:
            with torch.no_grad():
                y = blank.get_submodule(name)(x.clone())
        except Exception:  # a layer may refuse weights of 0
            continue
        if torch.equal(y, x):
            found.append(name)
    return sorted(found, key=lambda name: calls[name].turn)


def _candidates(model: nn.Module, graph: ChannelGraph) -> Iterator[str]:
    """Yield the names of modules that multiply, that stand in one place, and that share no parameter with others."""
    multiplies = {term.module for term in graph.flops}
    places = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
    homes: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        homes.setdefault(id(parameter), []).append(name)
    scripted = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, torch.jit.ScriptModule))
    groups = {group.name for group in graph.groups}
    for name, module in model.named_modules():
        inside = f"{name}."
        if not name or places[id(module)] > 1 or name in groups or inside.startswith(scripted):
            continue
        own = [home for home in homes.values() if any(place.startswith(inside) for place in home)]
        if all(place.startswith(inside) for home in own for place in home) and any(
            f"{term}.".startswith(inside) for term in multiplies
        ):
            yield name


def _calls(network: ProofNetwork, names: set[str]) -> dict[str, _Call]:
    """Return the calls of the modules that run once, with one tensor, and give one tensor of the same shape."""
    runs: Counter[str] = Counter()
    calls: dict[str, _Call] = {}
    before: dict[str, Tensor] = {}

    def enter(name: str, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        runs[name] += 1
        before.pop(name, None)
        if len(args) == 1 and not kwargs and isinstance(args[0], Tensor) and args[0].is_floating_point():
            # A layer may change its input in place.
            before[name] = args[0].clone()

    def leave(name: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        x = before.pop(name, None)
        if x is not None and isinstance(output, Tensor) and output.shape == x.shape and output.dtype == x.dtype:
            calls[name] = _Call(x, sum(runs.values()))

    with _hooked(network.model, names, enter, leave):
        network.run(network.model)
    return {name: one for name, one in calls.items() if runs[name] == 1}


@contextmanager
def _hooked(model: nn.Module, names: set[str], enter: Any, leave: Any) -> Iterator[None]:
    handles = []
    for name, module in model.named_modules():
        if name in names:
            handles.append(module.register_forward_pre_hook(partial(enter, name), with_kwargs=True))
            handles.append(module.register_forward_hook(partial(leave, name)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _without_weights(name: str, tensor: Tensor) -> Tensor:
    """Return zeros for each floating-point tensor but a variance, which a norm divides by."""
    if not tensor.is_floating_point() or name.endswith("running_var"):
        return tensor.clone()
    return torch.zeros_like(tensor)


def _is_identity(network: ProofNetwork, gates: Sequence[str], situations: Sequence[Situation]) -> bool:
    """True if the network without the gates has the outputs of the one whose weights inside the gates are 0."""
    if not gates:
        return True
    prefixes = tuple(f"{gate}." for gate in gates)

    def blanked(name: str, tensor: Tensor) -> Tensor:
        return _without_weights(name, tensor) if name.startswith(prefixes) else network.own(name, tensor)

    def same(situation: Situation) -> bool:
        blank, shallow = rebuild(network.model, blanked), rebuild(network.model, network.own)
        put_identity(shallow, gates)
        try:
            wanted, came = network.run(blank, situation), network.run(shallow, situation)
        except Exception:  # the code around the block may ask for its attributes
            return False
        if wanted.shape != came.shape or not bool(wanted.isfinite().all()):
            return False
        error = float((wanted - came).abs().max()) / max(float(wanted.abs().max()), 1e-300)
        return error <= (TRAINING_TOLERANCE if situation.training else TOLERANCE)

    return all(map(same, situations))


def _cuts_as_masked(network: ProofNetwork, graph: ChannelGraph, example_input: NetworkInputs, seed: int) -> bool:
    """True if a random cut of the network without all its gates has the outputs of the masked network."""
    closed = graph.closed(graph.gates)
    if not graph.gates or not closed.groups:
        return True
    shallow = rebuild(network.model, network.own)
    put_identity(shallow, graph.gates)
    return ProofNetwork(shallow, closed, example_input, seed).equals_masked(closed, closed.widths) is None
