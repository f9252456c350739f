from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from raprune.data.arrays import Split
from raprune.data.batches import DeviceSplit
from raprune.spec.job import TrainSpec
from raprune.training.loop import train
from raprune.training.optimiser import STAGES, Rates, cosine, layer_scales, parameter_groups, rate


class Block(nn.Module):
    """A network with each kind of parameter: a class token, kernels, a norm, biases, and the scale of a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, 4))
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.scale = nn.Parameter(torch.ones(4, 1, 1))
        self.head = nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head((self.norm(self.conv(x)) * self.scale).mean((2, 3)) + self.token[0])
        return y


def decaying(model: nn.Module, **fields: Any) -> set[str]:
    """Names of the parameters that have weight decay."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, TrainSpec(weight_decay=0.1, **fields))
    return {names[id(p)] for group in groups if group["weight_decay"] == 0.1 for p in group["params"]}


def test_groups_of_adamw_decay_kernels_and_matrices_alone() -> None:
    assert decaying(Block(), optimizer="adamw") == {"conv.weight", "head.weight"}


def test_groups_of_sgd_decay_every_parameter_of_several_axes() -> None:
    assert decaying(Block()) == {"conv.weight", "head.weight", "token", "scale"}


def test_groups_leave_out_frozen_parameters_and_hold_all_others_once() -> None:
    model = Block()
    model.token.requires_grad_(False)
    found = [id(p) for group in parameter_groups(model, TrainSpec(layer_decay=0.5)) for p in group["params"]]
    assert sorted(found) == sorted(id(p) for p in model.parameters() if p.requires_grad)


def test_layer_scales_fall_from_the_last_layer_to_the_first_by_a_factor_a_stage() -> None:
    model = nn.Sequential(*(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)) for _ in range(STAGES + 1)))
    scales = layer_scales(model, 0.5)
    assert [scales[f"{i}.0.weight"] for i in range(STAGES + 1)] == [0.5 ** (STAGES - i) for i in range(STAGES + 1)]
    # A norm belongs to the layer before it.
    assert [scales[f"{i}.1.weight"] for i in range(STAGES)] == [scales[f"{i}.0.weight"] for i in range(STAGES)]
    assert set(layer_scales(model, 1.0).values()) == {1.0}


def test_rates_of_a_step_are_the_peak_times_the_scale_of_each_layer() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    rates = Rates(model, TrainSpec(layer_decay=0.9))
    rates.set(0.5)
    of = {id(p): group["lr"] for group in rates.optimizer.param_groups for p in group["params"]}
    assert [of[id(layer.weight)] for layer in model] == [pytest.approx(0.5 * 0.9**STAGES), 0.5]


def test_cosine_is_half_a_cosine_and_its_beginning_is_damped() -> None:
    rates = [cosine(step, 100, 0.1) for step in range(100)]
    assert rates[:10] == [pytest.approx((i + 1) / 10 * 0.5 * (1 + math.cos(math.pi * i / 100))) for i in range(10)]
    assert rates[50] == pytest.approx(0.5)
    assert 0 < rates[-1] < 1e-3
    assert cosine(0, 100, 0.0) == 1.0


@pytest.mark.parametrize("schedule", ["one-cycle", "cosine"])
def test_final_lr_is_reached_at_the_end(schedule: str) -> None:
    spec = TrainSpec.model_validate({"lr": 2.0, "schedule": schedule, "final_lr": 0.25})
    assert rate(999, 1000, spec) == pytest.approx(0.5, rel=1e-4)
    assert max(rate(step, 1000, spec) for step in range(1000)) == pytest.approx(2.0, rel=0.15)


class Linear(nn.Module):
    """A linear network from `(B, 1, 8, 8)` to ten logits, with equal weights."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((64, 10), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight


def white() -> DeviceSplit:
    """Four white images of two classes."""
    images = torch.full((4, 1, 8, 8), 255, dtype=torch.uint8).numpy()
    return DeviceSplit.place(Split(images, torch.tensor([0, 0, 1, 1]).numpy()), (0.0,), (1.0,), "cpu")


def test_step_of_adamw_equals_the_step_worked_out_by_hand() -> None:
    model = Linear()
    spec = TrainSpec(batch_size=4, optimizer="adamw", lr=0.1, weight_decay=0.2)
    train(model, white(), spec, augment="none", seed=0)
    # The first step moves by the sign of the gradient, after the decay of lr * weight_decay.
    expected = 0.5 * (1 - 0.1 * 0.2) + 0.1 * torch.tensor([1.0, 1.0] + [-1.0] * 8)
    assert torch.allclose(model.weight[0], expected, atol=1e-5)


@pytest.mark.parametrize(("clip", "factor"), [(0.1, 0.1), (100.0, None), (0.0, None)])
def test_clipped_gradients_have_at_most_the_norm(clip: float, factor: float | None) -> None:
    model = Linear()
    spec = TrainSpec(batch_size=4, lr=0.1, weight_decay=0.0, momentum=0.0, clip=clip)
    train(model, white(), spec, augment="none", seed=0)
    gradient = torch.tensor([-0.4, -0.4] + [0.1] * 8).expand(64, 10)
    norm = gradient.norm().item()
    expected = gradient * (1.0 if factor is None else factor / norm)
    assert torch.allclose(model.weight, 0.5 - 0.1 * expected, atol=1e-6)


def test_identity_of_a_training_with_earlier_fields_alone_is_that_of_earlier_versions() -> None:
    assert TrainSpec(epochs=2.0, lr=0.05).identity() == {
        "batch_size": 128,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "label_smoothing": 0.0,
        "temperature": 4.0,
        "distillation": 0.9,
        "features": 0.0,
        "warm_up": 0.15,
        "ema": 0.0,
        "accumulate": 1,
        "sync_batch_norm": None,
        "channels_last": True,
        "precision": "auto",
        "epochs": 2.0,
        "lr": 0.05,
    }
    assert TrainSpec(optimizer="adamw").identity()["optimizer"] == "adamw"
