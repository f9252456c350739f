"""The whole work of a candidate on a pretend GPU: no mixture of devices, the CPU's results, few launches, few waits."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch

from raprune.channels.graph import ChannelGraph
from raprune.channels.proof import prove
from raprune.channels.trace import trace
from raprune.cost.flops import CostModel
from raprune.cost.measure import measure_table, measure_whole
from raprune.cost.stopwatch import Repeats
from raprune.data import load_data
from raprune.data.dataset import Dataset
from raprune.methods import METHODS
from raprune.pruning import artifact
from raprune.pruning.prune import Pruner
from raprune.pruning.record import method_of
from raprune.pruning.workload import Workload, build_workload
from raprune.records import Proposal
from raprune.spec.budget import Budget
from raprune.spec.job import (
    DataSpec,
    FinalistSpec,
    FinetuneSpec,
    LatencySpec,
    ModelSpec,
    SamplerSpec,
    SearchSpec,
    TrainSpec,
)
from raprune.store.folder import Store
from raprune.training.distillation import channel_map
from raprune.training.evaluate import evaluate
from raprune.training.loop import train
from tests.pretend_cuda import Card, pretend_cuda

torch.set_num_threads(1)

SPEC = SearchSpec(
    model=ModelSpec(name="digits-net", arguments={"width": 8}),
    data=DataSpec(name="digits", max_images=120),
    search=SamplerSpec(calibration_images=32, eval_batch_size=64),
    finalists=FinalistSpec(train=FinetuneSpec(batch_size=32, precision="float32", distillation=0.5)),
    seed=3,
)
SETTINGS: dict[str, dict[str, Any]] = {
    "auto_balanced": {"steps": 1, "epochs": 0.3, "last_epochs": 0.3},
    "binary_search": {"finetune_epochs": 0.3},
    "local_bn": {"sparse_epochs": 0.3, "beta": "measured"},
    "maxout": {"epochs": 0.3, "weight_rounds": 1},
    "slimming": {"sparse_epochs": 0.3},
}
"""Settings of the methods that train, for a short training."""

WAITS = {
    "activation": (4, 2),
    "apoz": (4, 2),
    "auto_balanced": (4, 8),
    "binary_search": (4, 43),
    "fpgm": (4, 2),
    "l1": (4, 2),
    "l2": (4, 2),
    "lasso": (8, 11),
    "local_bn": (57, 11),
    "maxout": (4, 31),
    "random": (0, 2),
    "reconstruction": (45, 11),
    "slimming": (57, 2),
    "taylor": (4, 2),
    "thinet": (8, 11),
}
"""Times that the CPU waits for the card at most, for the scores of a method and for a candidate with known scores: one
for each layer that is scored or refitted, another where its samples are few, one for each epoch and evaluation, and one
for the zeros."""
TRAINING_METHODS = {*SETTINGS}
REFITTING = {"lasso", "reconstruction", "thinet"}

TRAINING = TrainSpec(epochs=1.0, lr=0.01, batch_size=16, precision="float32", distillation=0.5)


@cache
def data() -> Dataset:
    return load_data(SPEC.data, seed=SPEC.seed)


def workload(device: str) -> Workload:
    return build_workload(SPEC, data=data(), device=device)


@cache
def graph() -> ChannelGraph:
    dense = workload("cpu")
    return prove(dense.model, trace(dense.model, dense.example_input()), dense.example_input()).graph


def proposal(method: str) -> Proposal:
    settings = SETTINGS.get(method, {})
    return Proposal(number=0, method=method, allocation="uniform", target=Budget(flops=0.4), settings=settings, seed=1)


@pytest.fixture
def card() -> Iterator[Card]:
    """The pretend GPU, for a whole test."""
    with pretend_cuda() as card:
        yield card


@pytest.mark.parametrize("method", METHODS)
def test_method_on_cuda_gives_the_candidate_of_the_cpu(method: str) -> None:
    asked = proposal(method)
    on_cpu = Pruner(workload("cpu"), graph(), SPEC).prune(asked).trial
    with pretend_cuda() as card:
        dense = workload("cuda:0")
        pruner = Pruner(dense, graph(), SPEC)
        # What the first candidate of a process places and hashes.
        assert len(dense.training) and len(dense.validation) and pruner.phases.network
        with card.counted() as scoring:
            pruner.scoring.scores(method_of(asked), asked.seed)
        with card.counted() as pruning:
            on_cuda = pruner.prune(asked).trial
    assert on_cuda.candidate == on_cpu.candidate
    assert on_cuda.metrics is not None
    assert on_cpu.metrics is not None
    assert on_cuda.metrics.accuracy == on_cpu.metrics.accuracy
    for counts, most in zip((scoring, pruning), WAITS[method], strict=True):
        assert counts.num_waits <= most, counts.waits
    assert method in TRAINING_METHODS or pruning.launches <= 145 or (method in REFITTING and pruning.launches <= 2150)


def test_evaluation_waits_for_the_card_once(card: Card) -> None:
    dense = workload("cuda:0")
    split = dense.validation
    with card.counted() as counts:
        evaluate(dense.model, split, batch_size=4)
    assert counts.num_waits == 1, counts.waits


@pytest.mark.parametrize(
    ("changes", "launches"),
    [
        ({"precision": "float32", "distillation": 0.0}, 72),
        ({"precision": "float32", "distillation": 0.5}, 110),
        ({"precision": "bfloat16", "distillation": 0.5}, 132),
        ({"precision": "bfloat16", "distillation": 0.5, "ema": 0.9}, 137),
        ({"precision": "float32", "distillation": 0.0, "optimizer": "adamw", "layer_decay": 0.9, "clip": 1.0}, 135),
        ({"precision": "float32", "distillation": 0.0, "policy": "trivial", "erase": 0.5, "mixup": 0.2}, 300),
    ],
    ids=lambda value: ",".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else None,
)
def test_training_waits_for_the_card_once_an_epoch_and_launches_no_more_than_counted(
    changes: dict[str, Any], launches: int, card: Card
) -> None:
    dense, student = workload("cuda:0"), workload("cuda:0").model
    spec, split = TRAINING.model_copy(update=changes), dense.training
    teacher = dense.model if spec.distillation > 0 else None
    with card.counted() as counts:
        train(student, split, spec, augment="shift-flip", seed=0, teacher=teacher)
    steps = spec.epochs * math.ceil(len(split) / spec.batch_size)
    assert counts.num_waits == spec.epochs, counts.waits
    assert counts.launches <= launches * steps


def test_trace_and_proof_on_cuda_give_the_graph_of_the_cpu(card: Card) -> None:
    dense = workload("cuda:0")
    traced = trace(dense.model, dense.example_input())
    assert prove(dense.model, traced, dense.example_input()).graph.to_json() == graph().to_json()


@pytest.mark.parametrize(
    ("augment", "changes"),
    [
        ("shift-flip", {}),
        ("crop-flip", {}),
        # No maps: between equal networks their gradient is rounding alone, which AdamW scales up to whole steps.
        ("shift-flip", {"optimizer": "adamw", "layer_decay": 0.9, "clip": 1.0, "schedule": "cosine", "features": 0.0}),
        ("shift-flip", {"policy": "rand", "erase": 0.5, "mixup": 0.2, "cutmix": 1.0, "teacher_loss": "dist"}),
    ],
    ids=["shift-flip", "crop-flip", "adamw", "mixed"],
)
def test_training_on_cuda_gives_the_weights_of_the_cpu(augment: str, changes: dict[str, Any]) -> None:
    spec = TRAINING.model_copy(update={"ema": 0.9, "features": 0.5, **changes})
    states = []
    for device in ("cpu", "cuda:0"):
        with pretend_cuda() if device == "cuda:0" else nullcontext():
            teacher, student = workload(device), workload(device).model
            channels = channel_map(teacher.model, graph(), {}, teacher.example_input())
            train(student, teacher.training, spec, augment=augment, seed=0, teacher=teacher.model, channels=channels)
            states.append({name: value.cpu() for name, value in student.state_dict().items()})
    # On the card alone AdamW's learning rate is rounded to float32, and all images are changed to choose among them.
    atol = 1e-5 if changes else 0.0
    assert all(torch.allclose(states[0][name], value, rtol=0.0, atol=atol) for name, value in states[1].items())


def test_training_in_half_precision_on_cuda_is_finite(card: Card) -> None:
    dense = workload("cuda:0")
    spec = TRAINING.model_copy(update={"precision": "auto"})
    last = train(dense.model, dense.training, spec, augment="shift", seed=0)[-1]
    assert math.isfinite(last.loss)


def test_seconds_of_an_epoch_include_the_work_that_the_card_still_has_to_do(
    card: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense, waits = workload("cuda:0"), card.counts.waits
    # A clock that only runs while the CPU waits for the sums of an epoch.
    clock = SimpleNamespace(perf_counter=lambda: float(sum(waits[kind] for kind in waits if "tolist" in kind)))
    monkeypatch.setattr("raprune.training.loop.time", clock)
    history = train(dense.model, dense.training, TRAINING, augment="none", seed=0)
    assert [epoch.seconds for epoch in history] == [1.0]


def test_latency_table_on_cuda_predicts_the_dense_network(card: Card) -> None:
    dense, cost = workload("cuda:0").model, CostModel(graph())
    spec = LatencySpec(repeats=1, widths=2, precision="auto")
    table = measure_table(dense, graph(), spec, device="cuda:0")
    assert (table.device, table.precision) == ("pretend", "bfloat16")
    assert math.isfinite(table.predict(cost.sizes(cost.num_channels)))


def test_latency_on_cuda_is_of_replayed_graphs_unless_eager_is_asked_for(
    card: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As long as the clock says, however many calls that takes.
    monkeypatch.setattr("raprune.cost.stopwatch.WARM_UP_S", 0.0)
    dense, launches = workload("cuda:0").model, {}
    often = Repeats(most=40, least=40, limit_s=1e-9)
    modes: tuple[Literal["graph", "eager"], ...] = ("graph", "eager")
    for mode in modes:
        with card.counted() as counts:
            measure_whole([dense], dense, graph(), LatencySpec(mode=mode), device="cuda:0", repeats=often)
        launches[mode] = counts.launches
    # Of some twenty launches a forward pass, a replay is one.
    assert launches["graph"] < launches["eager"] / 4


def test_artifact_of_a_network_on_cuda_loads_on_the_cpu_and_on_cuda(card: Card, tmp_path: Path) -> None:
    trial, model, _ = Pruner(workload("cuda:0"), graph(), SPEC).prune(proposal("l2"))
    artifact.save(Store(str(tmp_path)), "", model=model, graph=graph(), candidate=trial.channels, provenance={})
    on_cpu, on_cuda = (artifact.load(workload(device).model, str(tmp_path)) for device in ("cpu", "cuda:0"))
    assert {name: value.cpu().tolist() for name, value in on_cuda.state_dict().items()} == {
        name: value.tolist() for name, value in on_cpu.state_dict().items()
    }
    assert {parameter.device.type for parameter in on_cuda.parameters()} == {"cuda"}


def test_mixture_of_devices_on_the_pretend_device_raises(card: Card) -> None:
    on_card = torch.ones(3, device="cuda:0")
    with pytest.raises(RuntimeError, match="same device"):
        on_card + torch.ones(3)
    with pytest.raises(TypeError, match="numpy"):
        on_card.numpy()


def test_waits_of_the_pretend_device_are_counted_with_their_kind(card: Card) -> None:
    on_card = torch.ones(3, device="cuda:0")
    with card.counted() as counts:
        float(on_card.sum())
        on_card[on_card > 0]
        torch.ones(3).to("cuda:0")
        torch.ones(3).pin_memory().to("cuda:0", non_blocking=True)
    assert sorted(kind.partition(" at ")[0] for kind in counts.waits) == [
        "_local_scalar_dense",
        "copy from pageable memory",
        "index by a mask",
    ]
    assert counts.copies == 1


def test_graph_of_the_pretend_device_repeats_on_the_same_memory(card: Card) -> None:
    x, graph = torch.ones(2, device="cuda:0"), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = 2 * x.view(2, 1)
        x += 1
    with torch.no_grad():
        x.fill_(5.0)
    graph.replay()
    assert (y.flatten().tolist(), x.tolist()) == ([10.0, 10.0], [6.0, 6.0])
    with pytest.raises(RuntimeError, match="capturing"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        float(x.sum())
