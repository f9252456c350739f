"""Blocks of a cut network that learn the outputs of the dense network's blocks."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

from raprune.channels.cut import cut
from raprune.channels.trace import trace
from raprune.methods import block_matching
from raprune.methods.block_matching import blocks_of, match_blocks
from raprune.methods.least_squares import refit
from raprune.methods.method import Cut
from raprune.methods.reconstruction import Reconstruction
from raprune.records import Candidate
from tests.pretend_cuda import pretend_cuda


class Residual(nn.Module):
    """Two convolutions whose input is added to their output."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(channels, 2 * channels, 3, padding=1)
        self.two = nn.Conv2d(2 * channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.two(torch.relu(self.one(x))))


class Squeezed(nn.Module):
    """A convolution, two layers that weigh one position, and a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(channels, channels, 3, padding=1), nn.Conv2d(channels, channels, 3, padding=1)
        self.squeeze = nn.Sequential(nn.Conv2d(channels, 2, 1), nn.ReLU(), nn.Conv2d(2, channels, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.one(x))
        return self.two(y * self.squeeze(y.mean((2, 3), keepdim=True)))


class Small(nn.Module):
    """A stem, three blocks and a head; an activation in place stands between the second and the third block."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.first, self.second, self.third = Residual(6), Residual(6), Squeezed(6)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.leaky_relu(self.second(self.first(torch.relu(self.stem(x)))), -1.0, inplace=True)
        return self.head(self.third(x).mean((2, 3)))


def images(count: int = 96) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(2))


def batches() -> Iterator[tuple[Tensor, Tensor]]:
    for part in images().split(40):
        yield part, torch.zeros(len(part), dtype=torch.int64)


def made(*, stream: bool) -> tuple[Small, nn.Module, Cut]:
    """A dense network, a narrower network after least squares, and the cut between them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        dense = Small().eval()
    graph = trace(dense, images(1))
    groups = [group for group in graph.groups if group.num_channels == 12 or (stream and group.num_channels == 6)]
    assert len({group.num_channels for group in groups}) == 1 + stream
    kept = {group.name: (0, 3, 6, 9) if group.num_channels == 12 else (0, 1, 3, 4) for group in groups}
    model = cut(dense, graph, Candidate("l1", kept))
    described = Cut(dense, graph, kept)
    refit(model, batches, described)
    return dense, model, described


def error(model: nn.Module, dense: nn.Module) -> float:
    unseen = torch.randn(200, 3, 8, 8, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        return float((model(unseen) - dense(unseen)).square().mean())


def test_blocks_are_the_modules_around_several_layers_that_weigh_positions() -> None:
    with torch.random.fork_rng(devices=[]):
        blocks = blocks_of(Small().eval(), images(2))
    assert [(block.name, block.follows) for block in blocks] == [
        ("first", None),
        ("second", "first"),
        ("third", None),  # what it reads was changed in place after the second
    ]
    assert [sorted(block.layers) for block in blocks[2:]] == [["third.one", "third.two"]]
    assert blocks[0].image_bytes == 2 * 6 * 8 * 8 * 4


@pytest.mark.parametrize(
    ("name", "count", "first"), [("mobilenet_v2", 17, "features.1"), ("convnext_tiny", 18, "features.1.0")]
)
def test_blocks_of_a_network_of_torchvision_are_its_own_with_their_shortcuts(name: str, count: int, first: str) -> None:
    with torch.device("meta"):
        model = torchvision.models.get_model(name).eval()
        blocks = blocks_of(model, torch.empty(2, 3, 64, 64))
    assert len(blocks) == count and blocks[0].name == first


@pytest.mark.parametrize(("stream", "share"), [(False, 0.9), (True, 0.97)])
def test_matched_blocks_come_closer_to_the_dense_network_than_least_squares_alone(stream: bool, share: float) -> None:
    dense, model, described = made(stream=stream)
    again = copy.deepcopy(model)
    before = error(model, dense)
    match_blocks(model, batches, described, steps=60)
    assert error(model, dense) < share * before
    match_blocks(again, batches, described, steps=60)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert torch.equal(model.get_parameter("stem.bias"), made(stream=stream)[1].get_parameter("stem.bias"))


def test_block_that_does_worse_on_images_held_out_keeps_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_matching, "LR", 1e3)
    _, model, described = made(stream=False)
    before = copy.deepcopy(model.state_dict())
    match_blocks(model, batches, described, steps=3)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_images_that_do_not_fit_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    match = block_matching._match

    def counted(module: nn.Module, x: Tensor, wanted: Tensor, *, steps: int, seed: int) -> None:
        seen.append(len(x))
        match(module, x, wanted, steps=steps, seed=seed)

    monkeypatch.setattr(block_matching, "_match", counted)
    monkeypatch.setattr(block_matching, "LARGEST", 20 * 2 * 6 * 8 * 8 * 4)
    _, model, described = made(stream=False)
    match_blocks(model, batches, described, steps=1)
    assert seen == [20, 20, 20]


def test_blocks_are_matched_on_their_device() -> None:
    dense, model, described = made(stream=True)
    expected = copy.deepcopy(model)
    match_blocks(expected, batches, described, steps=5)
    with pretend_cuda():
        described = Cut(dense.to("cuda:0"), described.graph, described.kept)
        model.to("cuda:0")
        match_blocks(model, lambda: [(x.to("cuda:0"), y.to("cuda:0")) for x, y in batches()], described, steps=5)
        values = [parameter.detach().cpu() for parameter in model.parameters()]
    for value, parameter in zip(values, expected.parameters(), strict=True):
        torch.testing.assert_close(value, parameter.detach())


def test_reconstruction_matches_blocks_only_where_steps_are_asked_for() -> None:
    dense, model, described = made(stream=False)
    assert Reconstruction().behind_scores() == Reconstruction(match_steps=3).behind_scores()
    plain, matched = copy.deepcopy(model), copy.deepcopy(model)
    Reconstruction().repair(plain, batches, described)
    Reconstruction(match_steps=60).repair(matched, batches, described)
    assert error(matched, dense) < error(plain, dense)
