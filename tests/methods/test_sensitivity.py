"""Tests of sensitivity against the logits of networks whose weights were changed a little."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from raprune.methods.sensitivity import (
    SEED,
    LayerChange,
    ParameterChange,
    _signs,
    effects_of_layers,
    effects_of_parameters,
)
from tests.channels.networks import build


def images(count: int) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def random_changes(model: nn.Module) -> list[LayerChange]:
    generator = torch.Generator().manual_seed(7)
    return [
        LayerChange(
            name,
            torch.randn(module.weight.shape, generator=generator, dtype=torch.float64),
            torch.randn(len(module.weight), generator=generator, dtype=torch.float64),
        )
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]


def with_biases(name: str) -> Any:
    """Build a network of float64 whose layers all have a bias, which a change can move."""
    model = build(name).double()
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is None:
            module.bias = nn.Parameter(torch.zeros(len(module.weight), dtype=torch.float64))
    return model


@pytest.mark.parametrize("network", ["Residual", "InPlace", "Grouped", "DenseBlock", "FlattenLinear"])
def test_effect_of_layers_equals_that_of_a_small_step(network: str) -> None:
    model, x, step = with_biases(network), images(10), 1e-7
    changes = random_changes(model)
    moved = copy.deepcopy(model)
    with torch.no_grad():
        for change in changes:
            module = moved.get_submodule(change.module)
            module.weight += step * change.weight
            assert change.bias is not None
            module.bias += step * change.bias
        difference = (moved(x) - model(x)).flatten(1) / step
    along = (difference * _signs(difference, torch.Generator().manual_seed(SEED))).sum(1)
    found = effects_of_layers(model, {"all": changes, "first": changes[:1]}, x, batch_size=4)
    assert found["all"] == pytest.approx(float(along.square().mean() / 2), rel=1e-4)
    assert 0 < found["first"] != found["all"]
    assert not any(parameter.grad is not None for parameter in model.parameters())


def test_effect_of_parameters_equals_that_of_the_layers() -> None:
    model, x = with_biases("Residual"), images(6)
    changes = random_changes(model)
    of_parameters = [ParameterChange(f"{c.module}.weight", c.weight) for c in changes] + [
        ParameterChange(f"{c.module}.bias", c.bias) for c in changes if c.bias is not None
    ]
    one = effects_of_parameters(model, {0: of_parameters}, x)[0]
    assert one == pytest.approx(effects_of_layers(model, {0: changes}, x, batch_size=6)[0], rel=1e-9)


def test_mean_effect_over_signs_is_the_distance_of_the_logits_without_their_shift() -> None:
    model: Any = nn.Linear(3, 5).double()
    change = torch.randn(5, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = torch.randn(4000, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    moved = x @ change.T
    want = float((moved - moved.mean(1, keepdim=True)).square().sum(1).mean() / 2)
    found = effects_of_layers(model, {0: [LayerChange("", change)]}, x, batch_size=1000)[0]
    assert found == pytest.approx(want, rel=0.1)
    shift = effects_of_layers(model, {0: [LayerChange("", torch.zeros(5, 3), torch.ones(5))]}, x, batch_size=1000)[0]
    assert shift == pytest.approx(0.0, abs=1e-20)
