"""Tests of the sparse training of scales, and of slimming's one threshold, by hand."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from raprune.channels.graph import ChannelGraph
from raprune.channels.trace import trace
from raprune.cost.flops import CostModel
from raprune.methods import METHODS, Regularizer, Scores
from raprune.methods.gammas import SparseGamma, scales
from raprune.methods.slimming import Slimming
from raprune.pruning.allocate import allocate
from raprune.pruning.target import Target
from raprune.spec.budget import Budget
from tests.channels.networks import build, image


def no_batches() -> Iterator[tuple[Tensor, Tensor]]:
    raise AssertionError("a data-free method asked for data")


def slimmed(model: nn.Module, graph: ChannelGraph) -> Scores:
    return Slimming().score(model, graph, no_batches, seed=0)


def two_layers(first: list[float], second: list[float]) -> nn.Module:
    """Build two convolutions with these batch-norm scales, and a linear head."""
    model = nn.Sequential(
        nn.Conv2d(3, len(first), 1, bias=False), nn.BatchNorm2d(len(first)), nn.ReLU(),
        nn.Conv2d(len(first), len(second), 1, bias=False), nn.BatchNorm2d(len(second)), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(len(second), 2),
    ).eval()  # fmt: skip
    with torch.no_grad():
        model.get_parameter("1.weight").copy_(torch.tensor(first))
        model.get_parameter("4.weight").copy_(torch.tensor(second))
    return model


def test_the_score_is_the_size_of_the_scale() -> None:
    model = two_layers([0.5, -2.0, 0.0], [0.25, 0.75])
    scores = slimmed(model, trace(model, torch.zeros(1, 3, 4, 4)))
    assert {name: values.tolist() for name, values in scores.items()} == {"0": [0.5, 2.0, 0.0], "3": [0.25, 0.75]}


def test_scales_of_the_same_channels_are_averaged() -> None:
    model = build("Residual")
    with torch.no_grad():
        model.get_parameter("stem_bn.weight").copy_(torch.arange(8.0))
        model.get_parameter("bn2.weight").copy_(-torch.arange(8.0).flip(0))
    scores = slimmed(model, trace(model, image()))
    np.testing.assert_allclose(scores["stem"], np.full(8, 3.5))
    np.testing.assert_allclose(scores["conv1"], 1.0)


def test_channels_that_nothing_scales_go_last() -> None:
    """In Transposed only `up` has a batch norm, which has the largest scale of the network."""
    model = build("Transposed")
    with torch.no_grad():
        model.get_parameter("bn.weight").copy_(torch.tensor([0.5, 3.0, 0.1, 0.2, 0.3, 0.4]))
    scores = slimmed(model, trace(model, image()))
    assert scores["up"].max() == 3.0
    assert scores["stem"].tolist() == [3.0] * 8 and scores["last"].tolist() == [3.0] * 8


def test_a_part_of_the_groups_has_the_same_scores() -> None:
    model = two_layers([0.5, -2.0, 0.0], [0.25, 0.75])
    graph = trace(model, torch.zeros(1, 3, 4, 4))
    for name in METHODS["slimming"], METHODS["local_bn"]:
        method = name()
        whole = method.score(model, graph, no_batches, seed=0)
        part = method.score(model, graph.only(["3"]), no_batches, seed=0)
        assert list(part) == ["3"] and np.array_equal(part["3"], whole["3"])


def test_one_threshold_holds_for_the_whole_network() -> None:
    """All of the first layer's channels stay and one of the second's, whose scales are all smaller."""
    model = two_layers([0.9, 0.8, 0.7, 0.6], [0.35, 0.3, 0.3, 0.1])
    graph = trace(model, torch.zeros(1, 3, 4, 4))
    cost = CostModel(graph)
    budget = Budget(flops=int(cost.flops(np.array([4, 1]))) / cost.dense_flops)
    scores, target = slimmed(model, graph), Target(budget=budget)
    widths, by_mean = (
        allocate("global_rank", cost, target, scores=scores, keep_ratios={}, comparable=comparable).tolist()
        for comparable in (Slimming.comparable, False)
    )
    assert widths == [4, 1]
    assert by_mean[1] > 1


def test_the_penalty_adds_its_sub_gradient_to_scales_alone() -> None:
    model = two_layers([0.5, -2.0, 0.0], [0.25, 0.75]).train()
    batch = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(0))

    def gradients(regularizer: Regularizer | None) -> dict[str, Tensor]:
        model.zero_grad()
        functional.cross_entropy(model(batch), torch.zeros(8, dtype=torch.int64)).backward()
        if regularizer is not None:
            regularizer(model)
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    plain, penalised = gradients(None), gradients(SparseGamma(strength=0.01, epochs=1, lr=0.1))
    assert list(scales(model)) == ["1.weight", "4.weight"]
    for name, gradient in plain.items():
        added = 0.01 * torch.sign(model.get_parameter(name).detach()) if name in scales(model) else 0.0
        torch.testing.assert_close(penalised[name], gradient + added)


def test_a_scale_without_a_gradient_is_left_alone() -> None:
    model = two_layers([0.5], [0.25])
    SparseGamma(strength=0.01, epochs=1, lr=0.1)(model)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("settings", [{}, {"strength": 0.02, "sparse_epochs": 3.0, "sparse_lr": 0.2}])
def test_equal_settings_share_one_sparse_training(settings: dict[str, float]) -> None:
    slimming, local = (METHODS[name](**settings).regularize() for name in ("slimming", "local_bn"))
    assert slimming == local and hash(slimming) == hash(local) and isinstance(slimming, SparseGamma)
    assert METHODS["slimming"](**{**settings, "strength": 0.03}).regularize() != local


def test_no_epochs_are_no_sparse_training() -> None:
    assert Slimming(sparse_epochs=0.0).regularize() is None


def test_layer_and_group_norms_have_scales_too() -> None:
    norms = nn.ModuleDict({"layer": nn.LayerNorm(4), "group": nn.GroupNorm(2, 4), "plane": nn.LayerNorm([4, 4])})
    norms["without"] = nn.BatchNorm2d(4, affine=False)
    assert list(scales(norms)) == ["layer.weight", "group.weight"]
