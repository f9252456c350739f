"""The operations that ONNX Runtime runs, fused as it fuses them, and their times over the widths.

The dense network's file is optimised by ONNX Runtime, up to the step that depends on the CPU's layout of channels: its
nodes are then the fused blocks, such as a convolution with its batch norm and activation, and are the same at all
widths. Each is timed alone, in a file of one node for each distinct block, with all optimisations. The profile of the
run gives the time of the block without the conversions of layout around it, which a whole network mostly does not need.
Weights of other blocks go through the caches in between, as in a whole network.
"""

from __future__ import annotations

import re
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from raprune.cost.onnx_networks import events_of, session_of
from raprune.cost.operations import OperationCall, SizedCall, TensorTemplate
from raprune.cost.stopwatch import OPERATION_S, Repeats
from raprune.cost.timing_target import WARM_UP, OnnxTarget
from raprune.errors import TargetError

MATRIX_NODES = ("Conv", "FusedConv", "Gemm", "MatMul", "FusedMatMul", "FusedGemm", "ConvTranspose", "Attention")
"""Types of nodes of the kind `matrix`."""

_TREE = pytree.tree_flatten(())[1]
_LEAST = 3
"""Minimum number of timed runs of a file."""
_CPU = torch.device("cpu")
_FLOAT = 1
"""Number of the type float32 in ONNX."""
_OPSET = {"": 20, "com.microsoft": 1}


@dataclass(frozen=True)
class OnnxNode:
    """A node of an optimised file: the operation of an `OperationCall`."""

    # A `NodeProto`: the library is imported only where it is used.
    proto: Any
    weights: tuple[bool, ...]
    """True for each input that is a weight of the file."""
    constants: tuple[Any, ...]
    """The value of each input that is a constant of whole numbers, such as a shape; else None."""

    @property
    def key(self) -> tuple[Any, ...]:
        attributes = sorted((a.name, a.SerializeToString()) for a in self.proto.attribute if a.name != "group")
        constants = tuple(None if value is None else tuple(value.reshape(-1).tolist()) for value in self.constants)
        return self.proto.op_type, self.proto.domain, tuple(attributes), self.weights, constants

    def __eq__(self, other: object) -> bool:
        return isinstance(other, OnnxNode) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def __str__(self) -> str:
        return str(self.key)


def node_calls(file: bytes, feed: Mapping[str, Any], parameters: Collection[str]) -> list[OperationCall]:
    """Return the nodes that ONNX Runtime runs for a file, with the shapes of their inputs; `feed` is its batch.

    `parameters` are the names of the network's parameters, by which a node is given to a module. Nodes without a
    floating-point input, such as computations of shapes, are left out.
    """
    import onnx
    from onnx import numpy_helper

    with tempfile.TemporaryDirectory() as folder:
        optimized = Path(folder) / "optimized.onnx"
        session = session_of(file, threads=1, extended=True, optimized=optimized, profile=Path(folder) / "profile")
        session.run(None, dict(feed))
        events = {event["name"].removesuffix("_kernel_time"): event["args"] for event in events_of(session)}
        graph = onnx.load(optimized).graph
    initializers = {initializer.name: initializer for initializer in graph.initializer}
    shapes = {name: tuple(array.shape) for name, array in feed.items()}
    # The file has no shapes of activations; the profile has those of the outputs of each node that ran.
    for node in graph.node:
        of_outputs = events.get(node.name, {}).get("output_type_shape", [])
        for output, of_output in zip(filter(None, node.output), of_outputs, strict=False):
            if "float" in of_output:
                shapes[output] = tuple(of_output["float"])
    calls = []
    for node in graph.node:
        leaves: list[Any] = []
        weights: list[bool] = []
        constants: list[Any] = []
        for name in filter(None, node.input):
            initializer = initializers.get(name)
            weights.append(initializer is not None)
            if initializer is None or initializer.data_type == _FLOAT:
                constants.append(None)
            else:
                constants.append(numpy_helper.to_array(initializer))
            shape = shapes.get(name) if initializer is None else tuple(initializer.dims)
            leaves.append(shape)
        if any(shape is None for shape in leaves) or all(weights):
            continue
        groups = [attribute.i for attribute in node.attribute if attribute.name == "group"]
        operation = OnnxNode(node, tuple(weights), tuple(constants))
        templates = [_template(shape) for shape in leaves]
        calls.append(OperationCall(operation, _module_of(node, parameters), (*templates, *groups), _TREE))
    return calls


def times_of(
    sized: Sequence[tuple[SizedCall, Sequence[float], Sequence[float]]],
    *,
    target: OnnxTarget,
    threads: int,
    repeats: int,
) -> list[float]:
    """Time operations at given sizes, in one file; return milliseconds.

    Each entry holds the operation, the sizes of its factors, and their dense sizes. An operation that ONNX Runtime
    refuses takes NaN.
    """
    try:
        return _timed(sized, target=target, threads=threads, repeats=repeats)
    except TargetError:
        raise
    except Exception:  # one node that is refused refuses the file
        if len(sized) == 1:
            return [float("nan")]
    middle = len(sized) // 2
    return [
        time_ms
        for half in (sized[:middle], sized[middle:])
        for time_ms in times_of(half, target=target, threads=threads, repeats=repeats)
    ]


def _timed(
    sized: Sequence[tuple[SizedCall, Sequence[float], Sequence[float]]],
    *,
    target: OnnxTarget,
    threads: int,
    repeats: int,
) -> list[float]:
    from onnx import helper, numpy_helper

    nodes, inputs, outputs, initializers = [], [], [], []
    shapes_of_inputs: dict[str, tuple[int, ...]] = {}
    for number, (operation, sizes, dense_sizes) in enumerate(sized):
        node = operation.call.operation
        copied = type(node.proto)()
        copied.CopyFrom(node.proto)
        copied.name = f"o{number}_"
        del copied.output[1:]
        copied.output[0] = copied.name
        shapes, group = _sizes(operation, sizes, dense_sizes)
        for attribute in copied.attribute:
            if attribute.name == "group":
                attribute.i = group or 1
        given = [place for place, name in enumerate(copied.input) if name]
        for place, shape, is_weight, constant in zip(given, shapes, node.weights, node.constants, strict=True):
            name = f"i{number}_{place}"
            copied.input[place] = name
            array = np.full(shape, 0.5, dtype=np.float32) if constant is None else constant
            if is_weight:
                initializers.append(numpy_helper.from_array(array, name))
            else:
                shapes_of_inputs[name] = shape
                inputs.append(helper.make_tensor_value_info(name, _FLOAT, shape))
        nodes.append(copied)
        outputs.append(helper.make_empty_tensor_value_info(copied.output[0]))
    graph = helper.make_graph(nodes, "operations", inputs, outputs, initializers)
    opsets = [helper.make_opsetid(domain, version) for domain, version in _OPSET.items()]
    file = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    limits = Repeats(most=repeats, least=_LEAST, limit_s=OPERATION_S * len(sized))
    found = target.profile(file, shapes_of_inputs, threads=threads, repeats=limits)
    of_run: dict[int, list[float]] = defaultdict(list)
    for name, kind, time_ms in found.events:
        match = re.match(r"o(\d+)_", name)
        if match and not kind.startswith("Reorder"):
            of_run[int(match[1])].append(time_ms)
    return [_median_of_runs(of_run[number], found.runs) for number in range(len(sized))]


def _median_of_runs(times_ms: list[float], runs: int) -> float:
    """Median over the runs of the sum of a block's events, without the first runs."""
    each = len(times_ms) // runs
    sums = [sum(times_ms[run * each : (run + 1) * each]) for run in range(WARM_UP, runs)]
    return statistics.median(sums) if each else 0.0


def _sizes(
    operation: SizedCall, sizes: Sequence[float], dense_sizes: Sequence[float]
) -> tuple[list[tuple[int, ...]], int]:
    """Return the shapes of the inputs, and the number of groups of a convolution (0 for another node)."""

    def number(leaf: int, axis: int, dense: int) -> int:
        rule = operation.rules.get((leaf, axis))
        return dense if rule is None else rule.at(sizes[rule.factor], dense_sizes[rule.factor])

    shapes, group = [], 0
    for i, leaf in enumerate(operation.call.leaves):
        if isinstance(leaf, TensorTemplate):
            shapes.append(tuple(number(i, axis, size) for axis, size in enumerate(leaf.shape)))
        else:
            group = number(i, -1, leaf)
    return shapes, group


def _template(shape: tuple[int, ...]) -> TensorTemplate:
    return TensorTemplate(shape, tuple(range(len(shape))), (False,) * len(shape), torch.float32, _CPU)


def _module_of(node: Any, parameters: Collection[str]) -> str:
    """Return the module of the first parameter that is an input of the node; "" if there is none.

    A weight that a batch norm was fused into has a prefix before the name of its parameter.
    """
    for name in node.input:
        named = [parameter for parameter in parameters if name == parameter or name.endswith(f"_{parameter}")]
        if named:
            return max(named, key=len).rpartition(".")[0]
    return ""
