"""Latency in ONNX Runtime: files of cut networks, fused operations, and the table over them."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from raprune.channels.cut import cut
from raprune.channels.graph import ChannelGraph
from raprune.channels.trace import trace
from raprune.cost.conditions import conditions, table_key
from raprune.cost.flops import CostModel
from raprune.cost.latency import LatencyTable
from raprune.cost.measure import measure_table, measure_whole
from raprune.cost.onnx_networks import _with_free_sizes, _without_unused, check_onnx_runtime
from raprune.cost.timed import OnnxTimedNetwork, timed_network
from raprune.errors import UsageError
from raprune.models.programs import INPUT
from raprune.pruning.preparation import prepare
from raprune.records import Candidate
from raprune.spec.job import LatencySpec
from raprune.spec.toml import load_spec
from tests.channels.proved import proved
from tests.tools import require_module

SPEC = LatencySpec(runtime="onnxruntime", repeats=3, widths=3, batch_size=2)


class Branches(nn.Module):
    """A residual block whose widths are multiples of 8, and a classifier behind a flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(3, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32)
        self.first, self.first_norm = nn.Conv2d(32, 48, 3, padding=1, bias=False), nn.BatchNorm2d(48)
        self.second, self.second_norm = nn.Conv2d(48, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32)
        self.last = nn.Linear(32 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem_norm(self.stem(x)).relu()
        x = (self.second_norm(self.second(self.first_norm(self.first(x)).relu())) + x).relu()
        return self.last(nn.functional.adaptive_avg_pool2d(x, 2).flatten(1))


@cache
def subject() -> tuple[nn.Module, ChannelGraph, OnnxTimedNetwork]:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        require_module(name)
    torch.manual_seed(0)
    model = Branches().eval()
    graph = trace(model, torch.zeros(1, 3, 16, 16))
    made = timed_network(model, graph, SPEC, device="cpu")
    assert isinstance(made, OnnxTimedNetwork)
    return model, graph, made


@pytest.mark.nightly
def test_file_of_a_cut_network_computes_what_it_computes_in_pytorch() -> None:
    import onnxruntime

    model, graph, made = subject()
    narrow = cut(model, graph, Candidate("narrow", {group.name: tuple(range(8)) for group in graph.groups})).eval()
    session = onnxruntime.InferenceSession(made._networks.file_of(narrow), providers=["CPUExecutionProvider"])
    x = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        assert np.allclose(session.run(None, {INPUT: x.numpy()})[0], narrow(x).numpy(), atol=1e-4)


@pytest.mark.nightly
def test_operations_are_the_blocks_that_the_runtime_fuses() -> None:
    model, _, made = subject()
    found = made.operations(model)
    # Each convolution has its batch norm in it, and its activation unless an addition comes first.
    kinds = [call.operation.proto.op_type for call in found]
    assert kinds[:5] == ["FusedConv", "FusedConv", "Conv", "Add", "Relu"]
    assert [call.module for call in found[:3]] == ["stem", "first", "second"]
    assert "BatchNormalization" not in kinds


@pytest.mark.nightly
def test_table_of_onnx_runtime_knows_every_operation_and_is_read_again() -> None:
    model, graph, _ = subject()
    table = measure_table(model, graph, SPEC, device="cpu", multiple_of=8)
    assert table.unknown == ()
    assert (table.runtime, table.batch_size, table.precision) == ("onnxruntime", 2, "float32")
    assert {"stem", "first", "second", "last"} <= set(table.modules)
    assert LatencyTable.from_arrays(table.to_arrays()).describe() == table.describe()
    cost = CostModel(graph, table)
    sizes = {float(size) for grid in table.grids.reshape(-1, table.grids.shape[2]) for size in grid}
    assert {8.0, 32.0} <= sizes
    assert 0 < float(cost.latency_ms(cost.smallest(multiple_of=8))) <= table.dense_ms
    narrow = cut(model, graph, Candidate("narrow", {group.name: tuple(range(8)) for group in graph.groups}))
    assert all(time_ms > 0 for time_ms in measure_whole([narrow], model, graph, SPEC, device="cpu"))


def test_reshape_of_a_batch_as_large_as_a_width_infers_the_width() -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        require_module(name)
    from onnx import helper, numpy_helper

    values = [helper.make_tensor_value_info(name, 1, None) for name in ("x", "y")]
    sizes = numpy_helper.from_array(np.array([32, 128]), "sizes")
    node = helper.make_node("Reshape", ["x", "sizes"], ["y"])
    for batch_size, inferred in ((32, [32, -1]), (1, [32, 128])):
        proto = helper.make_model(helper.make_graph([node], "flatten", values[:1], values[1:], [sizes]))
        _with_free_sizes(proto, {32, 128}, batch_size=batch_size)
        used = {tensor.name: tensor for tensor in proto.graph.initializer}[proto.graph.node[0].input[1]]
        assert numpy_helper.to_array(used).tolist() == inferred


def test_nodes_whose_output_nobody_reads_are_removed_with_those_that_only_they_read() -> None:
    require_module("onnx")
    from onnx import helper

    values = [helper.make_tensor_value_info(name, 1, None) for name in ("x", "y")]
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"], name="only for the cast"),
        helper.make_node("Cast", ["shape"], ["unread"], name="for nobody", to=1),
        helper.make_node("Relu", ["x"], ["y"], name="kept"),
    ]
    graph = helper.make_graph(nodes, "unused", values[:1], values[1:])
    _without_unused(graph)
    assert [node.name for node in graph.node] == ["kept"]


def test_runtime_whose_libraries_are_missing_is_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raprune.cost.onnx_networks.missing_for", lambda kind: ["onnx", "onnxruntime"])
    with pytest.raises(UsageError, match="onnx, onnxruntime, which are not installed") as caught:
        check_onnx_runtime()
    assert 'pip install "raprune[export]"' in caught.value.hint
    with pytest.raises(UsageError, match=r'latency\.runtime = "onnxruntime" needs onnx'):
        prepare(load_spec(None, {"latency.runtime": "onnxruntime"}))


def test_runtime_of_a_precision_that_it_does_not_have_is_refused() -> None:
    with pytest.raises(UsageError, match=r'latency\.precision is "bfloat16"'):
        prepare(load_spec(None, {"latency.runtime": "onnxruntime", "latency.precision": "bfloat16"}))


def test_key_of_a_table_differs_by_runtime_and_steps() -> None:
    graph = proved("Residual")[1]
    keys = [
        table_key(graph, LatencySpec(), device="cpu"),
        table_key(graph, LatencySpec(), device="cpu", multiple_of=8),
        table_key(graph, LatencySpec(runtime="onnxruntime"), device="cpu"),
    ]
    assert len(set(keys)) == 3
    assert conditions(LatencySpec(runtime="onnxruntime"), device="cuda")["runtime"] == "onnxruntime"
