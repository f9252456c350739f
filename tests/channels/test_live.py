"""Peak activation memory: the closed form against the storages that live in a forward pass of the cut network."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from raprune.channels.cut import cut
from raprune.channels.graph import ChannelGraph
from raprune.channels.trace import trace
from raprune.cost.flops import CostModel
from raprune.cost.memory import LiveTensors
from tests.channels.networks import image
from tests.channels.proved import candidates, proved

NETWORKS = ("Residual", "Grouped", "DenseBlock", "FlattenLinear", "WrittenAttention", "Transposed", "Transformer")


def lived(model: nn.Module, x: Tensor) -> int:
    """Count the bytes at the peak of a forward pass, with the image, by its storages."""
    with torch.no_grad(), LiveTensors() as live:
        model.eval()(x.clone())
    return live.peak


@given(st.sampled_from(NETWORKS), st.data())
def test_memory_of_a_cut_network_is_that_of_its_living_storages(network: str, data: st.DataObject) -> None:
    model, graph = proved(network)
    candidate = data.draw(candidates(graph))
    cost = CostModel(graph)
    predicted = int(cost.memory_bytes(cost.vector(candidate.widths)))
    assert predicted == lived(cut(model, graph, candidate), image())


class Pooled(nn.Module):
    """Max pooling, whose indices take twice the memory of its maxima, and an addition of what was kept."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.last = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        kept = nn.functional.max_pool2d(self.first(x).relu_(), 2)
        return self.last((kept + self.second(kept)).mean((2, 3)))


def test_memory_counts_what_lives_together_worked_by_hand() -> None:
    cost = CostModel(trace(Pooled().eval(), torch.zeros(1, 3, 16, 16)))
    # At the pooling: the image, the first layer's output, the maxima in float32 and their indices in int64.
    by_hand = 4 * 3 * 256 + 4 * 8 * 256 + 4 * 8 * 64 + 8 * 8 * 64
    assert cost.dense_memory == by_hand
    assert cost.memory_by_group(cost.num_channels) == {"first": by_hand - 4 * 3 * 256, "": 4 * 3 * 256}


def test_memory_never_falls_with_a_width() -> None:
    _, graph = proved("DenseBlock")
    cost = CostModel(graph)
    for group in range(len(cost.num_channels)):
        widths = cost.num_channels.copy()
        sizes = []
        for width in range(1, int(cost.num_channels[group]) + 1):
            widths[group] = width
            sizes.append(int(cost.memory_bytes(widths)))
        assert sizes == sorted(sizes)


@pytest.mark.parametrize("network", ["Residual", "DenseBlock"])
def test_memory_of_excluded_groups_is_that_of_their_whole_width(network: str) -> None:
    _, graph = proved(network)
    name = graph.groups[0].name
    part = CostModel(graph.without({name: "excluded"}))
    whole = CostModel(graph)
    narrow = part.smallest()
    widths = dict(zip(part.group_names, narrow.tolist(), strict=True))
    assert int(part.memory_bytes(narrow)) == int(whole.memory_bytes(whole.vector(widths)))


def test_memory_does_not_change_the_identity_of_a_graph_and_is_written_with_it() -> None:
    _, graph = proved("Residual")
    again = ChannelGraph.from_json(json.loads(json.dumps(graph.to_json())))
    assert again.memory == graph.memory
    assert len(graph.memory) > 1
    assert replace(graph, memory=()).digest() == graph.digest()
