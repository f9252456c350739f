"""A training step as a CUDA graph, on the pretend GPU: the weights of steps that run as they are."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from raprune.data import load_data
from raprune.data.batches import DeviceSplit
from raprune.data.dataset import Dataset
from raprune.methods.gammas import SparseGamma
from raprune.models.digits import DigitsNet
from raprune.spec.job import DataSpec, TrainSpec
from raprune.training.epoch import Epoch
from raprune.training.loop import train
from tests.pretend_cuda import Counts, pretend_cuda

torch.set_num_threads(1)

SPEC = TrainSpec(epochs=2.0, lr=0.01, batch_size=16, precision="float32", distillation=0.5)


@cache
def data() -> Dataset:
    return load_data(DataSpec(name="digits", max_images=125), seed=0)


def net(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(DigitsNet(width=8), nn.Dropout(0.2))


def trained(
    spec: TrainSpec, regularize: Callable[[nn.Module], None] | None = None
) -> tuple[dict[str, Tensor], list[Epoch], Counts]:
    """Train on the pretend GPU; return the weights, the epochs, and what the card did."""
    with pretend_cuda() as card:
        split = DeviceSplit.place(data().train, data().mean, data().std, "cuda:0", layout=torch.channels_last)
        model, teacher = net(0).to("cuda:0"), net(1).to("cuda:0")
        with card.counted() as counts:
            history = train(model, split, spec, augment="shift", seed=5, teacher=teacher, regularize=regularize)
        return {name: value.cpu() for name, value in model.state_dict().items()}, history, counts


@pytest.fixture(autouse=True)
def short_trainings_are_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raprune.training.loop.FEWEST_STEPS", 1)


@pytest.mark.parametrize(
    "changes",
    [
        {"ema": 0.9, "precision": "bfloat16"},
        pytest.param({"accumulate": 2}, marks=pytest.mark.nightly),
        pytest.param({"optimizer": "adamw", "layer_decay": 0.9, "clip": 1.0}, marks=pytest.mark.nightly),
        pytest.param({"mixup": 0.2, "cutmix": 1.0}, marks=pytest.mark.nightly),
    ],
    ids=lambda changes: ",".join(changes),
)
def test_step_as_a_graph_gives_the_weights_of_the_step_bit_for_bit(changes: dict[str, Any]) -> None:
    spec = SPEC.model_copy(update=changes)
    (graphed, epochs, few), (plain, expected, many) = (
        trained(spec.model_copy(update={"cuda_graph": on})) for on in (True, False)
    )
    assert all(torch.equal(value, plain[name]) for name, value in graphed.items())
    assert [(epoch.loss, epoch.accuracy) for epoch in epochs] == [(epoch.loss, epoch.accuracy) for epoch in expected]
    # 14 steps, of which 2 odd batches and 3 before the capture run as they are, and one more is captured.
    assert few.launches < 0.6 * many.launches
    assert few.num_waits == many.num_waits


@pytest.mark.nightly
def test_step_with_a_regulariser_that_can_be_captured_is_replayed_with_it() -> None:
    penalty = SparseGamma(strength=0.01, epochs=1.0, lr=0.1)
    (graphed, _, few), (plain, _, many) = (
        trained(SPEC.model_copy(update={"cuda_graph": on}), penalty) for on in (True, False)
    )
    assert all(torch.equal(value, plain[name]) for name, value in graphed.items())
    assert few.launches < 0.6 * many.launches


def test_step_with_another_regulariser_runs_as_it_is_and_says_why(caplog: pytest.LogCaptureFixture) -> None:
    calls: list[nn.Module] = []
    with caplog.at_level(logging.INFO, logger="raprune.training.loop"):
        trained(SPEC, calls.append)
    assert len(calls) == 14
    assert "not replayed as a CUDA graph: the regulariser's work may change" in caplog.text


def test_step_that_cannot_be_captured_runs_as_it_is_and_says_why(caplog: pytest.LogCaptureFixture) -> None:
    class Waits(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * min(1.0, float(x.detach().abs().sum()))

    def of(graph: bool) -> dict[str, Tensor]:
        with pretend_cuda():
            split = DeviceSplit.place(data().train, data().mean, data().std, "cuda:0")
            model = nn.Sequential(net(0), Waits()).to("cuda:0")
            train(model, split, SPEC.model_copy(update={"cuda_graph": graph}), augment="none", seed=5)
            return {name: value.cpu() for name, value in model.state_dict().items()}

    graphed = of(True)
    assert "not replayed as a CUDA graph: CUDA error: operation not permitted" in caplog.text
    assert all(torch.equal(graphed[name], value) for name, value in of(False).items())


def test_short_training_is_not_captured(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("raprune.training.loop.FEWEST_STEPS", 15)
    with caplog.at_level(logging.INFO, logger="raprune.training.loop"):
        trained(SPEC)
    assert "14 steps are too few" in caplog.text


@pytest.mark.parametrize(("images", "wanted"), [(1, True), (500, False)], ids=["long", "short"])
def test_cudnn_times_its_algorithms_in_long_trainings_only(
    images: int, wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raprune.training.loop.BENCHMARK_FROM", images)
    seen: list[bool] = []
    trained(SPEC, lambda model: seen.append(torch.backends.cudnn.benchmark))
    assert set(seen) == {wanted}
    assert not torch.backends.cudnn.benchmark
