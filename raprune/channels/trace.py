"""The trace: one forward pass over shadow tensors gives the groups of coupled channels, and their costs."""

from __future__ import annotations

import hashlib
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import is_lazy

from raprune.channels.evaluating import evaluating
from raprune.channels.graph import ChannelGraph, Factor, Frozen, Group, IndexArray, Member, Term
from raprune.channels.inputs import NetworkInputs, call, described, input_shape, tensors_in
from raprune.channels.live import LiveActivations
from raprune.channels.rules import RULES
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
    tracer = Tracer(model, RULES)
    live = LiveActivations(tracer.activation)
    with _traceable(model), torch.no_grad(), tracer.watching(model):
        try:
            with tracer, live:
                outputs = call(model, example_input)
        except Exception as error:
            raise ModelError(
                f"The network does not run on {described(example_input)}: {type(error).__name__}: {error}",
                hint="Check the image size and the number of channels that the network takes.",
            ) from error
    for value in tensors_in(outputs):
        tracer.freeze_value(value, "the network's output")
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            for parameter, _ in module.named_parameters(prefix=name):
                tracer.freeze_named(parameter, "inside a scripted module, whose code is fixed")
    graph, group_of_id = _build(model, tracer, shape)
    images = sum(image.nbytes for image in tensors_in(example_input))
    names = [group.name for group in graph.groups]
    memory = live.moments(group_of_id, [group.num_channels for group in graph.groups], names, images)
    return replace(graph, memory=memory)


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
    own = {name: value for name, value in vars(module).items() if not name.startswith("_") and name != "training"}
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


def _build(model: nn.Module, tracer: Tracer, input_shape: tuple[int, ...]) -> tuple[ChannelGraph, IndexArray]:
    """Return the graph, and for each id the number of its group, -1 if it stays."""
    labels = _components(tracer)
    frozen_label, reasons = _frozen_labels(tracer, labels)
    groups, group_of_id = _groups(tracer, labels, frozen_label, reasons)
    factors = _FactorTable(group_of_id, {g.name: g.num_channels for g in groups}, [g.name for g in groups])
    parameters = dict(model.named_parameters())
    graph = ChannelGraph(
        architecture="",
        input_shape=input_shape,
        groups=tuple(groups),
        frozen=tuple(_frozen_report(tracer, labels, frozen_label, reasons)),
        flops=tuple(_flops_terms(tracer, factors)),
        params=tuple(_params_terms(tracer, factors, parameters)),
        factors=tuple(factors.factors),
        shapes={m.parameter: tracer.shapes[m.parameter] for g in groups for m in g.members},
        notes=_notes(tracer, parameters),
    )
    architecture = f"{structure_hash(model, input_shape)}-{graph.digest()}"
    return replace(graph, architecture=architecture), group_of_id


def _components(tracer: Tracer) -> IndexArray:
    """Return for each id the smallest id that it is coupled with, by repeated hooking and pointer jumping."""
    labels = np.arange(tracer.num_ids)
    if not tracer.pairs:
        return labels
    left = np.concatenate([a for a, _ in tracer.pairs])
    right = np.concatenate([b for _, b in tracer.pairs])
    while True:
        a, b = labels[left], labels[right]
        open_pairs = a != b
        if not open_pairs.any():
            return labels
        left, right, a, b = (left[open_pairs], right[open_pairs], a[open_pairs], b[open_pairs])
        np.minimum.at(labels, np.maximum(a, b), np.minimum(a, b))
        while True:
            jumped = labels[labels]
            if np.array_equal(jumped, labels):
                break
            labels = jumped


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


def _groups(
    tracer: Tracer, labels: IndexArray, frozen: np.ndarray, reasons: dict[int, tuple[str, str]]
) -> tuple[list[Group], IndexArray]:
    """Return the groups (classes that slice the same axes), and for each id the number of its group, -1 if it stays.

    A class that is alone in its group cannot be removed, because at least one channel stays: it is added to `frozen`.
    """
    axes = list(tracer.axis_base)
    sizes = [tracer.shapes[name][axis] for name, axis in axes]
    ids = np.concatenate(
        [np.arange(0), *(np.arange(b, b + n) for b, n in zip(tracer.axis_base.values(), sizes, strict=True))]
    )
    ids = ids.astype(np.int64)
    axis_number = np.repeat(np.arange(len(axes)), sizes)
    position = np.concatenate([np.arange(n) for n in sizes] or [np.arange(0)]).astype(np.int64)
    label = labels[ids]
    free = ~frozen[label]
    order = np.lexsort((position[free], axis_number[free], label[free]))
    label, axis_number, position = (label[free][order], axis_number[free][order], position[free][order])
    group_of_label = np.full(len(labels), -1, dtype=np.int64)
    if not len(label):
        return [], group_of_label

    starts = np.flatnonzero(np.r_[True, label[1:] != label[:-1]])
    across = np.zeros(len(labels), dtype=bool)
    for seen in tracer.across:
        across[labels[seen]] = True
    classes: dict[tuple[int, ...], list[int]] = defaultdict(list)
    numbers, bounds = axis_number.tolist(), [*starts.tolist(), len(label)]
    for row, end in pairwise(bounds):
        classes[tuple(numbers[row:end])].append(row)
    groups: list[Group] = []
    shared: dict[bytes, IndexArray] = {}
    names: dict[str, int] = {}
    for signature, rows in classes.items():
        if len(rows) == 1:
            alone = int(label[rows[0]])
            frozen[alone] = True
            reasons[alone] = ("", "all its channels are coupled with each other")
            continue
        if all(axes[a] in tracer.reduced for a in signature):
            for row in rows:
                frozen[int(label[row])] = True
                reasons[int(label[row])] = ("", "only a statistic is taken over these positions")
            continue
        name = _group_name(tracer, [axes[a] for a in dict.fromkeys(signature)])
        names[name] = names.get(name, 0) + 1
        name = name if names[name] == 1 else f"{name}#{names[name]}"
        first = np.asarray(rows)
        members, offset = [], 0
        for axis in dict.fromkeys(signature):
            count = signature.count(axis)
            indices = position[first[:, None] + offset + np.arange(count)]
            # Equal index arrays are one object, so that a cut handles each array once.
            indices = shared.setdefault(indices.tobytes() + bytes([count % 251]), indices)
            members.append(Member(*axes[axis], indices, axes[axis] in tracer.written))
            offset += count
        maskable = not bool(across[label[first]].any())
        groups.append(Group(name, len(rows), tuple(members), maskable))
        group_of_label[label[first]] = len(groups) - 1
    return groups, group_of_label[labels]


def _group_name(tracer: Tracer, axes: list[tuple[str, int]]) -> str:
    """Return the name of the first module that writes the channels."""
    for axis in axes:
        if axis in tracer.written:
            return tracer.written[axis] or axis[0]
    return axes[0][0]


class _FactorTable:
    """Table of axis sizes as functions of the widths; each distinct function occurs once."""

    def __init__(self, group_of_id: IndexArray, num_channels: dict[str, int], names: list[str]) -> None:
        self._group_of_id = group_of_id
        self._num_channels = num_channels
        self._names = names
        self._positions: dict[tuple[int, tuple[tuple[str, int], ...]], int] = {}
        self.factors: list[Factor] = []

    def of(self, ids: IndexArray) -> int | None:
        """Return the position of the factor of an axis with these ids; None if the axis never changes its size."""
        groups = self._group_of_id[ids]
        if len(groups) and (groups == groups[0]).all():
            counts = {int(groups[0]): len(groups)}
        else:
            counts = dict(zip(*(part.tolist() for part in np.unique(groups, return_counts=True)), strict=True))
        fixed = counts.pop(-1, 0)
        if not counts:
            return None
        coefficients = {}
        for number, count in counts.items():
            name = self._names[number]
            coefficients[name] = count // self._num_channels[name]
        key = (fixed, tuple(coefficients.items()))
        if key not in self._positions:
            self._positions[key] = len(self.factors)
            self.factors.append(Factor(key[0], coefficients))
        return self._positions[key]


def _flops_terms(tracer: Tracer, factors: _FactorTable) -> Iterator[Term]:
    for record in tracer.costs:
        yield _term(record, factors)


def _params_terms(tracer: Tracer, factors: _FactorTable, parameters: dict[str, nn.Parameter]) -> Iterator[Term]:
    for name, parameter in parameters.items():
        axes = tuple(tracer.axis_ids(name, axis) for axis in range(parameter.dim()) if (name, axis) in tracer.axis_base)
        yield _term(CostRecord(name.rpartition(".")[0], parameter.numel(), axes), factors)


def _term(record: CostRecord, factors: _FactorTable) -> Term:
    changing = [(ids, position) for ids in record.axes if (position := factors.of(ids)) is not None]
    size = prod(len(ids) for ids, _ in changing)
    assert record.total % size == 0, f"{record.module}: {record.total} FLOPs are no multiple of its axes"
    return Term(record.module, record.total // size, tuple(position for _, position in changing))


def _frozen_report(
    tracer: Tracer, labels: IndexArray, frozen: np.ndarray, reasons: dict[int, tuple[str, str]]
) -> Iterator[Frozen]:
    """Yield one entry per layer and reason for written channels that stay."""
    for (name, axis), module in tracer.written.items():
        label = labels[tracer.axis_ids(name, axis)]
        counts: dict[tuple[str, str], int] = defaultdict(int)
        for value in label[frozen[label]]:
            counts[reasons.get(int(value), ("", "fixed"))] += 1
        for (where, reason), count in counts.items():
            at = f" (in {where})" if where and where != module else ""
            yield Frozen(module or name, count, reason + at)


def _notes(tracer: Tracer, parameters: dict[str, nn.Parameter]) -> tuple[str, ...]:
    unused = sorted({name.rpartition(".")[0] or name for name in parameters if name not in tracer.used})
    if not unused:
        return ()
    shown = ", ".join(unused[:5]) + (f" and {len(unused) - 5} more" if len(unused) > 5 else "")
    return (f"Modules left whole, because the forward pass in evaluation mode does not use them: {shown}.",)
