from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import suppress
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from raprune.channels.cut import cut
from raprune.channels.graph import ChannelGraph
from raprune.channels.trace import trace
from raprune.data import Split, load_data
from raprune.data.batches import DeviceSplit
from raprune.errors import ModelError
from raprune.models.cifar_resnet import CifarResNet
from raprune.models.cifar_vgg import CifarVGG
from raprune.models.digits import DigitsNet
from raprune.records import Candidate
from raprune.spec.job import DataSpec, TrainSpec
from raprune.training.distillation import (
    LARGEST_WEIGHT,
    Answers,
    ChannelMap,
    FeatureMaps,
    balanced_weight,
    channel_map,
    dist_loss,
    logit_loss,
    map_loss,
    teacher_in,
)
from raprune.training.epoch import Epoch
from raprune.training.loop import train


def every_second(graph: ChannelGraph) -> dict[str, tuple[int, ...]]:
    return {group.name: tuple(range(1, group.num_channels, 2)) for group in graph.groups}


def resnet() -> CifarResNet:
    torch.manual_seed(0)
    return CifarResNet(20).eval()


def test_the_logits_loss_is_hintons() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(5, 10), torch.randn(5, 10)
    soft, target = functional.softmax(student / 4, 1), functional.softmax(teacher / 4, 1)
    expected = 16 * (target * (target / soft).log()).sum(1).mean()
    assert logit_loss(student, teacher, 4.0).item() == pytest.approx(expected.item(), rel=1e-5)
    assert logit_loss(teacher, teacher, 4.0).item() == pytest.approx(0, abs=1e-6)


def test_teacher_in_bfloat16_gives_the_outputs_of_autocast_without_a_cast_of_its_weights() -> None:
    teacher, x = resnet(), torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    copied = teacher_in(torch.bfloat16, teacher)
    assert {m.weight.dtype for m in copied.modules() if isinstance(m, nn.Conv2d | nn.Linear)} == {torch.bfloat16}
    assert {m.weight.dtype for m in copied.modules() if isinstance(m, nn.BatchNorm2d)} == {torch.float32}
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        assert torch.equal(teacher(x), copied(x))
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_maps_are_compared_in_units_of_the_teachers_variance() -> None:
    teacher = torch.zeros(2, 3, 1, 2)
    teacher[:, 0] = torch.tensor([[-1.0, 1.0], [-1.0, 1.0]]).view(2, 1, 2)
    teacher[:, 1] = torch.tensor([[-3.0, 3.0], [3.0, -3.0]]).view(2, 1, 2)
    student = teacher + torch.tensor([1.0, 3.0, 0.1]).view(1, 3, 1, 1)
    # Variances 1, 9 and 0; the last counts as a hundredth of their mean, 10 / 3.
    expected = (1 / 1 + 9 / 9 + 0.01 / (10 / 300)) / 3
    assert map_loss(student, teacher, 1).item() == pytest.approx(expected, rel=1e-4)
    assert map_loss(student.movedim(1, -1), teacher.movedim(1, -1), -1).item() == pytest.approx(expected, rel=1e-4)


def test_the_points_are_the_ends_of_the_stages_and_the_channels_those_that_stay() -> None:
    dense, x = resnet(), torch.randn(1, 3, 32, 32)
    graph = trace(dense, x)
    points = channel_map(dense, graph, every_second(graph), x).points
    assert list(points) == ["layer2.0.conv1", "layer3.0.conv1", "layer3.2.conv2", "linear"]
    assert points["layer2.0.conv1"] == tuple(range(1, 16, 2))
    assert points["layer3.2.conv2"] == tuple(range(1, 64, 2))
    assert set(channel_map(dense, graph, {}, x).points.values()) == {None}
    assert not dense.training


@pytest.mark.parametrize("network", [resnet, lambda: CifarVGG(16).eval(), lambda: DigitsNet(in_channels=3).eval()])
def test_a_network_that_is_cut_of_what_is_zero_computes_the_teachers_maps(network: object) -> None:
    """If removed channels write zeros in the dense network, all channels that stay are equal at every point."""
    assert callable(network)
    dense: nn.Module = network()
    x = torch.randn(4, 3, 32, 32)
    graph = trace(dense, x[:1])
    kept = every_second(graph)
    for group in graph.groups:
        gone = [channel for channel in range(group.num_channels) if channel not in kept[group.name]]
        for member in group.members:
            tensor = dict(dense.named_parameters()).get(member.parameter)
            if tensor is not None and member.axis == 0:
                tensor.data[member.indices[gone].reshape(-1)] = 0
    student = cut(dense, graph, Candidate("l1", kept))
    channels = channel_map(dense, graph, kept, x[:1])
    maps = FeatureMaps(student, dense, channels, x.device)
    with torch.no_grad():
        student(x), dense(x)
        assert maps.loss().item() < 1e-6
        for parameter in student.parameters():
            parameter.mul_(1.1)
        student(x)
        assert maps.loss().item() > 1e-3
    maps.close()
    assert not any(module._forward_pre_hooks for model in (student, dense) for module in model.modules())


def test_maps_of_another_number_of_channels_are_an_error_that_names_the_layer() -> None:
    dense = resnet()
    maps = FeatureMaps(dense, dense, ChannelMap({"linear": (0, 1)}), torch.device("cpu"))
    dense(torch.randn(2, 3, 32, 32))
    with pytest.raises(ModelError, match="'linear'") as caught:
        maps.loss()
    assert "features = 0" in caught.value.hint
    maps.close()


def digits() -> DeviceSplit:
    data = load_data(DataSpec(name="digits", max_images=300), seed=0)
    return DeviceSplit.place(data.train, data.mean, data.std, "cpu", layout=torch.channels_last)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_training_brings_the_maps_together(accumulate: int) -> None:
    split = digits()
    torch.manual_seed(1)
    teacher = DigitsNet(width=8)
    train(teacher, split, TrainSpec(epochs=10, batch_size=32), augment="none", seed=0)
    x, _ = next(split.batches(64))
    graph = trace(teacher, x[:1])
    kept = every_second(graph)
    channels = channel_map(teacher, graph, kept, x[:1])

    def distance(features: float) -> float:
        student = cut(teacher, graph, Candidate("l1", kept))
        spec = TrainSpec(epochs=5, batch_size=32, distillation=0.0, features=features, lr=0.02, accumulate=accumulate)
        train(student, split, spec, augment="shift", seed=0, teacher=teacher, channels=channels)
        maps = FeatureMaps(student, teacher, channels, x.device)
        with torch.no_grad():
            student(x), teacher(x)
            found: Tensor = maps.loss()
        maps.close()
        return found.item()

    assert distance(5.0) < 0.7 * distance(0.0)


def test_weight_auto_gives_maps_and_rest_gradients_of_one_length_and_survives_a_resume() -> None:
    split = digits()
    torch.manual_seed(1)
    teacher = DigitsNet(width=8)
    train(teacher, split, TrainSpec(epochs=4, batch_size=32), augment="none", seed=0)
    x, _ = next(split.shuffled(32, torch.Generator().manual_seed(7)))
    graph = trace(teacher, x[:1])
    kept = every_second(graph)
    channels = channel_map(teacher, graph, kept, x[:1])
    start = cut(teacher, graph, Candidate("l1", kept))
    maps = FeatureMaps(start, teacher, channels, x.device)
    soft = logit_loss(start(x), teacher(x).detach(), 4.0)
    rest, distance = (
        norm_of(torch.autograd.grad(loss, list(start.parameters()), retain_graph=True, allow_unused=True))
        for loss in (soft, maps.loss())
    )
    maps.close()
    weight = rest / distance

    def trained(features: float | Literal["auto"], places: Kept | None = None, stop: int = 0) -> dict[str, Tensor]:
        student = cut(teacher, graph, Candidate("l1", kept))
        spec = TrainSpec(epochs=3, batch_size=32, distillation=1.0, features=features, lr=0.02)

        def told(epoch: Epoch) -> None:
            if epoch.number == stop:
                raise KeyboardInterrupt

        with suppress(KeyboardInterrupt):
            train(
                student, split, spec, augment="none", seed=7, teacher=teacher, channels=channels,
                checkpoints=places, on_epoch=told,
            )  # fmt: skip
        return student.state_dict()

    expected, by_rule = trained(weight), trained("auto")
    for name, value in expected.items():
        assert torch.allclose(by_rule[name].double(), value.double(), rtol=1e-3, atol=1e-4), name
    places = Kept()
    trained("auto", places, stop=2)
    resumed = trained("auto", places)
    assert all(torch.equal(value, resumed[name]) for name, value in by_rule.items())


def test_weight_of_equal_maps_is_zero_and_no_weight_is_huge() -> None:
    assert balanced_weight(0.5, 0.0) == 0.0
    assert balanced_weight(0.5, 0.1) == pytest.approx(5)
    assert balanced_weight(0.5, 1e-9) == LARGEST_WEIGHT


def norm_of(gradients: Iterable[Tensor | None]) -> float:
    return math.sqrt(sum(float(g.square().sum()) for g in gradients if g is not None))


class Kept:
    """Checkpoints in memory."""

    content: bytes | None = None

    def load(self) -> bytes | None:
        return self.content

    def save(self, content: bytes) -> None:
        self.content = content

    def is_due(self) -> bool:
        return True


def test_dist_loss_is_one_minus_the_correlations_of_rows_and_columns() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, teacher = torch.randn(2, 6, 5, generator=generator)
    student, target = ((values / 3.0).softmax(1).double().numpy() for values in (logits, teacher))
    rows = np.mean([np.corrcoef(student[i], target[i])[0, 1] for i in range(6)])
    columns = np.mean([np.corrcoef(student[:, c], target[:, c])[0, 1] for c in range(5)])
    assert float(dist_loss(logits, teacher, 3.0)) == pytest.approx(9 * (2 - rows - columns), rel=1e-4)


def test_dist_loss_of_the_teachers_own_outputs_is_zero() -> None:
    logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(1))
    assert float(dist_loss(logits, logits + 2.0, 1.0)) == pytest.approx(0.0, abs=1e-5)


def test_dist_loss_of_equal_outputs_has_a_finite_gradient() -> None:
    logits = torch.zeros(3, 4, requires_grad=True)
    dist_loss(logits, torch.randn(3, 4), 1.0).backward()
    assert logits.grad is not None and bool(logits.grad.isfinite().all())


def test_answers_of_a_network_that_returns_a_dict_are_not_kept() -> None:
    class Segmentation(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"out": x.float(), "aux": x.float()}

    images = np.zeros((4, 1, 8, 8), dtype=np.uint8)
    data = DeviceSplit.place(Split(images, np.zeros(4, dtype=np.int64)), (0.5,), (0.25,), "cpu")
    assert Answers.of(Segmentation(), data, 2, None) is None
    assert Answers.of(nn.Flatten(), data, 2, None) is not None
