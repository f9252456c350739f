"""Tests of statistics across channels: the channels go, unless a place among them or nothing else is used."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from raprune.channels.cut import cut
from raprune.channels.graph import ChannelGraph
from raprune.channels.proof import prove
from raprune.channels.statistics import ChannelStatistics, reduced_axes
from raprune.channels.trace import trace
from raprune.records import Candidate
from tests.channels.networks import Net, conv, image
from tests.channels.proved import outputs


class Gate(Net):
    """Code between two convolutions; `code` gets the network and the map."""

    def __init__(self, code: Callable[[Gate, Tensor], Tensor]) -> None:
        super().__init__(width=6)
        self.code = code
        self.rms, self.weight, self.bias = nn.RMSNorm(8), nn.Parameter(torch.ones(8)), nn.Parameter(torch.zeros(8))
        self.look, self.last = conv(2, 1), conv(8, 6)

    def body(self, x: Tensor) -> Tensor:
        return self.last(self.code(self, functional.relu(x)))


def rms_norm(net: Gate, x: Tensor) -> Tensor:
    y: Tensor = net.rms(x.permute(0, 2, 3, 1))
    return y.permute(0, 3, 1, 2)


def written_layer_norm(net: Gate, x: Tensor) -> Tensor:
    mean = x.mean(1, keepdim=True)
    deviation = (x - mean).pow(2).mean(1, keepdim=True).add(1e-6).sqrt()
    return (x - mean) / deviation * net.weight[:, None, None] + net.bias[:, None, None]


def response_norm(net: Gate, x: Tensor) -> Tensor:
    size = x.norm(dim=(2, 3), keepdim=True)
    return x * (size / (size.mean(1, keepdim=True) + 1e-6)) * net.weight[:, None, None] + x


def unit_length(_: Gate, x: Tensor) -> Tensor:
    return functional.normalize(x + 0.5, dim=1)


def looked_at(net: Gate, x: Tensor) -> Tensor:
    """The spatial attention of CBAM."""
    maps = torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True)[0]], 1)
    return x * net.look(maps).sigmoid()


def deviation(_: Gate, x: Tensor) -> Tensor:
    return x / (x.std(1, keepdim=True, correction=0) + 1.0)


SYMMETRIC = [rms_norm, written_layer_norm, response_norm, unit_length, looked_at, deviation]


def largest_place(_: Gate, x: Tensor) -> Tensor:
    return x * x.argmax(1, keepdim=True)


def place_of_max(_: Gate, x: Tensor) -> Tensor:
    value, place = x.max(1, keepdim=True)
    return x * value * place


def width_in_python(_: Gate, x: Tensor) -> Tensor:
    return x * (x.sum(1, keepdim=True) / x.shape[1])


def proved_graph(model: nn.Module) -> ChannelGraph:
    return prove(model.eval(), trace(model, image()), image()).graph


@pytest.mark.parametrize("code", SYMMETRIC)
def test_statistics_across_channels_are_proved_and_cut(code: Callable[[Gate, Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    model = Gate(code)
    graph = proved_graph(model)
    assert graph.widths == {"stem": 8, "last": 6}
    assert not graph.by_name["stem"].maskable
    kept = {group.name: tuple(range(0, group.num_channels, 2)) for group in graph.groups}
    assert outputs(cut(model, graph, Candidate("half", kept)), image((2, 3, 12, 12))).isfinite().all()


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (largest_place, "argmax across channels"),
        (place_of_max, "the place of max across channels"),
        (width_in_python, "the cut network differs from the masked one"),
    ],
)
def test_statistics_that_follow_places_or_the_width_keep_the_channels(
    code: Callable[[Gate, Tensor], Tensor], reason: str
) -> None:
    torch.manual_seed(0)
    graph = proved_graph(Gate(code))
    assert graph.widths == {"last": 6}
    assert any(frozen.module == "stem" and reason in frozen.reason for frozen in graph.frozen)


def test_statistics_of_the_classes_alone_keep_all_classes() -> None:
    class Surest(Net):
        def forward(self, x: Tensor) -> Tensor:
            scores: Tensor = super().forward(x)
            return scores.amax(1)

    graph = proved_graph(Surest())
    assert graph.widths == {"stem": 8}
    assert any("no layer reads them" in frozen.reason for frozen in graph.frozen if frozen.module == "head")


def test_statistics_replayed_over_fewer_values_are_those_of_before() -> None:
    masked, values = torch.tensor([[0.0, 2.0, 0.0, 4.0]]), torch.tensor([[2.0, 4.0]])
    for name, value in (("mean", 1.5), ("sum", 6.0), ("amax", 4.0), ("var", 3.6667), ("amin", 0.0)):
        seen = ChannelStatistics()
        before = getattr(torch, name)(masked, 1)
        assert seen.of(name, (masked, [1]), {}, before) is before
        seen.replay()
        assert seen.of(name, (values, [1]), {}, getattr(torch, name)(values, 1)).item() == pytest.approx(value, 1e-3)
        assert seen.used
        wrong = values + 1  # no value of the masked network
        seen.replay()
        own = getattr(torch, name)(wrong, 1)
        assert seen.of(name, (wrong, [1]), {}, own).item() == pytest.approx(own.item() / (2 if name == "mean" else 1))


def test_reduced_axes_of_norms_and_means_are_counted_from_the_front() -> None:
    x = torch.zeros(2, 3, 4)
    assert reduced_axes("mean", (x, [-1, 0], True), {}) == ([0, 2], True)
    assert reduced_axes("linalg_vector_norm", (x, 2, [1]), {"keepdim": True}) == ([1], True)
    assert reduced_axes("sum", (x,), {}) == ([0, 1, 2], False)
