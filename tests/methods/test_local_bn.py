"""Tests of local normalisation by hand, and of the transfer of beta on networks with constant channels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from raprune.channels.cut import cut
from raprune.channels.graph import ChannelGraph
from raprune.channels.trace import trace
from raprune.methods import Cut, Kept, Scores, reestimate_batch_norm
from raprune.methods.local_bn import LocalBN
from raprune.methods.slimming import Slimming
from raprune.records import Candidate
from tests.channels.networks import build, conv, image
from tests.channels.proved import proved


def no_batches() -> Iterator[tuple[Tensor, Tensor]]:
    raise AssertionError("asked for batches")


class Layers(nn.Module):
    """Convolutions one after another, each with its batch norm, and a linear head."""

    def __init__(self, *gammas: Sequence[float]) -> None:
        super().__init__()
        widths = [3, *map(len, gammas)]
        self.convs = nn.ModuleList(conv(i, o, bias=False) for i, o in pairwise(widths))
        self.norms = nn.ModuleList(nn.BatchNorm2d(len(gamma)) for gamma in gammas)
        self.head = nn.Linear(widths[-1], 5)
        with torch.no_grad():
            for norm, gamma in zip(self.norms, gammas, strict=True):
                norm.get_parameter("weight").copy_(torch.tensor(gamma))

    def forward(self, x: Tensor) -> Tensor:
        for layer, norm in zip(self.convs, self.norms, strict=True):
            x = functional.relu(norm(layer(x)))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def scored(model: nn.Module, mu: float = 1.0) -> Scores:
    return LocalBN(mu=mu).score(model, trace(model, image()), no_batches, seed=0)


# -- the score -----------------------------------------------------------------------------------------------------


def test_local_bn_score_equals_the_score_by_hand() -> None:
    model = Layers([0.2, -1.0, 0.6], [0.1, 0.05])
    scores = scored(model)
    np.testing.assert_allclose(scores["convs.0"], [0.0, 1.0, 0.5], atol=1e-7)
    np.testing.assert_allclose(scores["convs.1"], [1.0, 0.0], atol=1e-7)
    half = scored(model, mu=0.5)
    np.testing.assert_allclose(half["convs.0"], [0.1, 1.0, 0.55], atol=1e-7)
    np.testing.assert_allclose(half["convs.1"], [0.55, 0.025], atol=1e-7)


def test_without_the_local_part_it_is_slimming() -> None:
    model = Layers([0.2, -1.0, 0.6], [0.1, 4.0])
    slimming = Slimming().score(model, trace(model, image()), no_batches, seed=0)
    for name, values in scored(model, mu=0.0).items():
        np.testing.assert_allclose(values, slimming[name] / 4.0)


sizes = st.lists(st.floats(0.0, 8.0, width=16), min_size=2, max_size=6)


@settings(max_examples=25)
@given(sizes, st.floats(0.1, 10.0), st.floats(0.0, 10.0))
def test_a_layer_that_is_scaled_and_shifted_scores_the_same(gamma: list[float], factor: float, shift: float) -> None:
    one, other = Layers(gamma, [1.0]), Layers([factor * g + shift for g in gamma], [1.0])
    np.testing.assert_allclose(scored(one)["convs.0"], scored(other)["convs.0"], atol=1e-3)


@settings(max_examples=25)
@given(st.lists(sizes, min_size=1, max_size=3), st.floats(0.0, 0.999))
def test_no_threshold_below_1_empties_a_layer(gammas: list[list[float]], threshold: float) -> None:
    for values in scored(Layers(*gammas)).values():
        assert (values > threshold).any()


def test_smallest_channel_of_a_layer_has_score_zero() -> None:
    assert all(values.min() == 0.0 for values in scored(Layers([3.0, 2.0, 2.5], [0.1, 0.2])).values())


def test_equal_scales_score_one() -> None:
    assert scored(Layers([0.3, 0.3, -0.3], [1.0, 2.0]))["convs.0"].tolist() == [1.0, 1.0, 1.0]


def test_scales_of_the_same_channels_are_added_and_normalised_again() -> None:
    model = build("Residual")
    with torch.no_grad():
        model.get_parameter("stem_bn.weight").copy_(torch.tensor([1.0, 2.0, 3.0, 1.0, 1.0, 1.0, 1.0, 1.0]))
        model.get_parameter("bn2.weight").copy_(torch.tensor([100.0, 100.0, 0.0, 0.0, 0.0, 0.0, 0.0, 50.0]))
    np.testing.assert_allclose(scored(model)["stem"], np.array([1.0, 1.5, 1.0, 0.0, 0.0, 0.0, 0.0, 0.5]) / 1.5)


def test_channels_that_nothing_scales_go_last() -> None:
    assert all(values.tolist() == [1.0] * len(values) for values in scored(build("FlattenLinear")).values())


# -- the transfer of beta --------------------------------------------------------------------------------------------


class Small(nn.Module):
    """A stem of 8 channels with batch norm, the body of the subclass, and logits."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_bn = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)

    def body(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.body(functional.relu(self.stem_bn(self.stem(x))))


class Chain(Small):
    """A network with readers of all kinds: with a batch norm behind, with a bias, after pooling, after a flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(8, 6, 3, bias=False), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 7, 1), nn.BatchNorm2d(7)
        self.head = nn.Linear(7 * 4, 5)

    def body(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(torch.sigmoid(self.bn1(self.conv1(x))), 2)
        return self.head(torch.flatten(functional.gelu(self.bn2(self.conv2(x))), 1))


class BiasOnly(Small):
    """A network whose readers have no batch norm behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.head = nn.Conv2d(8, 6, 3), nn.Linear(6, 5)

    def body(self, x: Tensor) -> Tensor:
        return self.head(self.conv1(x).mean((2, 3)))


class Stream(Small):
    """A network with two writers of one residual stream, before and behind an inner layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(8, 6, 1, bias=False), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)

    def body(self, x: Tensor) -> Tensor:
        inner = functional.relu(self.bn1(self.conv1(x)))
        return self.head(functional.relu(x + self.bn2(self.conv2(inner))).mean((2, 3)))


class Joined(Small):
    """A block as in DenseNet: the concatenated channels have a batch norm before the layer that reads them."""

    def __init__(self) -> None:
        super().__init__()
        self.grow, self.bn = nn.Conv2d(8, 4, 1, bias=False), nn.BatchNorm2d(12)
        self.last, self.last_bn = nn.Conv2d(12, 6, 1, bias=False), nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 5)

    def body(self, x: Tensor) -> Tensor:
        x = functional.relu(self.bn(torch.cat([x, self.grow(x)], 1)))
        return self.head(functional.relu(self.last_bn(self.last(x))).mean((2, 3)))


class Separable(Small):
    """A network with a depthwise convolution between the channels and their readers."""

    def __init__(self) -> None:
        super().__init__()
        self.depthwise, self.bn = nn.Conv2d(8, 8, 3, groups=8, bias=False), nn.BatchNorm2d(8)
        self.pointwise, self.last_bn = nn.Conv2d(8, 6, 1, bias=False), nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 5)

    def body(self, x: Tensor) -> Tensor:
        x = functional.relu6(self.bn(self.depthwise(x)))
        return self.head(functional.relu(self.last_bn(self.pointwise(x))).mean((2, 3)))


UNPADDED = (Chain, BiasOnly, Stream, Joined, Separable)


def randomised(kind: Callable[[], nn.Module]) -> nn.Module:
    """Convert the network to float64 and randomise its batch norms."""
    generator = torch.Generator().manual_seed(3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = kind().double().eval().requires_grad_(False)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            for value in (module.bias, module.running_mean):
                value.copy_(torch.randn(len(value), generator=generator))
            module.weight.copy_(0.5 + torch.rand(len(module.weight), generator=generator))
    return model


def half_gone(graph: ChannelGraph) -> Kept:
    """Keep each second channel of every group that a layer scales."""
    return {
        group.name: tuple(range(1, group.num_channels, 2))
        for group in graph.groups
        if any("bn" in member.parameter for member in group.members)
    }


def constant_channels(model: nn.Module, graph: ChannelGraph, kept: Kept) -> None:
    """Set the scales of the channels that are not kept to 0."""
    for group in graph.groups:
        gone = np.delete(np.arange(group.num_channels), kept.get(group.name, np.arange(group.num_channels)))
        for member in group.members:
            owner, _, attribute = member.parameter.rpartition(".")
            if attribute == "weight" and isinstance(model.get_submodule(owner), nn.BatchNorm2d):
                model.get_parameter(member.parameter)[member.indices[gone].reshape(-1)] = 0.0


def drawn(count: int = 6) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def batches_of(images: Tensor, size: int = 4) -> Callable[[], Iterator[tuple[Tensor, Tensor]]]:
    return lambda: iter([(part, torch.zeros(len(part), dtype=torch.int64)) for part in images.split(size)])


def traced(model: nn.Module) -> tuple[ChannelGraph, Kept]:
    graph = trace(model, drawn(1))
    return graph, half_gone(graph)


def transferred(model: nn.Module, graph: ChannelGraph, kept: Kept, beta: str) -> nn.Module:
    smaller = cut(model, graph, Candidate("test", kept))
    method = LocalBN(beta=beta, reestimate=False)  # type: ignore[arg-type]  # parametrised
    method.repair(smaller, batches_of(drawn()) if beta == "measured" else no_batches, Cut(model, graph, kept))
    return smaller


@pytest.mark.parametrize("beta", ["analytic", "measured"])
@pytest.mark.parametrize("kind", UNPADDED)
def test_without_padding_removing_constant_channels_changes_nothing(kind: type[Small], beta: str) -> None:
    model = randomised(kind)
    graph, kept = traced(model)
    constant_channels(model, graph, kept)
    want = model(drawn())
    bare = cut(model, graph, Candidate("test", kept))
    assert float((bare(drawn()) - want).abs().max()) > 1e-3
    torch.testing.assert_close(transferred(model, graph, kept, beta)(drawn()), want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", UNPADDED)
def test_scales_that_are_not_zero_are_ablated(kind: type[Small]) -> None:
    model = randomised(kind)
    graph, kept = traced(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = transferred(model, graph, kept, "analytic")(drawn())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    constant_channels(model, graph, kept)
    torch.testing.assert_close(found, model(drawn()), rtol=0, atol=1e-12)


class Padded(Small):
    """A 3x3 convolution with zeros around the image; the output is its map."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 8, bias=False)
        self.conv1, self.bn1 = conv(8, 6, bias=False), nn.BatchNorm2d(6)

    def body(self, x: Tensor) -> Tensor:
        return self.bn1(self.conv1(x))


def padded() -> tuple[Padded, ChannelGraph, Kept]:
    model = randomised(Padded)
    assert isinstance(model, Padded)
    kept: Kept = {"stem": (1, 3, 4, 6)}
    graph = trace(model, drawn(1))
    constant_channels(model, graph, kept)
    return model, graph, kept


def test_analytic_is_exact_on_interior_pixels() -> None:
    model, graph, kept = padded()
    error = (transferred(model, graph, kept, "analytic")(drawn()) - model(drawn())).abs()
    assert float(error[:, :, 1:-1, 1:-1].max()) < 1e-12
    assert float(error.max()) > 1e-2


def test_analytic_by_its_formula() -> None:
    """The formula is delta_m = sum over pruned c of act(beta_c) * sum over taps of K[m, c]."""
    model, graph, kept = padded()
    delta = torch.zeros(6, dtype=torch.float64)
    for m in range(6):
        for c in (0, 2, 5, 7):
            delta[m] += max(0.0, model.stem_bn.bias[c].item()) * model.conv1.weight[m, c].sum().item()
    mended = transferred(model, graph, kept, "analytic")
    moved = model.get_buffer("bn1.running_mean") - mended.get_buffer("bn1.running_mean")
    torch.testing.assert_close(moved, delta)


def test_measured_is_the_mean_difference_border_and_all() -> None:
    model, graph, kept = padded()
    mended = transferred(model, graph, kept, "measured")
    bare = cut(model, graph, Candidate("test", kept))
    seen = [net.conv1(functional.relu(net.stem_bn(net.stem(drawn())))) for net in (model, bare)]
    moved = model.bn1.get_buffer("running_mean") - mended.get_buffer("bn1.running_mean")
    torch.testing.assert_close(moved, (seen[0] - seen[1]).mean((0, 2, 3)))
    assert float((mended(drawn()) - model(drawn())).mean((0, 2, 3)).abs().max()) < 1e-12


def test_only_constants_move_and_everything_else_is_put_back() -> None:
    model, graph, kept = padded()
    bare, mended = cut(model, graph, Candidate("test", kept)), transferred(model, graph, kept, "analytic")
    changed = [n for n, v in mended.state_dict().items() if not torch.equal(v, bare.state_dict()[n])]
    assert changed == ["bn1.running_mean"]
    for network in (model, mended):
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
        assert all(m.padding_mode == "zeros" for m in network.modules() if isinstance(m, nn.Conv2d))
        assert not any(module.training for module in network.modules())


def test_channels_that_nothing_scales_have_no_beta() -> None:
    model, graph = proved("FlattenLinear")
    kept = {"conv": (0, 2, 5), "hidden": (1, 2, 3)}
    bare = cut(model, graph, Candidate("test", kept))
    mended = cut(model, graph, Candidate("test", kept))
    LocalBN(reestimate=False).repair(mended, no_batches, Cut(model, graph, kept))
    torch.testing.assert_close(mended(image()), bare(image()))


def test_a_norm_across_the_channels_asks_for_images() -> None:
    """No channel is then constant for all images, so the measured transfer is used instead."""
    model, graph = proved("WrittenAttention")
    kept = {group.name: tuple(range(1, group.num_channels)) for group in graph.groups}
    found = []
    for beta in ("analytic", "measured"):
        smaller = cut(model, graph, Candidate("test", kept))
        method = LocalBN(beta=beta, reestimate=False)
        method.repair(smaller, batches_of(drawn().float()), Cut(model, graph, kept))
        found.append(smaller(image()))
    torch.testing.assert_close(*found)


def test_the_layers_that_stay_whole_need_no_name() -> None:
    model = randomised(Chain)
    graph, kept = traced(model)
    some = {"conv1": kept["conv1"]}
    constant_channels(model, graph, some)
    smaller = cut(model, graph, Candidate("test", some))
    LocalBN(reestimate=False).repair(smaller, no_batches, Cut(model, graph, some))
    torch.testing.assert_close(smaller(drawn()), model(drawn()), rtol=0, atol=1e-12)


def test_batch_norms_are_reestimated_last() -> None:
    model = randomised(Stream)
    graph, kept = traced(model)
    found = transferred(model, graph, kept, "analytic")
    reestimate_batch_norm(found, batches_of(drawn()))
    smaller = cut(model, graph, Candidate("test", kept))
    LocalBN().repair(smaller, batches_of(drawn()), Cut(model, graph, kept))
    assert all(torch.equal(value, found.state_dict()[name]) for name, value in smaller.state_dict().items())


def test_none_leaves_the_network_as_it_was_cut() -> None:
    model = randomised(Stream)
    graph, kept = traced(model)
    bare = cut(model, graph, Candidate("test", kept))
    smaller = transferred(model, graph, kept, "none")
    assert all(torch.equal(value, bare.state_dict()[name]) for name, value in smaller.state_dict().items())


def test_an_unknown_transfer_is_refused() -> None:
    with pytest.raises(ValueError, match="beta 'guessed': no such choice"):
        LocalBN(beta="guessed")  # type: ignore[arg-type]  # that it is refused is the test
