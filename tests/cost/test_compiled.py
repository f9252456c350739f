"""Latency under `torch.compile` and in TensorRT: what is compiled, and the errors of machines that lack a part."""

from __future__ import annotations

import importlib.util
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from raprune.channels.trace import trace
from raprune.cost.compiled import check_compiler, check_nvidia, check_tensorrt, check_triton, compiled, engine_of
from raprune.cost.conditions import conditions, table_key
from raprune.cost.flops import CostModel
from raprune.cost.measure import measure_table, measure_whole
from raprune.cost.reported import measure_reported
from raprune.cost.stopwatch import Stopwatch
from raprune.cost.timed import CompiledTimedNetwork, check_runtime, timed_network
from raprune.errors import ModelError, UsageError
from raprune.pruning.preparation import prepare
from raprune.spec.job import LatencySpec
from raprune.spec.toml import load_spec
from tests.channels.proved import proved
from tests.tools import require

SPEC = LatencySpec(runtime="compile", repeats=3, widths=2, batch_size=2)
CPU, GPU = torch.device("cpu"), torch.device("cuda")


class Small(nn.Module):
    """A convolution, an activation and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.last = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.stem(x)).relu().mean((2, 3)))


class Divided(nn.Module):
    """A network that reads a value in its forward pass, which no compiler can see through."""

    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum().item() > 0 else -x


def lacking(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda asked, *rest: None if asked == name else found(asked, *rest))


def test_machine_without_a_compiler_is_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UsageError, match="needs a C\\+\\+ compiler, and no-such-compiler is not installed") as caught:
        prepare(load_spec(None, {"latency.runtime": "compile"}))
    assert "apt-get install g++" in caught.value.hint and 'runtime = "eager"' in caught.value.hint
    with pytest.raises(UsageError, match="no-such-compiler"):
        timed_network(*proved("Residual"), SPEC, device="cpu")
    monkeypatch.setenv("CXX", sys.executable)
    check_compiler()


def test_gpu_without_triton_is_refused_for_compile_and_cpu_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    lacking(monkeypatch, "triton")
    with pytest.raises(UsageError, match="needs triton on a GPU") as caught:
        check_runtime(SPEC, device="cuda")
    assert "pip install triton" in caught.value.hint
    check_triton(CPU)


def test_tensorrt_that_is_not_installed_is_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    lacking(monkeypatch, "torch_tensorrt")
    with pytest.raises(UsageError, match="needs torch_tensorrt, which is not installed") as caught:
        prepare(load_spec(None, {"latency.runtime": "tensorrt"}))
    assert (
        "pip install torch-tensorrt" in caught.value.hint and torch.__version__.partition("+")[0] in caught.value.hint
    )
    with pytest.raises(UsageError, match="torch_tensorrt"):
        check_tensorrt()


def test_tensorrt_on_a_cpu_is_refused_by_its_device() -> None:
    spec = LatencySpec(runtime="tensorrt")
    for refused in (
        lambda: check_runtime(spec, device="cpu"),
        lambda: timed_network(*proved("Residual"), spec, device="cpu"),
    ):
        with pytest.raises(UsageError, match="runs on NVIDIA GPUs, and latency is measured on the CPU") as caught:
            refused()
        assert "resources.gpus_per_trial" in caught.value.hint
    check_nvidia(GPU)


def test_engine_of_tensorrt_is_asked_for_as_its_library_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def compile_program(program: Any, **arguments: Any) -> Any:
        asked.append(arguments)
        return program.module()

    stand_in = SimpleNamespace(dynamo=SimpleNamespace(compile=compile_program))
    monkeypatch.setitem(sys.modules, "torch_tensorrt", stand_in)
    model, x = Small().eval(), torch.ones(2, 3, 8, 8)
    engine = engine_of(model, x)
    found = engine(x)
    assert isinstance(found, Tensor) and torch.equal(found, model(x))
    [arguments] = asked
    assert list(arguments) == ["inputs", "use_explicit_typing", "min_block_size"]
    assert arguments["inputs"][0] is x and arguments["use_explicit_typing"] is True

    def refuses(program: Any, **arguments: Any) -> Any:
        raise RuntimeError("no engine\n" + "a page of the builder's log\n" * 50)

    stand_in.dynamo.compile = refuses
    with pytest.raises(ModelError, match=r'latency\.runtime = "tensorrt": the network cannot be compiled') as caught:
        engine_of(model, x)
    assert len(str(caught.value)) < 600 and caught.value.hint == 'Set latency.runtime = "eager".'


def test_timing_worker_takes_no_network_of_another_runtime() -> None:
    require("g++")
    fields = {"latency.runtime": "compile", "latency.target": "http://x:1"}
    with pytest.raises(UsageError, match=r'latency\.runtime is "compile"'):
        prepare(load_spec(None, fields))


def test_key_and_conditions_of_a_table_name_the_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = proved("Residual")[1]
    monkeypatch.setattr("raprune.cost.conditions.metadata.version", lambda name: f"{name} 1.2")
    runtimes = ("eager", "compile", "onnxruntime", "tensorrt")
    specs = [LatencySpec.model_validate({"runtime": runtime}) for runtime in runtimes]
    assert len({table_key(graph, spec, device="cpu") for spec in specs}) == 4
    assert [conditions(spec, device="cpu")["runtime"] for spec in specs] == list(runtimes)


def test_report_of_a_compiled_budget_times_the_other_batches_eagerly(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, int]] = []

    def measure(models: Any, model: Any, graph: Any, spec: LatencySpec, **_: Any) -> list[float]:
        asked.append((spec.runtime, spec.batch_size))
        return [1.0] * (len(models) + 1)

    monkeypatch.setattr("raprune.cost.reported.measure_whole", measure)
    model, graph = proved("Residual")
    for budgeted, expected in ((True, ["eager", "eager", "compile"]), (False, ["compile", "compile"])):
        asked.clear()
        times = measure_reported(
            {"a": model},
            model,
            graph,
            SPEC,
            device="cpu",
            threads=1,
            largest=8,
            budgeted=budgeted,
            stopwatch=Stopwatch(CPU),
        )
        assert sorted(runtime for runtime, _ in asked) == sorted(expected)
        found = [*times.conditions, *([times.budget] if times.budget else [])]
        assert [timing.runtime for timing in found] == expected
        assert found[-1].where.endswith(", torch.compile")


@pytest.mark.nightly
def test_compiled_networks_of_one_class_compute_the_same_and_are_compiled_once() -> None:
    require("g++")
    from torch._dynamo.utils import counters

    x = torch.rand(2, 3, 8, 8)
    models = [Small().eval() for _ in range(12)]
    with torch.inference_mode():
        calls = [compiled(model, x) for model in models]
        counters.clear()
        for model, call in zip(models, calls, strict=True):
            found = call()
            assert isinstance(found, Tensor)
            assert torch.allclose(found, model(x), atol=1e-5)
    assert counters["stats"]["unique_graphs"] == 0, "nothing is compiled when networks take turns"


@pytest.mark.nightly
def test_network_that_cannot_be_compiled_is_refused_in_one_screen() -> None:
    require("g++")
    with pytest.raises(ModelError, match=r'latency\.runtime = "compile": the network cannot be compiled') as caught:
        compiled(Divided(), torch.ones(1, 2))
    assert len(str(caught.value)) < 700 and 'latency.runtime = "eager"' in caught.value.hint


@pytest.mark.nightly
def test_table_of_compiled_operations_predicts_a_compiled_network() -> None:
    require("g++")
    torch.manual_seed(0)
    model = Small().eval()
    graph = trace(model, torch.zeros(1, 3, 16, 16))
    table = measure_table(model, graph, SPEC, device="cpu")
    assert (table.runtime, table.unknown, table.accuracy.networks) == ("compile", (), 3)
    assert np.isfinite(table.times_ms).all() and {"stem", "norm", "last"} <= set(table.modules)
    cost = CostModel(graph, table)
    assert 0 < float(cost.latency_ms(cost.smallest())) < 3 * table.dense_ms
    narrow_ms, dense_ms = measure_whole([model], model, graph, SPEC, device="cpu")
    assert narrow_ms > 0 and dense_ms > 0
    assert isinstance(timed_network(model, graph, SPEC, device="cpu"), CompiledTimedNetwork)
