"""Networks that take keywords and return an object with a map in it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from raprune.channels.cut import cut
from raprune.channels.inputs import NetworkInputs, call, tensors_in
from raprune.channels.proof import prove
from raprune.channels.trace import trace
from raprune.records import Candidate
from tests.channels.hook_masking import removed_channels_zeroed


@dataclass
class Found:
    logits: Tensor
    maps: dict[str, Tensor] = field(default_factory=dict)


class Keywords(nn.Module):
    """Two inputs by name; a map of the second is in the result, so that its channels must stay."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(1, 6, 3, padding=1)
        self.shown, self.head = nn.Conv2d(6, 5, 1), nn.Linear(13, 4)

    def forward(self, images: Tensor, *, depth: Tensor, scale: float = 1.0) -> Found:
        left, right = self.left(images).relu(), self.right(depth).relu()
        shown = self.shown(right)
        pooled = torch.cat([left.mean((2, 3)), shown.mean((2, 3))], dim=1)
        return Found(self.head(pooled * scale), {"shown": shown})


@pytest.fixture(scope="module")
def inputs() -> NetworkInputs:
    random = torch.Generator().manual_seed(0)
    images, depth = (torch.randn(2, n, 12, 12, generator=random) for n in (3, 1))
    return {"images": images, "depth": depth, "scale": 0.5}


def test_network_of_keywords_that_returns_an_object_is_proved_and_cut_as_if_masked(inputs: NetworkInputs) -> None:
    torch.manual_seed(1)
    model: Any = Keywords().eval()
    graph = prove(model, trace(model, inputs), inputs).graph
    assert {group.name: group.num_channels for group in graph.groups} == {"left": 8, "right": 6}
    kept = {"left": (0, 3, 5), "right": (1, 2, 4)}
    small: Any = cut(model, graph, Candidate("test", kept))
    assert (small.left.out_channels, small.right.out_channels, small.shown.in_channels) == (3, 3, 3)
    assert (small.shown.out_channels, small.head.in_features) == (5, 8)
    with torch.no_grad(), removed_channels_zeroed(model, graph, kept):
        masked = call(model, inputs)
    with torch.no_grad():
        made = call(small, inputs)
    torch.testing.assert_close(made.logits, masked.logits)
    torch.testing.assert_close(made.maps["shown"], masked.maps["shown"])


def test_tensors_of_an_object_are_those_of_its_attributes_down_to_a_depth() -> None:
    a, b, c = (torch.full((1,), float(n)) for n in range(3))
    found = list(tensors_in([Found(a, {"b": b}), {"deeper": Found(c)}]))
    assert [int(tensor) for tensor in found] == [0, 1, 2]
    nested: Any = a
    for _ in range(6):
        nested = Found(nested)
    assert list(tensors_in(nested)) == []
