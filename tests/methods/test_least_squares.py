"""Tests of refitted weights against least squares by hand, layer by layer."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from raprune.channels.cut import cut
from raprune.channels.graph import ChannelGraph
from raprune.channels.proof import prove
from raprune.channels.trace import trace
from raprune.methods.least_squares import refit
from raprune.methods.method import Batches, Cut, reestimate_batch_norm
from raprune.methods.moments import Halves, Moments, solved
from raprune.records import Candidate
from tests.channels.networks import Attention, Transformer, build
from tests.channels.proved import proved
from tests.pretend_cuda import pretend_cuda


class Chain(nn.Module):
    """Two convolutions with a bias, the second one strided, and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 5, 3, stride=2, padding=1)
        self.head = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.two(functional.relu(self.one(x))))
        return self.head(x.mean((2, 3)))


class Wide(nn.Module):
    """A head that reads more channels than there are images."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 64, 3, padding=1)
        self.head = nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(functional.relu(self.two(functional.relu(self.one(x)))).amax((2, 3)))


class Branch(nn.Module):
    """A stem and a residual branch with batch norms."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.one, self.norm1 = nn.Conv2d(4, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.two, self.norm2 = nn.Conv2d(6, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.three = nn.Conv2d(4, 6, 3, padding=1, bias=False)
        self.norm3, self.four = nn.BatchNorm2d(6), nn.Conv2d(6, 4, 1, bias=False)
        self.norm4, self.head = nn.BatchNorm2d(4), nn.Linear(4, 3)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.1)
                nn.init.normal_(module.running_mean, std=0.1)  # type: ignore[arg-type]  # a batch norm of PyTorch's has one
                nn.init.uniform_(module.running_var, 0.5, 1.5)  # type: ignore[arg-type]  # as above

    def branch(self, x: Tensor) -> Tensor:
        return self.norm2(self.two(functional.relu(self.norm1(self.one(x)))))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = functional.relu(self.branch(x) + x)
        x = functional.relu(self.norm4(self.four(functional.relu(self.norm3(self.three(x))))) + x)
        return self.head(x.mean((2, 3)))


class Pyramid(nn.Module):
    """Two layers that run once for each of three maps, as the head of a detector; the maps have different sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.one, self.two = nn.Conv2d(6, 7, 3, padding=1), nn.Conv2d(7, 4, 3, padding=1)
        self.after = nn.Conv1d(4, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        found = []
        for one in [x, functional.avg_pool2d(x, 2), functional.relu(functional.avg_pool2d(x, 4))]:
            found.append(self.two(functional.relu(self.one(one))).flatten(2))
            # As another part of a network may do, once the head has read the map.
            functional.relu_(one)
        return self.after(torch.cat(found, 2))


class PyramidNormed(nn.Module):
    """A layer whose runs have a batch norm each, and one whose runs share theirs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.apart, self.norms = nn.Conv2d(6, 5, 3, padding=1), nn.ModuleList([nn.BatchNorm2d(5), nn.BatchNorm2d(5)])
        self.together, self.norm = nn.Conv2d(6, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.stem(x))
        maps = [x, functional.avg_pool2d(x, 2)]
        apart = [norm(self.apart(one)).mean((2, 3)) for norm, one in zip(self.norms, maps, strict=True)]
        return torch.cat([*apart, *(self.norm(self.together(one)).mean((2, 3)) for one in maps)], 1)


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """The ridge that was asked for, however few the samples are, in tests without the fixture `few_samples`."""
    if "few_samples" not in request.fixturenames:
        monkeypatch.setattr("raprune.methods.moments.SURE", 0)


@pytest.fixture
def few_samples() -> None:
    """Layers with few samples choose their ridge."""


def made(kind: type[nn.Module], seed: int = 0) -> tuple[Any, ChannelGraph]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind().eval()
    graph = trace(model, torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(1)))
    return model.double(), graph


def images(count: int = 24, *, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(dtype)


def in_batches(x: Tensor) -> Batches:
    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for part in x.split(10):
            yield part, torch.zeros(len(part), dtype=torch.int64)

    return batches


def patches(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Return the patches, `(B * positions, weights of a filter)`."""
    read = functional.unfold(x, conv.kernel_size, padding=conv.padding, stride=conv.stride)  # type: ignore[arg-type]
    return read.transpose(1, 2).reshape(-1, read.shape[1])


def rows(y: Tensor) -> Tensor:
    return y.movedim(1, -1).reshape(-1, y.shape[1])


def fitted(read: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Return weights `(M, P)` and bias `(M,)` by PyTorch's own least squares, with a column of ones."""
    ones = torch.ones(len(read), 1, dtype=read.dtype)
    solution = torch.linalg.lstsq(torch.cat([read, ones], 1), wanted).solution
    return solution[:-1].T, solution[-1]


def cut_to(model: nn.Module, graph: ChannelGraph, kept: dict[str, tuple[int, ...]]) -> tuple[Any, Cut]:
    return cut(model, graph, Candidate("test", kept)), Cut(model, graph, kept)


def test_symmetric_is_least_squares_on_the_dense_networks_inputs() -> None:
    dense, graph = made(Chain)
    small, how = cut_to(dense, graph, {"one": (0, 2, 3)})
    x = images()
    refit(small, in_batches(x), how, asymmetric=False, ridge=1e-14)
    with torch.no_grad():
        read = functional.relu(dense.one(x))
        weight, bias = fitted(patches(small.two, read[:, [0, 2, 3]]), rows(dense.two(read)))
    torch.testing.assert_close(small.two.weight.detach(), weight.reshape(5, 3, 3, 3), atol=1e-8, rtol=0)
    torch.testing.assert_close(small.two.bias.detach(), bias, atol=1e-8, rtol=0)
    # What reads all that it read before is as it was.
    torch.testing.assert_close(small.head.weight, dense.head.weight, atol=1e-8, rtol=0)


def test_asymmetric_goes_front_to_back_over_what_is_refitted_already() -> None:
    dense, graph = made(Chain)
    small, how = cut_to(dense, graph, {"one": (0, 2, 3), "two": (0, 1, 2, 4)})
    x = images(60)
    refit(small, in_batches(x), how, ridge=1e-14)
    with torch.no_grad():
        hidden = functional.relu(dense.one(x))
        target = dense.two(hidden)
        here = functional.relu(dense.one(x)[:, [0, 2, 3]])
        weight, bias = fitted(patches(small.two, here), rows(target[:, [0, 1, 2, 4]]))
        torch.testing.assert_close(small.two.weight, weight.reshape(4, 3, 3, 3), atol=1e-8, rtol=0)
        pooled = functional.relu(functional.conv2d(here, weight.reshape(4, 3, 3, 3), bias, stride=2, padding=1))
        weight, bias = fitted(pooled.mean((2, 3)), dense(x))
    torch.testing.assert_close(small.head.weight.detach(), weight, atol=1e-8, rtol=0)
    torch.testing.assert_close(small.head.bias.detach(), bias, atol=1e-8, rtol=0)


def test_refit_of_the_end_of_a_branch_compensates_for_the_stream() -> None:
    """Both branches are cut; the last layer of the second branch is fitted to the stream, through its batch norm."""
    dense, graph = made(Branch)
    small, how = cut_to(dense, graph, {"one": (1, 4), "three": (0, 3, 5)})
    x = images(60)
    with torch.no_grad():
        stem = dense.stem(x)
        first = functional.relu(dense.branch(stem) + stem)
        inner = functional.relu(dense.norm3(dense.three(first)))
        after = dense.norm4(dense.four(inner)) + first
    refit(small, in_batches(x), how, ridge=1e-14)
    with torch.no_grad():
        here = functional.relu(small.branch(stem) + stem)
        read = functional.relu(small.norm3(small.three(here)))
        scale = dense.norm4.weight / (dense.norm4.running_var + dense.norm4.eps).sqrt()
        wanted = (after - here - dense.norm4.bias[:, None, None]) / scale[:, None, None]
        weight, bias = fitted(rows(read), rows(wanted))
        error = (small.norm4(small.four(read)) + here - after).square().mean()
        alone, offset = fitted(rows(read), rows(dense.four(inner) - dense.norm4.running_mean[:, None, None]))
        best_alone = (rows(read) @ alone.T + offset) * scale + dense.norm4.bias + rows(here) - rows(after)
    torch.testing.assert_close(small.four.weight.detach()[:, :, 0, 0], weight, atol=1e-8, rtol=0)
    # The batch norm holds the mean, and keeps the dense network's variance.
    torch.testing.assert_close(small.norm4.running_mean, -bias, atol=1e-8, rtol=0)
    torch.testing.assert_close(small.norm4.running_var, dense.norm4.running_var)
    assert error < best_alone.square().mean() - 1e-6


def test_layers_that_read_no_cut_group_are_refitted_behind_the_cut() -> None:
    dense, graph = made(Branch)
    small, how = cut_to(dense, graph, {"one": (1, 4)})
    refit(small, in_batches(images()), how)
    assert not torch.allclose(small.three.weight, dense.three.weight, atol=1e-3)
    torch.testing.assert_close(small.stem.weight, dense.stem.weight, atol=1e-6, rtol=0)


@pytest.mark.parametrize("asymmetric", [True, False])
def test_refit_of_attention_keeps_the_scale_of_the_queries(asymmetric: bool) -> None:
    """Widths that were zero go; the layers behind the first cut then fit the dense network without an error."""
    torch.manual_seed(0)
    model = Transformer(nn.Sequential(Attention(), Attention())).eval()
    with torch.no_grad():
        for block in ("attention.0", "attention.1"):
            model.get_parameter(f"{block}.qkv.weight").view(3, 3, 4, 10)[:, :, 1:] = 0
            model.get_parameter(f"{block}.qkv.bias").view(3, 3, 4)[:, :, 1:] = 0
    image = torch.randn(1, 3, 8, 8)
    graph = prove(model, trace(model, image), image).graph
    kept = {"attention.0.qkv": (0,), "attention.1.qkv": (0,)}
    smaller, images = cut(model, graph, Candidate("test", kept)), torch.randn(32, 3, 8, 8)
    refit(
        smaller,
        lambda: iter([(images, torch.zeros(32))]),
        Cut(dense=model, graph=graph, kept=kept),
        asymmetric=asymmetric,
    )
    torch.testing.assert_close(smaller(images), model(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("asymmetric", [True, False])
def test_layer_that_runs_several_times_has_one_problem_for_all_of_its_runs(asymmetric: bool) -> None:
    """The patches of all maps together, every position counted alike; then what reads their outputs."""
    dense, graph = made(Pyramid)
    kept = {"stem": (0, 1, 3, 5), "one": (0, 1, 2, 4, 6)}
    small, how = cut_to(dense, graph, kept)
    x = images(60)
    refit(small, in_batches(x), how, asymmetric=asymmetric, ridge=1e-14)

    def maps(stem: Tensor) -> list[Tensor]:
        return [stem, functional.avg_pool2d(stem, 2), functional.relu(functional.avg_pool2d(stem, 4))]

    with torch.no_grad():
        inputs = maps(dense.stem(x))
        read = torch.cat([patches(small.one, one[:, list(kept["stem"])]) for one in inputs])
        outputs = [dense.one(one) for one in inputs]
        wanted = torch.cat([rows(y[:, list(kept["one"])]) for y in outputs])
        weight, bias = fitted(read, wanted)
        torch.testing.assert_close(small.one.weight, weight.reshape(5, 4, 3, 3), atol=1e-7, rtol=0)
        torch.testing.assert_close(small.one.bias, bias, atol=1e-7, rtol=0)
        now = [small.one(one[:, list(kept["stem"])]) for one in inputs]
        hidden = [y if asymmetric else z[:, list(kept["one"])] for y, z in zip(now, outputs, strict=True)]
        read = torch.cat([patches(small.two, functional.relu(y)) for y in hidden])
        weight, bias = fitted(read, torch.cat([rows(dense.two(functional.relu(y))) for y in outputs]))
    torch.testing.assert_close(small.two.weight.detach(), weight.reshape(4, 5, 3, 3), atol=1e-7, rtol=0)
    torch.testing.assert_close(small.two.bias.detach(), bias, atol=1e-7, rtol=0)
    assert not torch.equal(small.after.weight, dense.after.weight) or not asymmetric


def test_layers_whose_runs_have_other_batch_norms_keep_their_weights() -> None:
    dense, graph = made(PyramidNormed)
    small, how = cut_to(dense, graph, {"stem": (0, 1, 3, 5)})
    bare, x = copy.deepcopy(small), images(60)
    refit(small, in_batches(x), how)
    assert torch.equal(small.apart.weight, bare.apart.weight)
    assert not torch.allclose(small.together.weight, bare.together.weight, atol=1e-3)
    with torch.no_grad():
        error, bare_error = ((net(x) - dense(x))[:, 10:].square().sum() for net in (small, bare))
    assert error < 0.8 * bare_error


@pytest.mark.parametrize("asymmetric", [True, False])
def test_refit_without_a_cut_changes_nothing(asymmetric: bool) -> None:
    dense, graph = made(Branch)
    small, how = cut_to(dense, graph, {"one": tuple(range(6))})
    refit(small, in_batches(images()), how, asymmetric=asymmetric)
    assert all(torch.equal(value, dense.state_dict()[name]) for name, value in small.state_dict().items())


@pytest.mark.parametrize("asymmetric", [True, False])
@pytest.mark.parametrize(
    "network", ["Residual", "Grouped", "DenseBlock", "FlattenLinear", "SharedModule", "Transposed", "Depthwise"]
)
def test_refit_comes_closer_to_the_dense_network_than_the_bare_cut(network: str, asymmetric: bool) -> None:
    dense, graph = build(network), proved(network)[1]
    # A trained network's batch norms know its data.
    reestimate_batch_norm(dense, in_batches(images(40, dtype=torch.float32)))
    kept = {group.name: tuple(range(max(1, 3 * group.num_channels // 4))) for group in graph.groups}
    bare, how = cut_to(dense, graph, kept)
    small = copy.deepcopy(bare)
    x = images(40, dtype=torch.float32)
    refit(small, in_batches(x), how, asymmetric=asymmetric)
    with torch.no_grad():
        error, bare_error = ((net(x) - dense(x)).square().sum() for net in (small, bare))
    assert error < 0.8 * bare_error


@pytest.mark.parametrize("network", ["SharedParameter", "StandardisedWeight", "NormedWeight", "Windows"])
def test_layers_that_have_no_weight_of_their_own_are_left_alone(network: str) -> None:
    dense, graph = build(network), proved(network)[1]
    kept = {group.name: tuple(range(max(1, group.num_channels // 2))) for group in graph.groups}
    small, how = cut_to(dense, graph, kept)
    bare, x = copy.deepcopy(small), images(40, dtype=torch.float32)
    refit(small, in_batches(x), how)
    with torch.no_grad():
        error, bare_error = ((net(x) - dense(x)).square().sum() for net in (small, bare))
    assert error < bare_error


@pytest.mark.parametrize("network", ["DenseBlock", "FlattenLinear", "Chain", "Grouped"])
def test_refit_compensates_for_a_channel_that_equals_another(network: str) -> None:
    dense, graph = made(Chain) if network == "Chain" else (build(network).double(), proved(network)[1])
    first = graph.groups[1] if network == "Grouped" else graph.groups[0]
    with torch.no_grad():
        for member in first.members:
            if not member.parameter.endswith("weight") or member.axis == 0:
                # Channel 1 becomes channel 0, in whatever makes or scales them.
                tensor = dense.state_dict()[member.parameter].movedim(member.axis, 0)
                tensor[member.indices[1]] = tensor[member.indices[0]]
                bias = dense.state_dict().get(member.parameter.replace("weight", "bias"))
                if bias is not None:
                    bias[member.indices[1]] = bias[member.indices[0]]
    small, how = cut_to(dense, graph, {first.name: tuple(c for c in range(first.num_channels) if c != 1)})
    refit(small, in_batches(images(40)), how, ridge=1e-12)
    with torch.no_grad():
        x = images()
        torch.testing.assert_close(small(x), dense(x), atol=1e-5, rtol=0)


class Own(nn.Module):
    """A network that adds a tensor to its own transform, which has read the tensor before the addition."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.inner = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1)
        self.outer, self.head = nn.Conv2d(6, 4, 1), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(x)
        x = x + functional.relu_(self.outer(functional.relu(self.inner(x))))
        return self.head(x.mean((2, 3)))


def test_structure_tensor_read_before_its_addition_ends_no_branch() -> None:
    """A tensor that an activation changed in place ends no branch either: here no layer ends a branch."""
    dense, graph = made(Own)
    small, how = cut_to(dense, graph, {"inner": (0, 1, 2, 5)})
    x = images()
    refit(small, in_batches(x), how, ridge=1e-14)
    with torch.no_grad():
        inner = functional.relu(dense.inner(dense.down(x)))
        weight, _ = fitted(rows(inner[:, [0, 1, 2, 5]]), rows(dense.outer(inner)))
    torch.testing.assert_close(small.down.weight, dense.down.weight, atol=1e-8, rtol=0)
    torch.testing.assert_close(small.outer.weight.detach()[:, :, 0, 0], weight, atol=1e-8, rtol=0)


def test_a_dead_channel_keeps_its_weights() -> None:
    dense, graph = made(Chain)
    with torch.no_grad():
        dense.one.weight[2] = 0
        dense.one.bias[2] = -1
    small, how = cut_to(dense, graph, {"one": (0, 2, 3)})
    refit(small, in_batches(images()), how)
    torch.testing.assert_close(small.two.weight[:, 1], dense.two.weight[:, 2])


def test_a_large_ridge_keeps_the_weights() -> None:
    dense, graph = made(Chain)
    small, how = cut_to(dense, graph, {"one": (0, 2, 3)})
    refit(small, in_batches(images()), how, ridge=1e9)
    torch.testing.assert_close(small.two.weight, dense.two.weight[:, [0, 2, 3]], atol=1e-6, rtol=0)


def halves_of(read: Tensor, rest: Tensor) -> Halves:
    halves = Halves()
    for place, part in enumerate(halves.parts):
        part.add(read[place::2][None], rest[place::2][None])
    return halves


def system(sums: Moments) -> tuple[Tensor, Tensor]:
    return sums.gram(centred=False), sums.cross(centred=False)


@pytest.mark.usefixtures("few_samples")
def test_ridge_of_few_samples_is_large_for_noise_and_small_for_what_can_be_explained() -> None:
    generator = torch.Generator().manual_seed(0)
    read = torch.randn(60, 40, generator=generator, dtype=torch.float64)
    noise = torch.randn(60, 3, generator=generator, dtype=torch.float64)
    assert halves_of(read, noise).ridge_for(40, 1e-6, system) >= 1.0
    few = read[:, :4]
    explained = few @ torch.randn(4, 3, generator=generator, dtype=torch.float64)
    assert halves_of(few, explained).ridge_for(4, 1e-6, system) == 1e-6


@pytest.mark.usefixtures("few_samples")
def test_refit_on_fewer_images_than_features_keeps_the_network_near_the_dense_one() -> None:
    """A head of 64 features, fitted to 24 images, would fit them and no others."""
    dense, graph = made(Wide)
    small, how = cut_to(dense, graph, {"two": tuple(range(1, 64))})
    interpolating = copy.deepcopy(small)
    refit(small, in_batches(images()), how)
    new = torch.randn(200, 3, 8, 8, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("raprune.methods.moments.SURE", 0)
        refit(interpolating, in_batches(images()), how)
    with torch.no_grad():
        error, other = ((model(new) - dense(new)).square().mean() for model in (small, interpolating))
    assert error < other


def test_the_ridge_grows_until_it_can_be_solved() -> None:
    x = torch.randn(50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = torch.cat([x, x[:, :1], torch.zeros(50, 1, dtype=torch.float64)], 1)
    change = solved((x.T @ x)[None], (x.T @ x[:, :2])[None], 0.0)[0]
    torch.testing.assert_close(x @ change, x[:, :2], atol=1e-6, rtol=0)
    assert torch.equal(change[4], torch.zeros(2, dtype=torch.float64))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_system_that_is_not_finite_ends_with_an_error(bad: float) -> None:
    """A network that diverged, or one overflow among its activations, held the worker for ever."""
    gram = torch.eye(3, dtype=torch.float64)[None].clone()
    gram[0, 0, 1] = gram[0, 1, 0] = bad
    with pytest.raises(FloatingPointError, match="not finite"):
        solved(gram, torch.ones(1, 3, 1, dtype=torch.float64), 0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_modes_and_hooks_are_left_as_they_were(dtype: torch.dtype) -> None:
    dense, graph = made(Branch)
    dense = dense.to(dtype)
    small, how = cut_to(dense, graph, {"one": (1, 4)})
    small.train()
    refit(small, in_batches(images(dtype=dtype)), how)
    for network in (small, dense):
        modules = list(network.modules())
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in modules)
        assert all(module.training is (network is small) for module in modules)
    assert all(value.dtype == dtype and value.isfinite().all() for value in small.parameters())


@pytest.mark.parametrize(
    ("network", "room"),
    [
        ("Branch", 1),
        ("Pyramid", 1),
        *((n, 500_000) for n in ("Chain", "Branch", "Pyramid", "Residual", "Grouped", "DenseBlock", "FlattenLinear")),
    ],
)
def test_refit_in_chunks_of_images_gives_the_weights_of_all_images_at_once(
    network: str, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raprune.methods.patches.CHUNK", 2**14)
    own = {"Chain": Chain, "Branch": Branch, "Pyramid": Pyramid}
    dense, graph = made(own[network]) if network in own else (build(network).double(), proved(network)[1])
    kept = {group.name: tuple(range(max(1, 3 * group.num_channels // 4))) for group in graph.groups}
    whole, how = cut_to(dense, graph, kept)
    chunked = copy.deepcopy(whole)
    refit(whole, in_batches(images()), how)
    refit(chunked, in_batches(images()), replace(how, room=room))
    for name, value in chunked.state_dict().items():
        torch.testing.assert_close(value, whole.state_dict()[name], atol=1e-10, rtol=0)


def test_refit_in_chunks_of_images_stays_within_its_room_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raprune.methods.patches.CHUNK", 2**15)
    dense, graph = made(Branch)
    peaks, most = [], 5 * 2**19
    for room in (None, most):
        small, how = cut_to(dense, graph, {"one": (1, 4)})
        with pretend_cuda() as card:
            on_card = replace(how, dense=copy.deepcopy(dense).to("cuda:0"), room=room)
            small, x = small.to("cuda:0"), images(200).to("cuda:0")
            before = card.used
            card.peak = before
            refit(small, in_batches(x), on_card)
            peaks.append(card.peak - before)
    assert peaks[1] <= most < peaks[0]


def test_images_that_a_refit_leaves_out_are_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("raprune.methods.least_squares.LARGEST", 10 * 6 * 8 * 8 * 8)
    dense, graph = made(Branch)
    small, how = cut_to(dense, graph, {"one": (1, 4)})
    refit(small, in_batches(images()), how)
    assert "10 of 24 calibration images are used, the others are left out" in caplog.text
