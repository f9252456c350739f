"""Networks prepared for timing in the runtime that will serve them: eager PyTorch, or ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from raprune.channels.cut import cut
from raprune.channels.graph import ChannelGraph
from raprune.cost.conditions import precision_of, timed_device
from raprune.cost.flops import CostModel, Counts
from raprune.cost.onnx_networks import OnnxNetworks, check_float32, check_onnx_runtime
from raprune.cost.onnx_operations import MATRIX_NODES, node_calls, times_of
from raprune.cost.operations import OperationCall, SizedCall, calls, filled
from raprune.cost.stopwatch import Repeats, Stopwatch, stopwatch_of
from raprune.cost.timing_target import ServedTarget, ThisMachine
from raprune.models.memory_format import layout_for
from raprune.models.programs import INPUT
from raprune.records import Candidate
from raprune.spec.job import LatencySpec

MATRIX = ("addmm", "baddbmm", "bmm", "convolution", "mm", "scaled_dot")
"""Parts of the names of operations of the kind `matrix`."""

AtSizes = tuple[SizedCall, Sequence[float], Sequence[float]]
"""An operation, the sizes of its factors, and their dense sizes."""


class TimedNetwork:
    """A network prepared for timing: evaluation mode, one batch, and the memory format in which it runs fastest."""

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


def timed_network(model: nn.Module, graph: ChannelGraph, spec: LatencySpec, *, device: str) -> TimedNetwork:
    """Return the network prepared for the runtime of `spec`.

    Raises:
        UsageError, ModelError: as `OnnxTimedNetwork`.
    """
    if spec.runtime == "onnxruntime":
        return OnnxTimedNetwork(model, graph, spec)
    return TimedNetwork(model, graph, spec, device=timed_device(spec, device))
