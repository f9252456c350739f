"""The trace: one forward pass over shadow tensors gives the groups of coupled channels, and their costs."""

from __future__ import annotations

import hashlib
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import is_lazy

from raprune.channels.attributes import size_attributes
from raprune.channels.code import code_edits
from raprune.channels.components import components
from raprune.channels.evaluating import evaluating
from raprune.channels.graph import ChannelGraph
from raprune.channels.grouping import FactorTable, Grouping, grouped
from raprune.channels.head_groups import heads_of
from raprune.channels.heads import head_rule
from raprune.channels.inputs import NetworkInputs, call, described, input_shape, tensors_in
from raprune.channels.live import LiveActivations
from raprune.channels.members import Frozen, Term
from raprune.channels.multihead import takes_cuts
from raprune.channels.positions import IndexArray
from raprune.channels.products import ScaledAttention
from raprune.channels.query_keys import query_key_products
from raprune.channels.rules import RULES
from raprune.channels.scales import width_scales
from raprune.channels.shadow import CostRecord, Tracer
from raprune.errors import ModelError


def trace(model: nn.Module, example_input: NetworkInputs) -> ChannelGraph:
    """Return the channel graph of `model`, from one forward pass in evaluation mode.

    `example_input` is one image, shape `(1, channels, height, width)`, on the model's device. A network with several
    arguments takes a tuple of them, or a dict of its keyword arguments; a list is one argument, such as a detector's
    list of images `(channels, height, width)`. The model is not changed. FLOPs are counted for this input.

    Raises:
        ModelError: if the forward pass fails, or returns no tensor.
    """
    shape = input_shape(example_input)
    _refuse(model)
    tracer = Tracer(model, RULES, head_rule)
    live = LiveActivations(tracer.activation, tracer.heads.layers)
    with _traceable(model), torch.no_grad(), tracer.watching():
        try:
            with tracer, live, ScaledAttention(tracer):
                outputs = call(model, example_input)
        except Exception as error:
            raise ModelError(
                f"The network does not run on {described(example_input)}: {type(error).__name__}: {error}",
                hint="Check the image size and the number of channels that the network takes.",
            ) from error
    for value in tensors_in(outputs):
        tracer.freeze_value(value, "the network's output")
        tracer.freeze_used(value)
        tracer.heads.freeze_mixed(value)
        for layer in tracer.heads.layers(value):
            tracer.heads.freeze(layer.numpy(), "", "the network's output")
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            for parameter, _ in module.named_parameters(prefix=name):
                tracer.freeze_named(parameter, "inside a scripted module, whose code is fixed")
        elif isinstance(module, nn.MultiheadAttention) and not takes_cuts(module):
            for parameter, _ in module.named_parameters(prefix=name):
                tracer.freeze_named(parameter, "attention with several sizes of inputs, added keys, or its own code")
    graph, grouping = _build(model, tracer, shape)
    images = sum(image.nbytes for image in tensors_in(example_input))
    return replace(graph, memory=live.moments(grouping, images))


def _refuse(model: nn.Module) -> None:
    """Refuse networks whose parameters are not there, or whose code is compiled for the dense network.

    Raises:
        ModelError: if the network is one of these.
    """
    lazy = [name for name, tensor in [*model.named_parameters(), *model.named_buffers()] if is_lazy(tensor)]
    if lazy:
        raise ModelError(
            f"The layer {lazy[0].rpartition('.')[0]!r} is lazy and has never run, so it has no parameters yet.",
            hint="Run the network on one image before it is pruned.",
        )
    if "eval" in vars(model):  # torch.export replaces the methods that change the mode
        raise ModelError(
            "The network is an exported program, whose code is made for its dense sizes.",
            hint="Pass the network itself, and export the pruned network.",
        )
    for name, module in model.named_modules():
        if hasattr(module, "fake_quant_enabled"):  # of torch.ao's FakeQuantizeBase, which runs in float32 only
            raise ModelError(
                f"The network is prepared for quantisation: {name!r} rounds what a layer computes.",
                hint="Pass the network as it was before, and prepare the pruned network.",
            )
        if type(module).__name__ == "OptimizedModule" or getattr(module, "_compiled_call_impl", None) is not None:
            raise ModelError(
                f"The {f'module {name!r}' if name else 'network'} is compiled, and so made for its dense sizes.",
                hint="Pass the network without torch.compile, and compile the pruned network.",
            )


def structure_hash(model: nn.Module, input_shape: tuple[int, ...]) -> str:
    """Return a digest of the network's modules, their settings, and the names and shapes of its parameters.

    It is the first part of `ChannelGraph.architecture`, and needs no trace. The text of the code does not affect it.
    """
    return _structure(model, input_shape).hexdigest()[:16]


def code_hash(model: nn.Module, input_shape: tuple[int, ...]) -> str:
    """Return a digest of the network's structure and of the files that define a user's layers.

    The same code traces to the same graph. The code of torch, torchvision and timm counts by the names and settings of
    its layers, not by its text. Runs and recipes of before name this digest as their architecture.
    """
    digest = _structure(model, input_shape)
    own = {type(module).__module__ for module in model.modules()}
    for module_name in sorted(name for name in own if name.partition(".")[0] not in ("torch", "torchvision", "timm")):
        digest.update(_source(module_name))
    return digest.hexdigest()[:16]


def _structure(model: nn.Module, input_shape: tuple[int, ...]) -> hashlib._Hash:
    digest = hashlib.sha256(repr(input_shape).encode())
    for name, module in model.named_modules():
        kind = type(module)
        digest.update(
            f"{name}:{kind.__module__}.{kind.__qualname__}({module.extra_repr()}){_settings(module)}".encode()
        )
    for name, tensor in [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]:
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
    return digest


def _settings(module: nn.Module) -> list[tuple[str, object]]:
    """A module's plain attributes, which few users' layers name in their `extra_repr`."""
    plain = (bool, int, float, str, type(None))
    # torchvision's pooling of regions sets these two in its first pass.
    unset = ("scales", "map_levels") if type(module).__name__ == "MultiScaleRoIAlign" else ()
    own = {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_") and name not in ("training", *unset)
    }
    return sorted(
        (name, value)
        for name, value in own.items()
        if isinstance(value, plain) or (isinstance(value, tuple) and all(isinstance(part, plain) for part in value))
    )


def _source(module_name: str) -> bytes:
    """The file that defines a user's layers: its functions shape the network as much as its classes do."""
    file = getattr(sys.modules.get(module_name), "__file__", None)
    try:
        return Path(file).read_bytes() if file else b""
    except OSError:
        return b""


@contextmanager
def _traceable(model: nn.Module) -> Iterator[None]:
    """Set evaluation mode and turn off fused attention, which would hide its layers; restore both afterwards."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with evaluating(model):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)


def _build(model: nn.Module, tracer: Tracer, input_shape: tuple[int, ...]) -> tuple[ChannelGraph, Grouping]:
    """Return the graph, and the group of every id."""
    heads = heads_of(tracer)
    labels = components(tracer.num_ids, tracer.pairs)
    frozen_label, reasons = _frozen_labels(tracer, labels)
    grouping = grouped(tracer, labels, frozen_label, reasons, heads)
    groups, factors = grouping.groups, FactorTable(grouping)
    parameters = dict(model.named_parameters())
    graph = ChannelGraph(
        architecture="",
        input_shape=input_shape,
        groups=tuple(groups),
        frozen=tuple(_frozen_report(tracer, labels, frozen_label, reasons, grouping)),
        flops=tuple(_flops_terms(tracer, factors)),
        params=tuple(_params_terms(tracer, factors, parameters)),
        factors=tuple(factors.factors),
        shapes={m.parameter: tracer.shapes[m.parameter] for g in groups for m in g.members},
        notes=_notes(tracer, parameters),
        attributes=size_attributes(model, heads, tracer.sized.values(), factors),
        scales=width_scales(tracer, grouping),
        products=query_key_products(tracer),
        edits=code_edits(model, [r for r in tracer.heads.reshapes if heads is not None or r.source >= 0]),
    )
    architecture = f"{structure_hash(model, input_shape)}-{graph.digest()}"
    return replace(graph, architecture=architecture), grouping


def _frozen_labels(tracer: Tracer, labels: IndexArray) -> tuple[np.ndarray, dict[int, tuple[str, str]]]:
    """Return True for each label that must stay, and the first reason (module, text) of each such label."""
    frozen = np.zeros(len(labels), dtype=bool)
    frozen[0] = True
    reasons: dict[int, tuple[str, str]] = {}
    for record in tracer.freezes:
        hit = np.unique(labels[record.ids])
        for label in hit[~frozen[hit]]:
            reasons[int(label)] = (record.module, record.reason)
        frozen[hit] = True
    return frozen, reasons


def _flops_terms(tracer: Tracer, factors: FactorTable) -> Iterator[Term]:
    for record in tracer.costs:
        yield _term(record, factors)


def _params_terms(tracer: Tracer, factors: FactorTable, parameters: dict[str, nn.Parameter]) -> Iterator[Term]:
    for name, parameter in parameters.items():
        axes = tuple(tracer.axis_ids(name, axis) for axis in range(parameter.dim()) if (name, axis) in tracer.axis_base)
        yield _term(CostRecord(name.rpartition(".")[0], parameter.numel(), axes), factors)


def _term(record: CostRecord, factors: FactorTable) -> Term:
    axes = [(ids, factors.of(ids)) for ids in record.axes]
    axes += [(ids, factors.of(ids, of_each_head=True)) for ids in record.widths]
    changing = [(ids, position) for ids, position in axes if position is not None]
    size = prod(len(ids) for ids, _ in changing)
    assert record.total % size == 0, f"{record.module}: {record.total} FLOPs are no multiple of its axes"
    return Term(record.module, record.total // size, tuple(position for _, position in changing))


def _frozen_report(
    tracer: Tracer, labels: IndexArray, frozen: np.ndarray, reasons: dict[int, tuple[str, str]], grouping: Grouping
) -> Iterator[Frozen]:
    """Yield one entry per layer and reason for written channels that stay."""
    for (name, axis), module in tracer.written.items():
        ids = tracer.axis_ids(name, axis)
        if grouping.head_of_id is not None:  # what goes with a head does not stay
            ids = ids[grouping.head_of_id[ids] < 0]
        label = labels[ids]
        counts: dict[tuple[str, str], int] = defaultdict(int)
        for value in label[frozen[label]]:
            counts[reasons.get(int(value), ("", "fixed"))] += 1
        for (where, reason), count in counts.items():
            at = f" (in {where})" if where and where != module else ""
            yield Frozen(module or name, count, reason + at)
    for module, count, reason in grouping.head_reasons:
        yield Frozen(f"{module}.heads" if module else "heads", count, reason)


def _notes(tracer: Tracer, parameters: dict[str, nn.Parameter]) -> tuple[str, ...]:
    unused = sorted({name.rpartition(".")[0] or name for name in parameters if name not in tracer.used})
    if not unused:
        return ()
    shown = ", ".join(unused[:5]) + (f" and {len(unused) - 5} more" if len(unused) > 5 else "")
    return (f"Modules left whole, because the forward pass in evaluation mode does not use them: {shown}.",)
