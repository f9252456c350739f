from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from raprune.data import Split
from raprune.data.batches import DeviceSplit
from raprune.models.lenet import LeNet5
from raprune.training.evaluate import evaluate, fitting_batch


def split(count: int = 50) -> DeviceSplit:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (count, 1, 28, 28), dtype=np.uint8)
    labels = generator.integers(0, 10, count)
    return DeviceSplit.place(Split(images, labels), (0.5,), (0.25,), "cpu")


def test_accuracy_and_loss_equal_those_of_one_batch() -> None:
    torch.manual_seed(0)
    model, data = LeNet5(), split()
    (x, y), *rest = data.batches(1000)
    assert not rest
    with torch.no_grad():
        logits = model(x)
    result = evaluate(model, data, batch_size=7)
    assert result.accuracy == (logits.argmax(1) == y).sum().item() / 50
    assert result.loss == pytest.approx(functional.cross_entropy(logits, y).item(), rel=1e-5)


def test_top_5_accuracy_of_batches_equals_that_of_one_and_is_at_least_the_metric() -> None:
    torch.manual_seed(0)
    model, data = LeNet5(num_classes=20), split()
    ((x, y),) = data.batches(1000)
    with torch.no_grad():
        found = (model(x).topk(5).indices == y[:, None]).any(1)
    result = evaluate(model, data, batch_size=7)
    assert result.further == {"top-5 accuracy": found.sum().item() / 50}
    assert result.further["top-5 accuracy"] >= result.accuracy
    assert evaluate(LeNet5(), data).further == {}


@pytest.mark.parametrize(("size", "wanted"), [(28, 2500), (32, 2500), (48, 1111), (224, 512)])
def test_batch_on_a_gpu_has_more_images_the_smaller_they_are(size: int, wanted: int) -> None:
    assert fitting_batch((size, size)) == wanted


def test_evaluation_computes_in_the_precision_that_is_asked_for() -> None:
    dtypes: list[torch.dtype] = []

    class Seen(LeNet5):
        def forward(self, x: Tensor) -> Tensor:
            logits = super().forward(x)
            dtypes.append(logits.dtype)
            return logits

    for precision in ("float32", "tf32", "bfloat16"):
        evaluate(Seen(), split(4), precision=precision)
    assert dtypes == [torch.float32, torch.float32, torch.bfloat16]


@pytest.mark.parametrize("training", [True, False])
def test_mode_statistics_and_layout_are_left_as_they_were(training: bool) -> None:
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.LazyLinear(10))
    plain = split()
    model(next(plain.batches(2))[0])
    model.train(training)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    data = DeviceSplit(plain.images, plain.labels, plain.mean, plain.scale, layout=torch.channels_last)
    evaluate(model, data)
    assert model.training is training
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])
        assert value.is_contiguous()


def test_nan_counts_as_wrong_and_the_mode_survives_an_error() -> None:
    class Nan(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.full((len(x), 10), math.nan)

    class Fails(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise ValueError("no")

    assert evaluate(Nan(), split()).accuracy == 0
    model = Fails()
    with pytest.raises(ValueError, match="no"):
        evaluate(model, split())
    assert model.training
