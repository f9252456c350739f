"""Tests of l1 and l2 on two layers, by hand."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from raprune.channels.trace import trace
from raprune.methods import METHODS
from tests.channels.networks import build, image


def no_batches() -> Iterator[tuple[Tensor, Tensor]]:
    raise AssertionError("a data-free method asked for data")


def two_layers() -> nn.Module:
    """Build filters (3, -4), (1, 1), (0, 2) on two inputs, and a head without a score."""
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.Flatten(), nn.Linear(3, 2))
    with torch.no_grad():
        filters = torch.tensor([[3.0, -4.0], [1.0, 1.0], [0.0, 2.0]])
        model.get_parameter("0.weight").copy_(filters.view(3, 2, 1, 1))
        model.get_parameter("2.weight").fill_(100.0)
    return model


@pytest.mark.parametrize(
    ("method", "by_hand"),
    [("l1", np.array([7.0, 2.0, 2.0])), ("l2", np.array([5.0, np.sqrt(2.0), 2.0]))],
)
def test_magnitude_of_one_layer_equals_the_norms_by_hand(method: str, by_hand: np.ndarray) -> None:
    model = two_layers()
    graph = trace(model, torch.zeros(1, 2, 1, 1))
    scores = METHODS[method]().score(model, graph, no_batches, seed=0)
    # Ours: a layer's scores have the Euclidean norm 1.
    np.testing.assert_allclose(scores["0"], by_hand / np.linalg.norm(by_hand), rtol=1e-12)


def test_layers_that_write_the_same_channels_are_added() -> None:
    model = build("Residual")
    with torch.no_grad():
        stem, conv2 = model.get_parameter("stem.weight"), model.get_parameter("conv2.weight")
        stem.fill_(1.0)
        conv2.zero_()
        conv2[3, 0, 0, 0] = -1000.0
    scores = METHODS["l1"]().score(model, trace(model, image()), no_batches, seed=0)["stem"]
    flat = 1 / np.sqrt(8)
    # No layer drowns the other, however large its weights.
    np.testing.assert_allclose(scores, [flat, flat, flat, flat + 1, flat, flat, flat, flat], rtol=1e-6)


def test_positions_of_one_channel_are_added() -> None:
    """In Grouped a channel of `reduce` is one filter in each of the three groups."""
    model = build("Grouped")
    with torch.no_grad():
        weight = model.get_parameter("reduce.weight")
        weight.zero_()
        weight[:, 0, 0, 0] = torch.tensor([1.0, 10.0, 2.0, 20.0, 3.0, 30.0])
    scores = METHODS["l2"]().score(model, trace(model, image()), no_batches, seed=0)["reduce"]
    np.testing.assert_allclose(scores[1] / scores[0], 10.0)


def test_filters_of_a_transposed_convolution_run_along_its_second_axis() -> None:
    model = build("Transposed")
    with torch.no_grad():
        weight = model.get_parameter("up.weight")
        weight.zero_()
        weight[:, 4] = 1.0
    scores = METHODS["l1"]().score(model, trace(model, image()), no_batches, seed=0)["up"]
    np.testing.assert_allclose(scores, [0, 0, 0, 0, 1, 0])


def test_weights_of_zero_score_zero() -> None:
    model = two_layers()
    with torch.no_grad():
        model.get_parameter("0.weight").zero_()
    scores = METHODS["l2"]().score(model, trace(model, torch.zeros(1, 2, 1, 1)), no_batches, seed=0)
    assert scores["0"].tolist() == [0.0, 0.0, 0.0]
