"""Networks of any widths in ONNX Runtime, from one export of the dense network.

An export of a network takes tens of seconds, and a latency table times dozens of networks. So the dense network is
exported once, without the exporter's optimisations, which leaves each parameter under its own name. A narrower network
is the same file with the parameters of the cut network. Its outputs are compared with PyTorch's; where they differ, the
cut network is exported by itself. ONNX Runtime, which makes the same optimisations when it loads a file, does the rest.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from raprune.errors import ModelError, UsageError
from raprune.models.programs import INPUT, ONNX, explained, missing_for, quiet

_LOG = logging.getLogger(__name__)

_TOLERANCE = 1e-3
"""Maximum difference of an output, relative to the largest output of PyTorch."""

Session = Any
"""An `onnxruntime.InferenceSession`: the library is imported where it is used, and nowhere else."""


def check_onnx_runtime() -> None:
    """Refuse a job whose runtime is not installed.

    Raises:
        UsageError: with the command that installs it.
    """
    missing = missing_for(ONNX)
    if missing:
        raise UsageError(
            f'latency.runtime = "onnxruntime" needs {", ".join(missing)}, which '
            f"{'are' if len(missing) > 1 else 'is'} not installed.",
            hint='Install the extra on every node: pip install "raprune[export]", or in a clone of the repository: '
            'uv sync --extra export. Or set latency.runtime = "eager".',
        )


class OnnxNetworks:
    """Networks cut from one dense network, as ONNX files for one batch size."""

    def __init__(self, model: nn.Module, x: Tensor, changing: Collection[int]) -> None:
        """`x` is the batch, on the CPU in float32; `changing` holds the dense sizes of the axes that change.

        Raises:
            ModelError: if the network cannot be exported.
        """
        self._x = x
        self._names = set(model.state_dict())
        self._dense = _exported(model, x)
        _without_zero_biases(self._dense)
        _with_free_sizes(self._dense, changing, batch_size=len(x))

    def file_of(self, model: nn.Module) -> bytes:
        """Return the ONNX file of a network with the layers of the dense one, at any widths.

        Raises:
            ModelError: if the network cannot be exported.
        """
        sliced = self._with_parameters(model)
        try:
            if _computes(sliced, model, self._x):
                return sliced
            reason = "its outputs differ"
        except Exception as error:  # whatever ONNX Runtime makes of sizes that do not fit
            reason = f"{type(error).__name__}: {error}"
        _LOG.info(
            "The dense network's ONNX file does not fit a narrower network, which is exported by itself: %s", reason
        )
        own = _exported(model, self._x)
        _without_zero_biases(own)
        return bytes(own.SerializeToString())

    def _with_parameters(self, model: nn.Module) -> bytes:
        from onnx import ModelProto, numpy_helper

        state = model.state_dict()
        proto = ModelProto()
        proto.CopyFrom(self._dense)
        # Shapes of the dense network's activations.
        del proto.graph.value_info[:]
        for initializer in proto.graph.initializer:
            if initializer.name in self._names:
                array = state[initializer.name].detach().cpu().numpy()
                initializer.CopyFrom(numpy_helper.from_array(array, initializer.name))
        return bytes(proto.SerializeToString())


def session_of(
    file: bytes, *, threads: int, extended: bool = False, optimized: Path | None = None, profile: Path | None = None
) -> Session:
    """Open an ONNX file in ONNX Runtime on so many CPU threads.

    `extended` leaves out the optimisations that depend on the CPU's layout of channels. The optimised file is written
    to `optimized`, and the profile of the runs to a file whose name begins with `profile`.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Threads of one network that wait in a loop would slow down the other networks that are timed in turns.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if extended:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    with explained(ONNX):
        return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


@contextmanager
def profiled(file: bytes, *, threads: int) -> Iterator[tuple[Session, list[dict[str, Any]]]]:
    """Open a session; at its end the list holds the runs of its nodes in their order, as ONNX Runtime's profile."""
    with tempfile.TemporaryDirectory() as folder:
        session = session_of(file, threads=threads, profile=Path(folder) / "profile")
        events: list[dict[str, Any]] = []
        yield session, events
        events += events_of(session)


# The profile of ONNX Runtime, which is JSON.
def events_of(session: Session) -> list[dict[str, Any]]:
    """End the profile of a session; return the runs of its nodes in their order."""
    found = json.loads(Path(session.end_profiling()).read_text())
    return [e for e in found if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")]


def runner_of(session: Session, x: Tensor) -> Callable[[], object]:
    """Return a function that runs the batch `x` through a session."""
    feed = {INPUT: x.numpy()}
    return lambda: session.run(None, feed)


def _computes(file: bytes, model: nn.Module, x: Tensor) -> bool:
    """True if the file computes what the network computes in PyTorch."""
    found = session_of(file, threads=torch.get_num_threads()).run(None, {INPUT: x.numpy()})[0]
    with torch.inference_mode():
        wanted = model(x)
    wanted = wanted if isinstance(wanted, Tensor) else next(iter(wanted))
    if tuple(found.shape) != tuple(wanted.shape):
        return False
    largest = float(wanted.abs().max()) or 1.0
    return float((torch.from_numpy(found) - wanted).abs().max()) <= _TOLERANCE * largest


# A `ModelProto` of onnx, whose stub files the type checker does not see.
def _exported(model: nn.Module, x: Tensor) -> Any:
    with quiet(), explained(ONNX):
        program = torch.export.export(model, (x,))
        exported = torch.onnx.export(program, dynamo=True, optimize=False, verbose=False, input_names=[INPUT])
        assert exported is not None, "no file was named, so the program is returned"
        return exported.model_proto


def _without_zero_biases(proto: Any) -> None:
    """Remove the biases of zeros that the exporter gives to layers without a bias.

    They are computed from the shape of the weight, and so would keep ONNX Runtime from fusing the batch norm.
    """
    made_by = {output: node for node in proto.graph.node for output in node.output}
    for node in proto.graph.node:
        if node.op_type == "Conv" and len(node.input) == 3:
            bias = made_by.get(node.input[2])
            if bias is not None and bias.op_type == "Expand":
                del node.input[2:]
    _without_unused(proto.graph)


def _without_unused(graph: Any) -> None:
    """Remove the nodes whose outputs nobody reads: ONNX Runtime would run them, a tenth of a small network's time.

    A graph with graphs in its nodes, which may read any name, is left as it is.
    """
    if any(attribute.HasField("g") or attribute.graphs for node in graph.node for attribute in node.attribute):
        return
    while True:
        read = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
        unused = [node for node in graph.node if read.isdisjoint(node.output)]
        if not unused:
            return
        for node in unused:
            graph.node.remove(node)


def _with_free_sizes(proto: Any, changing: Collection[int], *, batch_size: int) -> None:
    """Let a reshape infer the one size that changes with the widths; a reshape with several is left as it is.

    The first axis is that of the batch if it is as large, even if a width has the same number.
    """
    from onnx import helper, numpy_helper

    constants = {initializer.name: numpy_helper.to_array(initializer) for initializer in proto.graph.initializer}
    made_by = {output: node for node in proto.graph.node for output in node.output}

    def value(name: str) -> list[int] | None:
        if name in constants:
            return [int(size) for size in constants[name].reshape(-1)]
        node = made_by.get(name)
        if node is None:
            return None
        if node.op_type == "Constant":
            attribute = helper.get_attribute_value(node.attribute[0])
            array = numpy_helper.to_array(attribute) if hasattr(attribute, "dims") else attribute
            return [int(size) for size in getattr(array, "reshape", lambda _: array)(-1)]
        if node.op_type == "Concat":
            parts = [value(part) for part in node.input]
            return None if any(part is None for part in parts) else [size for part in parts for size in part or ()]
        return None

    for number, node in enumerate(list(proto.graph.node)):
        sizes = value(node.input[1]) if node.op_type == "Reshape" else None
        if sizes is None or -1 in sizes:
            continue
        free = [axis for axis, size in enumerate(sizes) if size in changing and (axis or size != batch_size)]
        if len(free) == 1:
            sizes[free[0]] = -1
            name = f"free_sizes_{number}"
            proto.graph.initializer.append(helper.make_tensor(name, 7, [len(sizes)], sizes))
            node.input[1] = name


def check_float32(precision: str) -> None:
    """Refuse a precision that ONNX Runtime's CPU kernels do not have.

    Raises:
        UsageError: if it is not float32.
    """
    if precision != "float32":
        raise UsageError(
            f'latency.precision is "{precision}", and latency.runtime = "onnxruntime" times networks in float32 on the '
            "CPU.",
            hint='Set latency.precision = "float32".',
        )


def unfit(reason: str) -> ModelError:
    """Return the error for a network whose operations no table can hold."""
    return ModelError(
        f"budget.latency (--budget-latency): ONNX Runtime cannot time the operations of this network: {reason}",
        hint='Set latency.runtime = "eager", or use --budget-flops or --budget-params for this network.',
    )
