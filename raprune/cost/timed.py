"""Networks prepared for timing in the runtime that will serve them: PyTorch, compiled or not, or ONNX Runtime."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import nn

from raprune.channels.cut import cut
from raprune.channels.graph import ChannelGraph
from raprune.cost.compiled import (
    COMPILE,
    TENSORRT,
    check_compiler,
    check_nvidia,
    check_tensorrt,
    check_triton,
    compiled,
    compiled_operation,
    engine_of,
)
from raprune.cost.conditions import precision_of, timed_device
from raprune.cost.flops import CostModel, Counts
from raprune.cost.onnx_networks import OnnxNetworks, check_float32, check_onnx_runtime
from raprune.cost.onnx_operations import MATRIX_NODES, node_calls, times_of
from raprune.cost.operations import OperationCall, SizedCall, calls, filled
from raprune.cost.stopwatch import Repeats, Stopwatch, stopwatch_of
from raprune.cost.timing_target import ServedTarget, ThisMachine
from raprune.models.memory_format import layout_for
from raprune.models.programs import INPUT, quiet
from raprune.records import Candidate
from raprune.spec.job import LatencySpec

MATRIX = ("addmm", "baddbmm", "bmm", "convolution", "mm", "scaled_dot")
"""Parts of the names of operations of the kind `matrix`."""

ROUNDS_S = 20.0
"""Time after which no other round of whole networks begins."""

AtSizes = tuple[SizedCall, Sequence[float], Sequence[float]]
"""An operation, the sizes of its factors, and their dense sizes."""


_LOG = logging.getLogger(__name__)


class TimedNetwork:
    """A network prepared for timing: evaluation mode, one batch, and the memory format in which it runs fastest."""

    num_fitted: ClassVar[int] = 8
    """Number of whole networks, besides the dense one, for the fit of scales and offset."""
    num_held_out: ClassVar[int] = 10
    """Number of whole networks that the predictions are compared with."""
    num_rounds: ClassVar[int] = 3
    """Maximum number of rounds of `least_medians`."""

    def __init__(self, model: nn.Module, graph: ChannelGraph, spec: LatencySpec, *, device: str) -> None:
        self.graph, self.spec = graph, spec
        self.device = torch.device(device)
        self.precision = precision_of(spec, self.device)
        self._dtype = torch.bfloat16 if self.precision == "bfloat16" else torch.float32
        self._model = model
        x = filled((spec.batch_size, *graph.input_shape), torch.float32, self.device)
        self._layout = layout_for(model, x[:1])
        self.x = x.to(self._dtype).contiguous(memory_format=self._layout)

    def placed(self, model: nn.Module) -> nn.Module:
        """Move `model` to the device, memory format and precision of the measurement; the dense network is copied."""
        whole = cut(model, self.graph, Candidate("whole", {})) if model is self._model else model
        return whole.to(self.device, self._dtype).to(memory_format=self._layout).eval()

    def narrowed(self, cost: CostModel, widths: Counts) -> nn.Module:
        """Return the network with the first channels of each group; the choice of channels does not affect the time."""
        kept = {name: tuple(range(int(n))) for name, n in zip(cost.group_names, widths, strict=True)}
        return self.placed(cut(self._model, self.graph, Candidate("widths", kept)))

    def call(self, model: nn.Module) -> Callable[[], object]:
        """Return a function that runs one batch through a network of `placed`."""
        return lambda: model(self.x)

    def operations(self, model: nn.Module) -> list[OperationCall]:
        """Return the operations that the runtime runs for a network of `placed`."""
        return calls(model, self.x)

    def times(self, sized: Sequence[AtSizes], *, repeats: int) -> list[float]:
        """Return the milliseconds of operations at sizes; NaN for an operation that refuses to run by itself."""
        stopwatch = stopwatch_of(self.spec, self.device)

        def median(operation: SizedCall, sizes: Sequence[float], dense_sizes: Sequence[float]) -> float:
            try:
                return stopwatch.median(operation.made(sizes, dense_sizes), repeats=repeats)
            except Exception:  # an operation that runs inside the network may refuse tensors of ones
                return float("nan")

        return [median(*one) for one in sized]

    def medians(self, models: Sequence[nn.Module], repeats: Repeats, stopwatch: Stopwatch | None = None) -> list[float]:
        """Measure the milliseconds of a batch through each of `models`, networks of `placed`, in turns."""
        stopwatch = stopwatch or stopwatch_of(self.spec, self.device)
        with torch.inference_mode():
            timed = [self.call(model) for model in models]
            stopwatch.warm_up(timed[-1])
            return [float(ms) for ms in stopwatch.medians(timed, repeats)]

    def least_medians(self, models: Sequence[nn.Module], repeats: Repeats) -> list[float]:
        """Measure the milliseconds of `medians` in rounds; return the least of each network.

        Other load of the machine comes in bursts, and only adds time.
        """
        began, least = time.monotonic(), self.medians(models, repeats)
        for _ in range(self.num_rounds - 1):
            if time.monotonic() - began > ROUNDS_S:
                break
            least = [min(pair) for pair in zip(least, self.medians(models, repeats), strict=True)]
        return least

    def is_matrix(self, operation: SizedCall) -> bool:
        """True for a convolution or a product of matrices."""
        return any(part in str(operation.call.operation) for part in MATRIX)


class OnnxTimedNetwork(TimedNetwork):
    """A network whose narrower networks run in ONNX Runtime, on this machine's CPU or on the target of the job."""

    def __init__(self, model: nn.Module, graph: ChannelGraph, spec: LatencySpec) -> None:
        """Export the dense network.

        Raises:
            UsageError: if ONNX Runtime is not installed, or the job asks for another precision.
            ModelError: if the network cannot be exported.
        """
        check_onnx_runtime()
        super().__init__(model, graph, spec, device="cpu")
        check_float32(self.precision)
        self._layout = torch.contiguous_format
        self.x = self.x.contiguous()
        cost = CostModel(graph)
        sizes = {int(size) for size in cost.sizes(cost.num_channels)}
        self._networks = OnnxNetworks(self.placed(model), self.x, sizes)
        self._names = tuple(model.state_dict())
        self._served = None if spec.target is None else ServedTarget(spec.target)

    def operations(self, model: nn.Module) -> list[OperationCall]:
        return node_calls(self._networks.file_of(model), {INPUT: self.x.numpy()}, self._names)

    def medians(self, models: Sequence[nn.Module], repeats: Repeats, stopwatch: Stopwatch | None = None) -> list[float]:
        target = self._served or ThisMachine(stopwatch or stopwatch_of(self.spec, self.device))
        files = [self._networks.file_of(model) for model in models]
        return target.medians(files, self.x.shape, threads=self.spec.threads, repeats=repeats)

    def times(self, sized: Sequence[AtSizes], *, repeats: int) -> list[float]:
        target = self._served or ThisMachine()
        return times_of(sized, target=target, threads=self.spec.threads, repeats=repeats)

    def is_matrix(self, operation: SizedCall) -> bool:
        return operation.call.operation.proto.op_type in MATRIX_NODES


class CompiledTimedNetwork(TimedNetwork):
    """A network whose narrower networks run under `torch.compile`.

    Compiled code calls the convolutions and the products of matrices of PyTorch's libraries as they are, and fuses all
    other operations. So the former are timed as they are. The latter are compiled, each once for all sizes, and the
    time of a call without work is taken off, because a network is one call. The scales, which are fitted to whole
    networks, hold the gain of the fusion. Whole networks are few, as each takes tens of seconds to compile.
    """

    num_fitted = 3
    num_held_out = 3
    num_rounds = 1

    def __init__(self, model: nn.Module, graph: ChannelGraph, spec: LatencySpec, *, device: str) -> None:
        """Refuse a machine that cannot compile.

        Raises:
            UsageError: if there is no C++ compiler, or no Triton for a GPU.
        """
        check_compiler()
        check_triton(torch.device(device))
        super().__init__(model, graph, spec, device=device)
        self._operations: dict[Any, Callable[..., object]] = {}

    def call(self, model: nn.Module) -> Callable[[], object]:
        return compiled(model, self.x)

    def times(self, sized: Sequence[AtSizes], *, repeats: int) -> list[float]:
        plain = super().times([one for one in sized if self.is_matrix(one[0])], repeats=repeats)
        matrix = iter(plain)
        return [next(matrix) if self.is_matrix(one[0]) else self._compiled_ms(*one, repeats=repeats) for one in sized]

    def _compiled_ms(
        self, operation: SizedCall, sizes: Sequence[float], dense_sizes: Sequence[float], *, repeats: int
    ) -> float:
        if operation.form not in self._operations:
            self._operations[operation.form] = compiled_operation(operation.call.operation)
        try:
            with torch.inference_mode():
                call = operation.made(sizes, dense_sizes, self._operations[operation.form])
                with quiet():
                    call()
                return max(self._median(call, repeats) - self._empty_ms, 0.0)
        except Exception as error:  # an operation that runs inside the network may refuse tensors of ones
            _LOG.info("%s is not timed by itself: %s", operation.call.operation, error)
            return float("nan")

    def _median(self, call: Callable[[], object], repeats: int) -> float:
        return stopwatch_of(self.spec, self.device).median(call, repeats=repeats)

    @cached_property
    def _empty_ms(self) -> float:
        """Milliseconds of a call of compiled code with next to no work; 0 for CUDA graphs, which have no such calls."""
        if stopwatch_of(self.spec, self.device).mode == "graph":
            return 0.0
        function = compiled_operation(torch.ops.aten.relu.default)
        one = torch.ones(2, dtype=self._dtype, device=self.device)
        with torch.inference_mode():
            return self._median(lambda: function(one), self.spec.repeats)


class TensorRTTimedNetwork(TimedNetwork):
    """A network whose narrower networks run in TensorRT; operations are timed in PyTorch on the same GPU.

    TensorRT builds an engine for a minute or longer, too long for each width of each operation. The scales of the
    operations are fitted to whole networks in TensorRT.
    """

    num_fitted = 3
    num_held_out = 3
    num_rounds = 1

    def __init__(self, model: nn.Module, graph: ChannelGraph, spec: LatencySpec, *, device: str) -> None:
        """Refuse a machine that has no TensorRT.

        Raises:
            UsageError: if the device is no GPU, or Torch-TensorRT is not installed.
        """
        check_nvidia(torch.device(device))
        check_tensorrt()
        super().__init__(model, graph, spec, device=device)

    def call(self, model: nn.Module) -> Callable[[], object]:
        engine = engine_of(model, self.x)
        return lambda: engine(self.x)


def timed_network(model: nn.Module, graph: ChannelGraph, spec: LatencySpec, *, device: str) -> TimedNetwork:
    """Return the network prepared for the runtime of `spec`.

    Raises:
        UsageError, ModelError: if the runtime is not installed, does not run on the device or refuses the network.
    """
    if spec.runtime == "onnxruntime":
        return OnnxTimedNetwork(model, graph, spec)
    kind = {COMPILE: CompiledTimedNetwork, TENSORRT: TensorRTTimedNetwork}.get(spec.runtime, TimedNetwork)
    return kind(model, graph, spec, device=timed_device(spec, device))


def check_runtime(spec: LatencySpec, *, device: str) -> None:
    """Refuse a runtime that does not run on the device of the workers.

    Raises:
        UsageError: with the ways out.
    """
    if spec.runtime == COMPILE:
        check_triton(torch.device(device))
    if spec.runtime == TENSORRT:
        check_nvidia(torch.device(device))
