from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from raprune.data import Split, load_data
from raprune.data.batches import DeviceSplit
from raprune.data.host import HostSplit, ImageSplit
from raprune.errors import ModelError
from raprune.models.digits import DigitsNet
from raprune.spec.job import DataSpec, TrainSpec
from raprune.training.epoch import Epoch
from raprune.training.evaluate import evaluate
from raprune.training.loop import train
from raprune.training.optimiser import one_cycle


def digits(count: int = 300) -> DeviceSplit:
    data = load_data(DataSpec(name="digits", max_images=count), seed=0)
    return DeviceSplit.place(data.train, data.mean, data.std, "cpu", layout=torch.channels_last)


def net(seed: int = 0) -> DigitsNet:
    torch.manual_seed(seed)
    return DigitsNet(width=8)


def test_train_learns_and_returns_the_results_of_each_epoch() -> None:
    split, model, seen = digits(), net(), list[Epoch]()
    history = train(model, split, TrainSpec(epochs=20, batch_size=32), augment="shift", seed=0, on_epoch=seen.append)
    assert history == seen
    assert [epoch.number for epoch in history] == list(range(1, 21))
    assert history[-1].loss < history[0].loss / 2
    assert history[-1].accuracy is not None and history[-1].accuracy > 0.85
    assert evaluate(model, split).accuracy > 0.9
    assert not model.training
    assert all(parameter.is_contiguous() for parameter in model.parameters())


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_seed_gives_the_same_weights_and_another_seed_others(dropout: float) -> None:
    split = digits()

    def trained(seed: int) -> list[Tensor]:
        model = nn.Sequential(net(), nn.Dropout(dropout))
        torch.rand(seed + 1)
        train(model, split, TrainSpec(epochs=1, batch_size=64), augment="shift-flip", seed=seed)
        return list(model.state_dict().values())

    first, again, other = trained(3), trained(3), trained(4)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_the_global_generator_is_left_alone() -> None:
    model = net()
    before = torch.get_rng_state()
    train(model, digits(), TrainSpec(epochs=0.5), augment="shift", seed=0)
    assert torch.equal(torch.get_rng_state(), before)


class Linear(nn.Module):
    """A linear network from `(B, 1, 8, 8)` to ten logits, with zero weights."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(64, 10))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight


@pytest.mark.parametrize(("epochs", "steps"), [(0.0, 0), (0.1, 1), (0.5, 4), (1.0, 8), (1.25, 10), (2.0, 16)])
def test_epochs_may_be_fractions(epochs: float, steps: int) -> None:
    calls: list[int] = []
    history = train(
        net(),
        digits(),
        TrainSpec(epochs=epochs, batch_size=32),
        augment="none",
        seed=0,
        regularize=lambda model: calls.append(1),
    )
    assert len(digits()) == 240
    assert len(calls) == steps
    assert len(history) == math.ceil(epochs)


def test_one_step_equals_the_step_worked_out_by_hand() -> None:
    images = np.full((4, 1, 8, 8), 255, dtype=np.uint8)
    split = DeviceSplit.place(Split(images, np.array([0, 0, 1, 1])), (0.0,), (1.0,), "cpu")
    model = Linear()
    with torch.no_grad():
        model.weight.fill_(0.5)
    train(model, split, TrainSpec(epochs=1, batch_size=4, lr=0.1, weight_decay=0.2), augment="none", seed=0)
    # Equal logits: the gradient is mean(softmax - one-hot) = 0.1 - 0.5 for the two labels, 0.1 for the rest.
    gradient = torch.tensor([-0.4, -0.4] + [0.1] * 8) + 0.2 * 0.5
    # The first Nesterov step moves by gradient + momentum * gradient.
    assert torch.allclose(model.weight[0], 0.5 - 0.1 * 1.9 * gradient, atol=1e-6)


def test_weights_without_gradient_do_not_shrink_when_they_are_biases_or_norms() -> None:
    model = net()
    before = {key: value.clone() for key, value in model.named_parameters()}

    def no_gradient(trained: nn.Module) -> None:
        for parameter in trained.parameters():
            assert parameter.grad is not None
            parameter.grad.zero_()

    spec = TrainSpec(epochs=1, weight_decay=0.1)
    train(model, digits(), spec, augment="none", seed=0, regularize=no_gradient)
    for key, value in model.named_parameters():
        assert torch.equal(value, before[key]) == (value.ndim == 1), key


def test_the_learning_rate_rises_in_a_line_and_falls_like_a_cosine() -> None:
    rates = [one_cycle(step, 100, 0.15) for step in range(100)]
    assert rates[0] == pytest.approx(1 / 15)
    assert rates[14] == 1.0
    assert max(rates) == 1.0
    assert rates[:15] == sorted(rates[:15])
    assert rates[14:] == sorted(rates[14:], reverse=True)
    assert 0 < rates[-1] < 1e-2
    assert [one_cycle(0, 1, 0.15), one_cycle(0, 2, 0.15)] == [1.0, 1.0]


def test_a_student_learns_from_the_teacher_alone() -> None:
    split, teacher, student = digits(), net(1), net(2)
    train(teacher, split, TrainSpec(epochs=20, batch_size=32), augment="none", seed=0)
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    spec = TrainSpec(epochs=20, batch_size=32, distillation=1.0)
    shuffled = DeviceSplit(split.images, split.labels.flip(0), split.mean, split.scale)
    train(student, shuffled, spec, augment="none", seed=0, teacher=teacher)
    # The labels were wrong: the accuracy comes from the teacher.
    assert evaluate(student, split).accuracy > 0.9
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())
    assert not teacher.training


def test_divergence_is_an_error_with_a_hint() -> None:
    with pytest.raises(ModelError, match="Training diverged in epoch 1") as caught:
        train(net(), digits(), TrainSpec(epochs=1, batch_size=16, lr=1e30), augment="none", seed=0)
    assert "learning rate" in caught.value.hint


def test_a_single_image_left_over_does_not_stop_batch_norm() -> None:
    split = digits()
    odd = DeviceSplit(split.images[:33], split.labels[:33], split.mean, split.scale)
    assert train(net(), odd, TrainSpec(epochs=1, batch_size=32), augment="none", seed=0)


@pytest.mark.parametrize(
    ("precision", "seen"), [("auto", torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16)]
)
def test_the_precision_is_that_of_the_pass_and_not_of_the_weights(precision: str, seen: torch.dtype) -> None:
    model, dtypes = net(), set[torch.dtype]()
    model.conv2.register_forward_hook(lambda module, inputs, output: dtypes.add(output.dtype))
    spec = TrainSpec.model_validate({"epochs": 1.0, "precision": precision})
    history = train(model, digits(), spec, augment="none", seed=0)
    assert dtypes == {seen}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert math.isfinite(history[-1].loss)


def two_steps(model: nn.Module, changes: dict[str, object], count: int = 64) -> list[Tensor]:
    split = digits()
    part = DeviceSplit(split.images[:count], split.labels[:count], split.mean, split.scale, split.layout)
    spec = TrainSpec.model_validate({"epochs": 2.0, "batch_size": 32, **changes})
    train(model, part, spec, augment="none", seed=0)
    return [value.clone() for value in model.state_dict().values()]


def perceptron() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))


@pytest.mark.parametrize(("parts", "count"), [(2, 64), (3, 64), (3, 61), (100, 64)])
def test_a_batch_in_parts_is_the_batch_where_there_is_no_batch_norm(parts: int, count: int) -> None:
    whole = two_steps(perceptron(), {}, count)
    split_up = two_steps(perceptron(), {"accumulate": parts}, count)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(whole, split_up, strict=True))


def test_a_batch_in_parts_goes_through_the_network_in_parts_and_through_the_optimiser_once() -> None:
    sizes, steps, model = list[int](), list[int](), net()
    model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    spec = TrainSpec(epochs=0.1, batch_size=32, accumulate=3)
    train(model, digits(), spec, augment="none", seed=0, regularize=lambda _: steps.append(1))
    assert (sizes, steps) == ([11, 11, 10], [1])


def test_the_warm_up_may_be_longer_shorter_or_none() -> None:
    rates = [one_cycle(step, 100, 0.5) for step in range(100)]
    assert rates.index(1.0) == 49
    assert one_cycle(0, 100, 0.0) == 1.0
    history = train(net(), digits(), TrainSpec(epochs=2, batch_size=240, warm_up=0.0), augment="none", seed=0)
    assert history[0].lr == TrainSpec().lr > history[1].lr


def test_label_smoothing_is_the_cross_entropy_with_smooth_labels() -> None:
    spec = TrainSpec(epochs=1, batch_size=240, label_smoothing=0.3)
    split, model = digits(), net()
    x, y = next(split.batches(240))
    logits = net().train()(x).detach()
    target = 0.7 * torch.nn.functional.one_hot(y, 10) + 0.03
    expected = -(target * logits.log_softmax(1)).sum(1).mean().item()
    assert train(model, split, spec, augment="none", seed=0)[0].loss == pytest.approx(expected, rel=1e-5)


def test_training_ends_with_the_moving_average_of_weights_and_running_statistics() -> None:
    class Recorded(nn.Module):
        """A network that records its weights at the beginning of every forward pass."""

        def __init__(self) -> None:
            super().__init__()
            self.net = net()
            self.seen: list[dict[str, Tensor]] = []

        def forward(self, x: Tensor) -> Tensor:
            self.seen.append({key: value.detach().clone() for key, value in self.net.state_dict().items()})
            logits: Tensor = self.net(x)
            return logits

    spec, model, plain = TrainSpec(epochs=3, batch_size=60, ema=0.5), Recorded(), net()
    train(model, digits(), spec, augment="none", seed=0)
    train(plain, digits(), spec.model_copy(update={"ema": 0.0}), augment="none", seed=0)
    average = {key: value.double() for key, value in model.seen[0].items()}
    # The weights of the last step equal the final weights of the training without an average.
    for step, weights in enumerate([*model.seen[1:], dict(plain.state_dict())]):
        decay = min(0.5, (1 + step) / (10 + step))
        average = {key: decay * average[key] + (1 - decay) * value.double() for key, value in weights.items()}
    for key, value in model.net.state_dict().items():
        if value.is_floating_point():
            assert torch.allclose(value.double(), average[key], atol=1e-6), key
            assert not torch.equal(value, plain.state_dict()[key]), key


@pytest.mark.parametrize("channels_last", [True, False])
def test_images_and_weights_lie_as_asked_while_training(channels_last: bool) -> None:
    model, seen = net(), set[tuple[bool, bool]]()

    def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        image, weight = (
            part.is_contiguous(memory_format=torch.channels_last) for part in (inputs[0], model.conv2.weight)
        )
        seen.add((image, weight))

    model.conv2.register_forward_pre_hook(look)
    train(model, digits(), TrainSpec(epochs=0.5, channels_last=channels_last), augment="none", seed=0)
    assert seen == {(channels_last, channels_last)}
    assert model.conv2.weight.is_contiguous()


def test_gradients_from_before_do_not_count() -> None:
    clean, stained = perceptron(), perceptron()
    for parameter in stained.parameters():
        parameter.grad = torch.ones_like(parameter)
    assert all(torch.equal(a, b) for a, b in zip(two_steps(clean, {}), two_steps(stained, {}), strict=True))


@pytest.mark.parametrize("kind", [DeviceSplit, HostSplit])
def test_teacher_that_answers_once_teaches_the_same_and_is_asked_once_an_image(kind: type[ImageSplit]) -> None:
    data = load_data(DataSpec(name="digits", max_images=150), seed=0)
    place = DeviceSplit.place if kind is DeviceSplit else HostSplit.hold
    split = place(data.train, data.mean, data.std, "cpu", layout=torch.channels_last)
    spec = TrainSpec(epochs=3, batch_size=32, distillation=0.5, precision="float32")
    asked: dict[bool, int] = {}
    weights: dict[bool, list[Tensor]] = {}
    accuracies: dict[bool, list[float | None]] = {}
    for once in (False, True):
        student, teacher, sizes = net(), net(1), list[int]()
        teacher.register_forward_hook(lambda _, inputs, output, sizes=sizes: sizes.append(len(inputs[0])))
        taught = spec.model_copy(update={"teacher_once": once})
        accuracies[once] = [e.accuracy for e in train(student, split, taught, augment="none", seed=0, teacher=teacher)]
        asked[once], weights[once] = sum(sizes), [value.double() for value in student.state_dict().values()]
    assert asked == {False: 3 * len(split), True: len(split)}
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(weights[False], weights[True], strict=True))
    assert accuracies[False] == pytest.approx(accuracies[True], abs=0.02)


@pytest.mark.parametrize("changes", [{"augment": "shift"}, {"mixup": 0.2}, {"policy": "rand"}], ids=str)
def test_teacher_is_asked_anew_where_images_change(changes: dict[str, Any]) -> None:
    split, teacher, sizes = digits(150), net(1), list[int]()
    teacher.register_forward_hook(lambda _, inputs, output: sizes.append(len(inputs[0])))
    augment = changes.pop("augment", "none")
    spec = TrainSpec.model_validate({"epochs": 2, "batch_size": 60, "teacher_once": True, **changes})
    train(net(), split, spec, augment=augment, seed=0, teacher=teacher)
    assert sum(sizes) == 2 * len(split)
