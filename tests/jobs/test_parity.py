"""Scores and choices of two devices, compared."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from acceptance.bench import Arrays
from acceptance.parity import Parity, compared, described
from torch import nn

from raprune.channels.graph import ChannelGraph
from raprune.channels.trace import trace

SCORES = [1000.0, 500.0, 10.0, 0.0]
KEPT = (0, 1)


@pytest.fixture(scope="module")
def graph() -> ChannelGraph:
    """The graph of a network with one group of four channels."""
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
    return trace(network.eval(), torch.zeros(1, 1, 4, 4))


def arrays(
    graph: ChannelGraph, *, scores: list[float] = SCORES, kept: tuple[int, ...] = KEPT, accuracy: float = 0.9
) -> Arrays:
    (group,) = graph.groups
    return described("l1", {group.name: np.array(scores)}, {group.name: kept}, accuracy, graph)


def parity(reference: Arrays, new: Arrays) -> Parity:
    found = compared("l1", reference, new)
    assert found is not None
    return found


def test_equal_results_agree(graph: ChannelGraph) -> None:
    assert parity(arrays(graph), arrays(graph)) == Parity(scores=0.0, same=1.0, accuracy=0.0)


def test_scores_are_compared_as_fractions_of_the_largest_of_their_group(graph: ChannelGraph) -> None:
    found = parity(arrays(graph), arrays(graph, scores=[1000.0, 505.0, 10.0, 0.0]))
    assert found.scores == pytest.approx(0.005, rel=1e-3)
    assert found.holds


@pytest.mark.parametrize(
    "changes",
    [
        {"scores": [1000.0, 520.0, 10.0, 0.0]},
        {"scores": [1000.0, math.nan, 10.0, 0.0]},
        {"kept": (0, 2)},
        {"accuracy": 0.88},
        {"accuracy": math.nan},
    ],
)
def test_difference_of_scores_channels_or_accuracy_fails(graph: ChannelGraph, changes: dict[str, object]) -> None:
    assert not parity(arrays(graph), arrays(graph, **changes)).holds  # type: ignore[arg-type]


def test_method_that_the_reference_lacks_is_not_compared(graph: ChannelGraph) -> None:
    assert compared("l1", {}, arrays(graph)) is None


def test_reference_of_another_network_is_refused(graph: ChannelGraph) -> None:
    reference = arrays(graph) | {"l1/scores": np.zeros(7)}
    with pytest.raises(SystemExit, match="--compare: the reference has 7 scores of l1, this run 4"):
        compared("l1", reference, arrays(graph))
