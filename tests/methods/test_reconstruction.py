"""Tests of scores, weights and order against brute-force least squares, for every kind of reader."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from raprune.channels.cut import cut
from raprune.channels.graph import ChannelGraph
from raprune.channels.trace import trace
from raprune.methods.method import Cut
from raprune.methods.reconstruction import Reconstruction, Solution, _in_units_of, removal, within
from raprune.records import Candidate
from tests.channels.networks import build
from tests.channels.proved import proved

TAPS = 9


def samples(channels: int, count: int, outputs: int = 5, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Draw correlated patches and weights, float64."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(count, channels * TAPS // 2, dtype=torch.float64, generator=generator)
    mix = torch.randn(channels * TAPS // 2, channels * TAPS, dtype=torch.float64, generator=generator)
    noise = torch.randn(count, channels * TAPS, dtype=torch.float64, generator=generator)
    weight = torch.randn(channels * TAPS, outputs, dtype=torch.float64, generator=generator)
    return functional.relu(hidden @ mix) + 0.1 * noise, weight


def columns(channels: int) -> Tensor:
    return torch.arange(channels * TAPS).reshape(channels, TAPS)


def solution(x: Tensor, weight: Tensor, channels: int, *, ridge: float = 0.0) -> Solution:
    return Solution((x.T @ x)[None], weight[None], columns(channels), ridge=ridge)


def brute(x: Tensor, y: Tensor, kept: list[int]) -> tuple[float, Tensor]:
    """Return the squared error and the weights of least squares with these channels, on the patches themselves."""
    own = columns(x.shape[1] // TAPS)[kept].flatten()
    weight = torch.linalg.lstsq(x[:, own], y, driver="gelsd").solution
    return float((y - x[:, own] @ weight).square().sum()), weight


@pytest.mark.parametrize("asymmetric", [False, True])
def test_scores_order_and_weights_equal_brute_force(asymmetric: bool) -> None:
    channels, (x, weight) = 8, samples(8, 400)
    y = x @ weight
    if asymmetric:
        # The target comes from other patches than those that are left to explain it.
        y = y + torch.randn(y.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
        weight = torch.linalg.lstsq(x, y).solution
    least = float((y - x @ weight).square().sum())
    fast, left, order, total = solution(x, weight, channels), list(range(channels)), [], least
    scale = float(y.square().sum())
    while len(left) > 1:
        slow = [brute(x, y, [c for c in left if c != channel])[0] for channel in left]
        scores = fast.errors(torch.tensor(left))
        assert max(abs(total + float(e) - s) for e, s in zip(scores, slow, strict=True)) < 1e-12 * scale
        best = int(np.argmin(slow))
        assert int(scores.argmin()) == best
        total += float(scores[best])
        order.append(left.pop(best))
        fast.remove(torch.tensor([order[-1]]))
        _, weights = brute(x, y, left)
        own = fast._place[columns(channels)[left]].flatten()
        units = x.square().sum(0).sqrt()[columns(channels)[left].flatten(), None]
        torch.testing.assert_close(fast.W[0, own] / units, weights, atol=1e-10, rtol=0)
    nested, errors = removal([solution(x, weight, channels)])
    assert nested == [*order, *left]
    assert abs(errors[-2] + least - total) < 1e-12 * scale


def test_half_of_64_channels_is_what_a_fresh_fit_gives() -> None:
    """The removals compact the matrix twice."""
    x, weight = samples(64, 3000)
    fast = solution(x, weight, 64)
    order, errors = removal([solution(x, weight, 64)])
    for channel in order[:32]:
        fast.remove(torch.tensor([channel]))
    error, weights = brute(x, x @ weight, sorted(order[32:]))
    own = fast._place[columns(64)[sorted(order[32:])]].flatten()
    units = x.square().sum(0).sqrt()[columns(64)[sorted(order[32:])].flatten(), None]
    torch.testing.assert_close(fast.W[0, own] / units, weights, atol=1e-9, rtol=0)
    assert errors[31] == pytest.approx(error, rel=1e-9)


def test_a_duplicate_costs_nothing_and_its_twin_then_does() -> None:
    x, weight = samples(6, 400)
    x[:, columns(6)[4]] = x[:, columns(6)[1]]
    order, errors = removal([solution(x, weight, 6, ridge=1e-9)])
    total = float((x @ weight).square().sum())
    assert order[0] in (1, 4)
    assert errors[0] < 1e-6 * total
    assert errors[1] > 1e-3 * total


def test_dead_channels_go_first_for_nothing() -> None:
    x, weight = samples(6, 400)
    x[:, columns(6)[[2, 5]].flatten()] = 0
    order, errors = removal([solution(x, weight, 6)])
    assert sorted(order[:2]) == [2, 5]
    assert errors[:2].tolist() == [0, 0]
    assert errors[2] > 0


def test_a_channels_scale_changes_nothing() -> None:
    """This holds with a ridge too, because the ridge is relative to each column."""
    x, weight = samples(6, 400)
    scaled, divided = x.clone(), weight.clone()
    for channel, factor in enumerate([1e-3, 7.0, 1.0, 30.0, 0.2, 1e3]):
        scaled[:, columns(6)[channel]] *= factor
        divided[columns(6)[channel]] /= factor
    one, other = (removal([solution(a, w, 6, ridge=1e-4)]) for a, w in ((x, weight), (scaled, divided)))
    assert one[0] == other[0]
    np.testing.assert_allclose(one[1], other[1], rtol=1e-9)


def test_errors_of_several_readers_are_added() -> None:
    one, other = samples(6, 400, seed=1), samples(6, 400, seed=2)
    order, errors = removal([solution(*one, 6), solution(*other, 6)])
    for count in (1, 3, 5):
        left = sorted(order[count:])
        want = sum(brute(x, x @ weight, left)[0] for x, weight in (one, other))
        assert errors[count - 1] == pytest.approx(want, rel=1e-9)


def images(count: int = 32, *, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(dtype)


class Batches:
    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __call__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for part in self.x.split(12):
            yield part, torch.zeros(len(part), dtype=torch.int64)


def read_by(model: Any, name: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the layer's patches `(groups, N, P)` and outputs `(groups, N, M)`, both without their means."""
    module, seen = model.get_submodule(name), dict[str, Tensor]()
    handle = module.register_forward_hook(lambda module, inputs, output: seen.update(x=inputs[0], y=output))
    with torch.no_grad():
        model(x)
    handle.remove()
    if isinstance(module, nn.Linear):
        patches, outputs = seen["x"].flatten(0, -2)[None], seen["y"].flatten(0, -2)[None]
    else:
        unfolded = functional.unfold(seen["x"], module.kernel_size, padding=module.padding, stride=module.stride)
        patches = unfolded.transpose(1, 2).flatten(0, 1).unflatten(1, (module.groups, -1)).transpose(0, 1)
        outputs = seen["y"].flatten(2).transpose(1, 2).flatten(0, 1).unflatten(1, (module.groups, -1)).transpose(0, 1)
    return patches - patches.mean(1, keepdim=True), outputs - outputs.mean(1, keepdim=True)


def error_without(model: Any, graph: ChannelGraph, group: str, gone: list[int], x: Tensor) -> float:
    """Return the sum over readers of the squared error as a fraction of the outputs, by brute force."""
    total = 0.0
    for member in graph.by_name[group].members:
        name = member.parameter.removesuffix(".weight")
        if member.axis != 1 or not isinstance(module := dict(model.named_modules()).get(name), nn.Conv2d | nn.Linear):
            continue
        patches, outputs = read_by(model, name, x)
        taps = int(np.prod(getattr(module, "kernel_size", ())))
        lost = (member.indices[gone].reshape(-1)[:, None] * taps + np.arange(taps)).reshape(-1)
        left = np.setdiff1d(np.arange(patches.shape[2]), lost)
        fit = torch.linalg.lstsq(patches[:, :, left], outputs, driver="gelsd").solution
        total += float((outputs - patches[:, :, left] @ fit).square().sum() / outputs.square().sum())
    return total


@pytest.mark.parametrize(
    ("network", "group"),
    [
        ("Residual", "conv1"),
        ("Residual", "stem"),
        ("DenseBlock", "stem"),
        ("DenseBlock", "grow"),
        ("Grouped", "reduce"),
        ("Grouped", "grouped"),
        ("FlattenLinear", "conv"),
    ],
)
def test_curves_of_networks_equal_brute_force(network: str, group: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The readers are one layer, many layers, behind a concatenation, grouped, and behind a flatten."""
    monkeypatch.setattr("raprune.methods.moments.SURE", 0)
    model, graph = build(network).double(), proved(network)[1]
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is None:
            # So that every layer can hold its mean.
            module.bias = nn.Parameter(torch.zeros(len(module.weight), dtype=torch.float64))
    x = images(64)
    method = Reconstruction(sensitivity=0.0, ridge=1e-13)
    scores = method.score(model, graph.only([group]), Batches(x), seed=0)[group]
    order, curve = np.argsort(scores, kind="stable").tolist(), method.damage({group: scores})[group]
    for count in range(graph.by_name[group].num_channels):
        want = error_without(model, graph, group, order[:count], x)
        assert curve[count] == pytest.approx(want, rel=1e-6, abs=1e-9)
    first = [error_without(model, graph, group, [channel], x) for channel in range(len(order))]
    assert first[order[0]] == pytest.approx(min(first), rel=1e-6, abs=1e-9)


class Mixed(nn.Module):
    """The third map of `one` is the sum of the first two; no map is negative."""

    def __init__(self) -> None:
        super().__init__()
        self.one: Any
        self.one, self.two = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 5, 3, padding=1)
        self.head = nn.Linear(5, 4)
        with torch.no_grad():
            self.one.bias.fill_(20.0)
            self.one.weight[2] = self.one.weight[0] + self.one.weight[1]
            self.one.bias[2] = 40.0

    def forward(self, x: Tensor) -> Tensor:
        return self.head(functional.relu(self.two(functional.relu(self.one(x)))).mean((2, 3)))


def mixed() -> tuple[Any, ChannelGraph]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Mixed().eval()
    return model.double(), trace(Mixed().eval(), torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize("form", ["block", "map"])
def test_map_that_is_a_mix_of_others_costs_nothing_and_is_compensated(form: str) -> None:
    model, graph = mixed()
    x = images()
    method = Reconstruction(form=form, ridge=1e-10)
    scores = method.score(model, graph, Batches(x), seed=0)
    ascending = np.sort(scores["one"])
    assert ascending[0] < 1e-6 * ascending[-1]
    assert ascending[1] > 100 * ascending[0]
    kept = tuple(sorted(np.argsort(-scores["one"])[:3].tolist()))
    assert kept != (0, 1, 3) or scores["one"][2] == ascending[0]
    small = cut(model, graph, Candidate("test", {"one": kept}))
    method.repair(small, Batches(x), Cut(model, graph, {"one": kept}))
    torch.testing.assert_close(small(x), model(x), atol=1e-4, rtol=0)


def test_the_map_form_of_a_layer_by_hand() -> None:
    """Each map is a mix of the others: e_c is the rest of the map times the squares of all weights that read it."""
    model, graph = mixed()
    x = images(64)
    with torch.no_grad():
        maps = functional.relu(model.one(x)).transpose(0, 1).flatten(1)
        maps = (maps - maps.mean(1, keepdim=True))[[0, 1, 3]]
        weight = model.two.weight.transpose(0, 1).flatten(1)
    small = cut(model, graph, Candidate("test", {"one": (0, 1, 3)}))
    scores = Reconstruction(form="map", sensitivity=0.0, ridge=1e-13).score(
        small, graph.after({"one": (0, 1, 3)}), Batches(x), seed=0
    )["one"]
    weight = weight[[0, 1, 3]]
    rests = []
    for channel in range(3):
        others = [c for c in range(3) if c != channel]
        mix = torch.linalg.lstsq(maps[others].T, maps[channel]).solution
        rests.append(float((maps[channel] - mix @ maps[others]).square().sum() * weight[channel].square().sum()))
    energy = float((weight.T @ (maps @ maps.T) @ weight).trace())
    assert int(np.argmin(scores)) == int(np.argmin(rests))
    assert scores.min() == pytest.approx(min(rests) / energy, rel=1e-6)


def test_sensitivity_is_estimated_at_two_fractions_of_a_group() -> None:
    assert Reconstruction()._estimated_at(64) == (26, 51)
    assert Reconstruction()._estimated_at(2) == (1,)
    assert Reconstruction()._estimated_at(1) == ()
    assert Reconstruction(sensitivity=0.0)._estimated_at(64) == ()


def test_errors_with_sensitivity_equal_the_estimates() -> None:
    """Errors are exact where the effect was estimated, proportional between, and keep their order."""
    errors = np.array([0.1, 0.2, 0.4, 0.8, 1.6])
    rescaled = _in_units_of(errors, {2: 0.6, 4: 8.0}, 1.0)
    # After 2 removals the rate is 3, after 4 it is 10.
    np.testing.assert_allclose(rescaled, [0.3, 0.6, 0.4 * 6.5, 8.0, 16.0])
    np.testing.assert_allclose(_in_units_of(errors, {2: 0.6, 4: 8.0}, 0.5), np.sqrt(rescaled * errors))


def test_sensitivity_that_falls_keeps_the_order() -> None:
    rescaled = _in_units_of(np.array([0.1, 0.2, 0.2, 0.4]), {1: 10.0, 3: 0.002}, 1.0)
    assert rescaled[0] < rescaled[1] == rescaled[2] < rescaled[3]
    assert np.array_equal(_in_units_of(np.zeros(3), {1: 0.5}, 1.0), np.zeros(3))


def test_error_budget_limits_the_removals_of_a_group() -> None:
    scores = {"a": np.array([0.3, 0.1, 4.0, 1.0])}
    assert Reconstruction().damage(scores)["a"].tolist() == [0.0, 0.1, 0.3, 1.0, 4.0]
    assert within(np.array([0.0, 0.1, 0.3, 1.0, 4.0]), 0.25) == 3
    damage = Reconstruction(error_budget=0.25).damage(scores)["a"]
    assert damage[:4].tolist() == [0.0, 0.1, 0.3, 1.0]
    assert damage[4] == pytest.approx(4.0 + 1000 * 3.0)


def test_scores_of_a_group_do_not_ask_for_the_others() -> None:
    model, graph = proved("DenseBlock")
    batches = Batches(images(dtype=torch.float32))
    whole = Reconstruction().score(model, graph, batches, seed=0)
    for group in graph.groups:
        alone = Reconstruction().score(model, graph.only([group.name]), batches, seed=0)
        assert alone[group.name].tolist() == whole[group.name].tolist()


def test_a_group_that_no_layer_reads_is_rated_by_its_filters() -> None:
    model, graph = proved("WrittenAttention")
    scores = Reconstruction().score(model, graph, Batches(images(dtype=torch.float32)), seed=0)
    assert all(values.max() > 0 for values in scores.values())
