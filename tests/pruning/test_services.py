from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from raprune.channels.cut import rebuild
from raprune.channels.trace import trace
from raprune.data import load_data
from raprune.methods import Network
from raprune.methods.maxout import Maxout
from raprune.pruning.services import WorkloadServices
from raprune.pruning.workload import Workload, build_workload, train_dense
from raprune.spec.job import DataSpec, DenseTrainSpec, FinalistSpec, FinetuneSpec, ModelSpec, SamplerSpec, SearchSpec
from raprune.training.evaluate import evaluate
from tests.streams import digits, write_parts

SPEC = SearchSpec(
    model=ModelSpec(name="digits-net"),
    data=DataSpec(name="digits", max_images=300),
    dense=DenseTrainSpec(epochs=2.0, lr=0.1),
    search=SamplerSpec(eval_batch_size=100),
    finalists=FinalistSpec(train=FinetuneSpec(epochs=9.0, lr=0.05, batch_size=32)),
    seed=3,
)


@cache
def workload() -> Workload:
    dense = build_workload(SPEC, data=load_data(SPEC.data, seed=SPEC.seed), device="cpu")
    train_dense(dense, SPEC)
    return dense


def services(seed: int = 1) -> WorkloadServices:
    return WorkloadServices(workload(), lambda: workload().training.batches(50), seed=seed)


def network() -> Network:
    graph = trace(workload().model, workload().example_input())
    model = rebuild(workload().model, lambda name, tensor: tensor.clone())
    return Network(model, graph, {g.name: tuple(range(g.num_channels)) for g in graph.groups})


def test_training_batches_are_the_whole_training_split_as_it_is() -> None:
    images, labels = zip(*services().training(), strict=True)
    whole = next(iter(workload().training.batches(10_000)))
    assert torch.equal(torch.cat(images), whole[0])
    assert torch.equal(torch.cat(labels), whole[1])


def test_training_batches_of_a_streamed_split_are_all_of_its_images(tmp_path: Path) -> None:
    """The sample in memory would give other counts of wins in a unit than the whole split."""
    folder = write_parts(tmp_path / "train", digits(), row_group=50)
    data = DataSpec(name="parquet", train=folder, stream=True, resident_images=100, validation_fraction=0.2)
    spec = SPEC.model_copy(update={"data": data})
    streamed = build_workload(spec, data=load_data(data, seed=SPEC.seed), device="cpu")
    assert streamed.data.stream is not None and len(streamed.data.train) == 100
    own = Counting(streamed, lambda: streamed.place(streamed.data.train).batches(50), seed=1)
    images, labels = (torch.cat(parts) for parts in zip(*own.training(), strict=True))
    assert len(images) == len(labels) == streamed.data.num_train > 1000
    assert torch.equal(images, torch.cat([x for x, _ in own.training()])), "the same order each time"
    sample = {x.numpy().tobytes() for x in next(iter(streamed.place(streamed.data.train).batches(100)))[0]}
    assert sample <= {x.numpy().tobytes() for x in images}
    own.counted = 0
    graph = trace(streamed.model, streamed.example_input())
    whole = Network(streamed.model, graph, {g.name: tuple(range(g.num_channels)) for g in graph.groups})
    list(Maxout(candidates=2, weight_pruning=0.0).path(whole, graph.widths, own))
    assert own.counted == streamed.data.num_train, "maxout counts on all of them in its one round"


class Counting(WorkloadServices):
    """Services that count the training images of a method, and train nothing."""

    counted = 0

    def training(self) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in super().training():
            self.counted += len(images)
            yield images, labels

    def train(self, *_: Any, **__: Any) -> None:
        return None


def test_metric_is_that_of_an_evaluation_on_a_part_that_stays() -> None:
    model = workload().model
    assert services().metric(model) == evaluate(model, workload().validation).accuracy
    some = services().metric(model, 20)
    assert (20 * some) % 1 == pytest.approx(0.0, abs=1e-12), "a fraction of 20 images"
    assert some == services(seed=7).metric(model, 20)


def test_training_goes_by_the_job_and_the_same_seed_gives_the_same_weights() -> None:
    states = []
    for seed in (1, 1, 2):
        own, trained = services(seed), network().model
        own.train(trained, 0.5)
        own.train(trained, 0.5, lr=0.01, distil=True)
        assert not trained.training
        states.append(torch.cat([value.double().flatten() for value in trained.state_dict().values()]))
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_each_phase_shuffles_anew() -> None:
    own, one, other = services(), network().model, network().model
    own.train(one, 0.5)
    own.train(other, 0.5)
    assert not torch.equal(one.state_dict()["conv1.weight"], other.state_dict()["conv1.weight"])


def test_a_regularizer_is_called_before_each_step() -> None:
    calls = []
    services().train(network().model, 1.0, regularize=lambda model: calls.append(model.training))
    assert calls == [True] * -(-len(workload().training) // 32)


def test_cuts_add_up_to_channels_of_the_dense_network() -> None:
    own, whole = services(), network()
    first = own.cut(whole, {"conv1": tuple(range(1, 16, 2))})
    second = own.cut(first, {"conv1": (0, 3), "conv2": (5,)})
    assert second.kept["conv1"] == (1, 7)
    assert second.kept["conv2"] == (5,)
    assert second.kept["conv3"] == whole.kept["conv3"]
    assert second.graph.widths["conv1"] == 2
    weight = second.model.state_dict()["conv1.weight"]
    assert torch.equal(weight, whole.model.state_dict()["conv1.weight"][[1, 7]])
    assert whole.graph.widths["conv1"] == 16


@pytest.mark.parametrize(
    ("least", "multiple", "channels", "widths"),
    [
        (1, 1, 4, [1, 2, 3, 4]),
        (3, 1, 5, [3, 4, 5]),
        (1, 4, 10, [4, 8, 10]),
        (6, 4, 16, [8, 12, 16]),
        (8, 8, 5, [5]),
        (1, 1, 1, [1]),
    ],
)
def test_allowed_widths_are_those_that_an_allocation_may_give(
    least: int, multiple: int, channels: int, widths: list[int]
) -> None:
    own = services()
    own._spec = SPEC.model_copy(update={"search": SamplerSpec(min_channels=least, multiple_of=multiple)})
    assert own.allowed(channels) == widths
