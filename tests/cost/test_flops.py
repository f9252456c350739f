"""Tests of the closed form of the costs, which equals PyTorch's count on the cut network."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torchvision import models

from raprune.channels.cut import cut
from raprune.channels.trace import trace
from raprune.cost.flops import CostModel, fractions_by_group, prunable_params_fraction
from raprune.models.cifar_resnet import CifarResNet
from raprune.records import Candidate
from tests.channels.networks import NETWORKS, image
from tests.channels.proved import candidates, counted_flops, proved


@pytest.mark.parametrize("name", NETWORKS)
@settings(max_examples=4, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_flops_and_params_of_any_candidate(name: str, data: st.DataObject) -> None:
    model, graph = proved(name)
    cost = CostModel(graph)
    candidate = data.draw(candidates(graph))
    smaller = cut(model, graph, candidate)
    widths = cost.vector(candidate.widths)
    assert int(cost.flops(widths)) == counted_flops(smaller, image())
    assert int(cost.params(widths)) == sum(p.numel() for p in smaller.parameters())


KNOWN = ("resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5", "densenet121", "convnext_tiny")


@pytest.mark.parametrize("name", KNOWN)
def test_flops_and_params_of_known_networks(name: str) -> None:
    torch.manual_seed(0)
    model = models.get_model(name, weights=None).eval()
    x = image((1, 3, 64, 64))
    graph = trace(model, x)
    cost = CostModel(graph)
    assert cost.dense_flops == counted_flops(model, x)
    assert cost.dense_params == sum(p.numel() for p in model.parameters())
    rng = np.random.default_rng(0)
    widths = rng.integers(1, cost.num_channels + 1)
    kept = {g: tuple(range(int(w))) for g, w in zip(cost.group_names, widths, strict=True)}
    smaller = cut(model, graph, Candidate("test", kept))
    assert int(cost.flops(widths)) == counted_flops(smaller, x)
    assert int(cost.params(widths)) == sum(p.numel() for p in smaller.parameters())


def test_cost_model_of_a_small_network_equals_the_count_by_hand() -> None:
    """The network is conv 3 -> 6 (3x3 on 8x8), pooling to 2x2, linear 24 -> 7 -> 5; a multiply-add counts as 2."""
    _, graph = proved("FlattenLinear")
    cost = CostModel(graph)
    assert cost.group_names == ("conv", "hidden")
    assert cost.dense_flops == 2 * (64 * 6 * 27 + 24 * 7 + 7 * 5)
    assert cost.dense_params == 6 * 27 + 6 + 24 * 7 + 7 + 7 * 5 + 5
    assert int(cost.flops([2, 3])) == 2 * (64 * 2 * 27 + 8 * 3 + 3 * 5)
    assert int(cost.params([2, 3])) == 2 * 27 + 2 + 8 * 3 + 3 + 3 * 5 + 5
    assert cost.params_by_module([2, 3]) == {"conv": 2 * 27 + 2, "hidden": 8 * 3 + 3, "head": 3 * 5 + 5}
    assert cost.flops_by_module([2, 3]) == {"conv": 2 * 64 * 2 * 27, "hidden": 2 * 8 * 3, "head": 2 * 3 * 5}


def test_many_vectors_at_once() -> None:
    graph = trace(CifarResNet(20, num_classes=10, in_channels=3), image((1, 3, 32, 32)))
    cost = CostModel(graph)
    widths = np.random.default_rng(0).integers(1, cost.num_channels + 1, (3, 50, len(cost.num_channels)))
    flops, params = cost.flops(widths), cost.params(widths)
    assert flops.shape == params.shape == (3, 50)
    assert flops.dtype == params.dtype == np.int64
    for i in range(3):
        for j in range(0, 50, 10):
            assert flops[i, j] == cost.flops(widths[i, j])
            assert params[i, j] == cost.params(widths[i, j])
            assert flops[i, j] == sum(cost.flops_by_module(widths[i, j]).values())


@settings(max_examples=50)
@given(data=st.data())
def test_a_wider_network_never_costs_less(data: st.DataObject) -> None:
    _, graph = proved(
        data.draw(st.sampled_from(["Residual", "DenseBlock", "Grouped", "WrittenAttention", "UNet", "Transformer"]))
    )
    cost = CostModel(graph)
    narrow = np.array([data.draw(st.integers(1, n)) for n in cost.num_channels.tolist()])
    wide = np.array([data.draw(st.integers(w, n)) for w, n in zip(narrow, cost.num_channels.tolist(), strict=True)])
    assert cost.flops(narrow) <= cost.flops(wide) <= cost.dense_flops
    assert cost.params(narrow) <= cost.params(wide) <= cost.dense_params


def test_the_vector_of_a_mapping() -> None:
    _, graph = proved("Residual")
    assert CostModel(graph).vector({"conv1": 2}).tolist() == [8, 2]


@pytest.mark.parametrize(("min_channels", "multiple_of", "smallest"), [(1, 1, 1), (3, 1, 3), (1, 4, 4), (5, 4, 8)])
def test_smallest_widths_follow_min_channels_and_multiple_of(
    min_channels: int, multiple_of: int, smallest: int
) -> None:
    _, graph = proved("Residual")
    narrowest = CostModel(graph).smallest(min_channels=min_channels, multiple_of=multiple_of)
    assert narrowest.tolist() == [min(8, smallest), min(6, smallest)]


def test_fractions_by_group_of_a_small_network_are_those_by_hand() -> None:
    _, graph = proved("FlattenLinear")
    cost = CostModel(graph)
    share = fractions_by_group(graph)
    assert share["conv"][0] == pytest.approx(2 * (64 * 6 * 27 + 24 * 7) / cost.dense_flops)
    assert share["conv"][1] == pytest.approx((6 * 27 + 6 + 24 * 7) / cost.dense_params)
    assert share["hidden"][1] == pytest.approx((24 * 7 + 7 + 7 * 5) / cost.dense_params)
    # All but the head's bias.
    assert prunable_params_fraction(graph) == pytest.approx(1 - 5 / cost.dense_params)


def test_a_network_without_groups() -> None:
    model, graph = proved("ChannelConstant")
    cost = CostModel(graph)
    assert cost.dense_flops == counted_flops(model, image())
    assert cost.flops(np.zeros((4, 0))).tolist() == [cost.dense_flops] * 4
    assert prunable_params_fraction(graph) == 0.0
