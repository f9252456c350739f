"""The estimate of a GPU's memory against the bytes that the same work holds on the pretend device."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from raprune.channels.graph import ChannelGraph
from raprune.channels.trace import trace
from raprune.checks.memory import described, workers_a_card
from raprune.data import load_data
from raprune.data.dataset import Dataset
from raprune.data.standard import stand_in
from raprune.pruning.memory import CONTEXT, WorkerMemory, worker_memory
from raprune.pruning.prune import Pruner
from raprune.pruning.workload import build_workload
from raprune.records import Proposal, Stage
from raprune.spec import automatic
from raprune.spec.budget import Budget
from raprune.spec.job import DataSpec, ResourceSpec, SearchSpec
from raprune.spec.toml import load_spec
from tests.pretend_cuda import pretend_cuda

JOBS = Path(__file__).parents[2] / "jobs"


def spec_of(*methods: str) -> SearchSpec:
    return SearchSpec.model_validate(
        {
            "model": {"name": "digits-net", "arguments": {"width": 16}},
            "data": {"name": "digits", "max_images": 900, "validation_fraction": 0.4},
            "methods": methods,
            "search": {"calibration_images": 256, "eval_batch_size": 256, "multiple_of": 1},
            "finalists": {"train": {"epochs": 0.3, "batch_size": 128, "precision": "float32"}},
        }
    )


@cache
def data() -> Dataset:
    spec = spec_of()
    return load_data(spec.data, seed=spec.seed)


def estimated(spec: SearchSpec) -> tuple[WorkerMemory, ChannelGraph]:
    workload = build_workload(spec, data=data(), device="cpu")
    graph = trace(workload.model, workload.example_input())
    return worker_memory(workload, graph, spec), graph


@pytest.mark.parametrize("method", ["l2", "taylor", pytest.param("reconstruction", marks=pytest.mark.nightly)])
def test_estimate_of_a_search_is_near_the_bytes_on_the_device(method: str) -> None:
    spec = spec_of(method)
    memory, graph = estimated(spec)
    with pretend_cuda() as card:
        pruner = Pruner(build_workload(spec, data=data(), device="cuda:0"), graph, spec)
        pruner.prune(Proposal(number=0, method=method, allocation="uniform", target=Budget(flops=0.5)))
        peak = card.peak
    assert 0.85 * peak <= memory.searching - CONTEXT <= 1.6 * peak


def test_estimate_of_fine_tuning_is_near_the_bytes_on_the_device() -> None:
    spec = spec_of("l2")
    memory, graph = estimated(spec)
    parent = Proposal(number=0, method="l2", allocation="uniform", target=Budget(flops=1.0))
    child = Proposal(number=1, method="l2", allocation="uniform", target=Budget(flops=1.0), stage=Stage.FINETUNE)
    with pretend_cuda() as card:
        pruner = Pruner(build_workload(spec, data=data(), device="cuda:0"), graph, spec)
        pruner.prune(parent)
        card.peak = card.used
        pruner.finetune(child, parent, spec.finalists.train.decided())
        peak = card.peak
    assert 0.85 * peak <= memory.finetuning + memory.images - CONTEXT <= 1.6 * peak


@pytest.mark.nightly
def test_worker_of_the_imagenet_job_needs_less_than_20_gb() -> None:
    """Without its files: they are not here, and the sizes of ImageNet are well known."""
    spec = load_spec(JOBS / "resnet50_imagenet.toml", {"model.weights": None})
    stands_in = stand_in(spec.data)
    assert stands_in is not None
    assert (len(stands_in.train), len(stands_in.validation)) == (190_000, 10_000)
    workload = build_workload(spec, data=stands_in, device="cpu")
    graph = trace(workload.model, workload.example_input())
    spec = automatic.decided(spec, num_train=stands_in.num_train, widths=graph.widths)
    memory = worker_memory(workload, graph, spec)
    assert 10e9 < memory.needed < 20e9
    assert memory.images == 190_000 * 3 * 224 * 224


@pytest.mark.parametrize(
    ("fields", "train", "validation"),
    [
        ({}, 1_281_167, 50_000),
        ({"test": "val"}, 1_024_934, 256_233),
        ({"test": "val", "stream": True}, 20_000, 20_000),
        ({"max_images": 1000}, 1_000, 1_000),
    ],
)
def test_stand_in_has_the_sizes_of_imagenet_and_takes_no_memory(
    fields: dict[str, object], train: int, validation: int
) -> None:
    data = stand_in(DataSpec.model_validate({"name": "imagenet", "train": "somewhere", **fields}))
    assert data is not None
    assert (len(data.train), len(data.validation)) == (train, validation)
    assert (data.image_shape, data.num_classes) == ((3, 224, 224), 1000)
    assert data.train.images.base is not None and data.train.images.base.nbytes == 1


def test_stand_in_of_data_of_unknown_size_is_none() -> None:
    assert stand_in(DataSpec(name="parquet", train="x.parquet")) is None


@pytest.mark.parametrize(("gpus", "workers"), [(None, 1), (1.0, 1), (2.0, 1), (0.25, 4), (0.3, 3), (0.0, 0)])
def test_workers_a_card_follows_the_gpus_of_a_trial(gpus: float | None, workers: int) -> None:
    assert workers_a_card(ResourceSpec(gpus_per_trial=gpus)) == workers


def test_workers_that_share_a_card_hold_no_split_on_it() -> None:
    spec = spec_of("l2")
    shared = spec.model_copy(update={"resources": ResourceSpec(gpus_per_trial=0.25)})
    (alone, _), (memory, _) = estimated(spec), estimated(shared)
    assert (memory.validation, memory.images) == (0, 0) and alone.validation > 0 < alone.images
    assert alone.needed - memory.needed >= alone.validation
    assert any("one copy" in line for line in described(memory, workers=4, card=None))
    assert not any("one copy" in line for line in described(alone, workers=1, card=None))
