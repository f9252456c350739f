"""Tests of the counts, survivors and path of maxout units, by hand and by slow direct computations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from raprune.channels.cut import cut
from raprune.channels.graph import ChannelGraph
from raprune.channels.maxout import insert, inserted
from raprune.channels.members import Group, Member
from raprune.channels.trace import trace
from raprune.checks.contract.networks import NETWORKS, build, conv, graph_of
from raprune.checks.contract.noise import services_of
from raprune.methods import Network, Step
from raprune.methods.maxout import Maxout, survivors, wins, zero_smallest
from raprune.records import Candidate


class TwoLayers(nn.Module):
    """A hidden layer, dropout, and a layer that reads it; with or without a ReLU between them."""

    def __init__(self, hidden: int, seen: int, *, relu: bool) -> None:
        super().__init__()
        self.hidden, self.drop, self.head = nn.Linear(1, hidden, bias=False), nn.Dropout(0.5), nn.Linear(seen, 2)
        self.activation = nn.ReLU(inplace=True) if relu else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.drop(self.activation(self.hidden(x))))
        return logits


def with_units(weights: list[float], *, relu: bool, candidates: int) -> tuple[TwoLayers, ChannelGraph]:
    """Build a hidden layer of these weights by units; return it with the graph of its reader."""
    count = len(weights) // candidates
    model = TwoLayers(len(weights), count, relu=relu)
    model.hidden.weight.data = torch.tensor(weights, dtype=torch.float32)[:, None]
    insert(model, {"hidden": candidates})
    reader = Member("head.weight", 1, np.arange(count)[:, None])
    return model, ChannelGraph("", (1,), (Group("hidden", count, (reader,)),), (), (), (), ())


def counted(weights: list[float], samples: list[float], *, relu: bool, candidates: int = 2) -> list[list[float]]:
    """Count the wins over samples of one number each."""
    model, outer = with_units(weights, relu=relu, candidates=candidates)
    # Two batches, the last of one sample.
    parts = [torch.tensor(part, dtype=torch.float32)[:, None] for part in (samples[:-1], samples[-1:])]
    batches = [(part, torch.zeros(len(part), dtype=torch.int64)) for part in parts]
    counts = wins(model.train(), {"hidden": "hidden"}, candidates, outer, lambda: batches)
    assert len(model.hidden._forward_hooks) == 1 and not model.head._forward_pre_hooks
    return counts["hidden"].tolist()


def test_wins_of_two_units_equal_the_counts_by_hand() -> None:
    """Unit 0 has weights 1 and -1, unit 1 has 2 and 3: two positive samples and one negative."""
    assert counted([1, -1, 2, 3], [1, 5, -2], relu=False) == [[2, 1], [1, 2]]


def test_wins_of_equal_candidates_are_split_equally() -> None:
    """All three win at every sample; of 2, 1, 1 the last two win at the negative sample."""
    assert np.array(counted([1, 1, 1, 2, 1, 1], [1, 1, -3], relu=False, candidates=3)) == pytest.approx(
        np.array([[1, 1, 1], [2, 0.5, 0.5]])
    )


def test_behind_a_relu_a_unit_that_is_off_has_no_winner() -> None:
    """Unit 1 is off at -2, where its first candidate is the largest; unit 0 is on at every sample except 0."""
    assert counted([1, -1, 2, 3], [1, 5, -2, 0], relu=True) == [[2, 1], [0, 2]]


@pytest.mark.parametrize("relu", [False, True])
def test_counts_sum_to_the_samples_at_which_the_unit_is_on(relu: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    weights, samples = torch.randn(12, generator=generator).tolist(), torch.randn(40, generator=generator).tolist()
    counts = torch.tensor(counted(weights, samples, relu=relu, candidates=3))
    z = torch.outer(torch.tensor(samples), torch.tensor(weights)).view(40, 4, 3).amax(2)
    expected = (z > 0).sum(0).double() if relu else torch.full((4,), 40.0, dtype=torch.float64)
    assert torch.allclose(counts.sum(1).double(), expected)


def test_survivors_leave_out_the_rarest_winner_of_each_unit() -> None:
    assert survivors(torch.tensor([[3.0, 1.0, 2.0], [0.0, 0.0, 5.0]])) == (0, 2, 4, 5)
    assert survivors(torch.tensor([[0.0, 1.0], [1.0, 0.0]])) == (1, 2)


def small_path(method: Maxout, name: str = "FlattenLinear", widths: Mapping[str, int] | None = None) -> list[Step]:
    """Return the steps of a path, each with a separate network."""
    dense, graph = build(name), graph_of(name)
    return list(steps_of(method, dense, graph, widths or graph.widths))


def steps_of(method: Maxout, dense: nn.Module, graph: ChannelGraph, widths: Mapping[str, int]) -> list[Step]:
    whole = {group.name: tuple(range(group.num_channels)) for group in graph.groups}
    steps = []
    for step in method.path(Network(dense, graph, whole), widths, services_of(dense, seed=4)):
        model = cut(step.network.model, step.network.graph, Candidate("", {}))
        steps.append(replace(step, network=replace(step.network, model=model)))
    return steps


def weight_of(model: nn.Module, name: str) -> Tensor:
    return model.get_parameter(name)


def untrained(**settings: Any) -> Maxout:
    return Maxout(epochs=0.0, weight_pruning=0.0, **settings)


def test_path_of_four_candidates_loses_one_candidate_a_round() -> None:
    """Six filters and seven hidden neurons with four candidates give one unit each, which shrinks in each round."""
    steps = small_path(replace(untrained(candidates=4), epochs=0.5))
    assert [inserted(step.network.model) for step in steps] == [{"conv": q, "hidden": q} for q in (4, 3, 2)] + [{}]
    assert [step.epochs for step in steps] == [0.5, 1.0, 1.5, 2.0]
    for q, step in zip((4, 3, 2, 1), steps, strict=True):
        assert {name: len(kept) for name, kept in step.network.kept.items()} == {"conv": q, "hidden": q}
        shapes = {name: tuple(p.shape) for name, p in step.network.model.named_parameters()}
        assert shapes["conv.weight"] == (q, 3, 3, 3)
        assert shapes["hidden.weight"] == (q, 4)
        assert shapes["head.weight"] == (5, 1)
    for before, after in pairwise(steps):
        assert all(set(after.network.kept[name]) < set(before.network.kept[name]) for name in ("conv", "hidden"))


def test_the_last_network_is_a_plain_cut_of_the_dense_one() -> None:
    last = small_path(untrained(candidates=2))[-1].network
    plain = cut(build("FlattenLinear"), graph_of("FlattenLinear"), Candidate("", last.kept))
    assert repr(last.model) == repr(plain)
    assert not any(module._forward_hooks for module in last.model.modules())
    plain.load_state_dict(last.model.state_dict())
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(plain(x), last.model(x))
    after = graph_of("FlattenLinear").after(last.kept)
    assert last.graph.widths == after.widths and last.graph.shapes == after.shapes


@pytest.mark.parametrize(("asked", "left"), [(7, 3), (3, 3), (2, 2), (1, 1)])
def test_as_many_units_as_fit_and_as_are_asked_for(asked: int, left: int) -> None:
    steps = small_path(untrained(candidates=2), widths={"conv": 6, "hidden": asked})
    assert [len(step.network.kept["hidden"]) for step in steps] == [2 * left, left]


def test_units_are_as_many_as_the_job_allows() -> None:
    dense, graph = build("FlattenLinear"), graph_of("FlattenLinear")
    whole = {group.name: tuple(range(group.num_channels)) for group in graph.groups}
    services = services_of(dense, seed=4)
    services.allowed = lambda num_channels: [*range(2, num_channels, 2), num_channels]  # type: ignore[method-assign]
    *_, last = untrained(candidates=2).path(Network(dense, graph, whole), graph.widths, services)
    assert {name: len(kept) for name, kept in last.network.kept.items()} == {"conv": 2, "hidden": 2}, "not 3"


def test_maxout_of_more_neurons_than_units_hold_keeps_the_largest() -> None:
    kept = small_path(untrained(candidates=2), widths={"conv": 1, "hidden": 2})[0].network.kept
    for name, weight in {
        "conv": weight_of(build("FlattenLinear"), "conv.weight"),
        "hidden": weight_of(build("FlattenLinear"), "hidden.weight"),
    }.items():
        norms = weight.flatten(1).norm(dim=1)
        assert kept[name] == tuple(sorted(norms.argsort(descending=True)[: len(kept[name])].tolist()))


def test_survivors_keep_their_weights_and_each_round_drops_the_rarest_of_those_left() -> None:
    """Rows do not overwrite one another, and removed candidates do not count in later rounds."""
    dense, graph = build("FlattenLinear"), graph_of("FlattenLinear")
    steps = steps_of(untrained(candidates=3), dense, graph, graph.widths)
    for before, after in pairwise(steps):
        kept = after.network.kept
        for weight, name in (("conv.weight", "conv"), ("hidden.bias", "hidden")):
            rows = dense.state_dict()[weight][list(kept[name])]
            assert torch.equal(after.network.model.state_dict()[weight], rows)
        # Slowly: z of every image, position and candidate of the units of the convolution.
        images = torch.cat([x for x, _ in services_of(dense, seed=0).training()])
        left = inserted(before.network.model)["conv"]
        z = weight_of(before.network.model, "conv.weight")
        z = functional.conv2d(images, z, weight_of(before.network.model, "conv.bias"), padding=1)
        tally = np.zeros((2, left))
        for image in z.detach().unflatten(1, (2, left)):
            for unit in range(2):
                for place in image[unit].flatten(1).T:
                    tally[unit, int(place.argmax())] += float(place.max()) > 0
        gone = tally.argmin(1)
        stay = [u * left + i for u in range(2) for i in range(left) if i != gone[u]]
        assert kept["conv"] == tuple(before.network.kept["conv"][i] for i in stay)


def test_a_candidate_that_never_wins_goes_unseen() -> None:
    """The removal of the candidate changes no output on the counted images."""
    dense, graph = build("FlattenLinear"), graph_of("FlattenLinear")
    with torch.no_grad():
        weight_of(dense, "conv.bias")[1::2] -= 100
        weight_of(dense, "hidden.bias")[1::2] -= 100
    first, last = steps_of(untrained(candidates=2), dense, graph, graph.widths)
    for images, _ in services_of(dense, seed=0).training():
        assert torch.allclose(first.network.model(images), last.network.model(images), atol=1e-6)
    assert all(channel % 2 == 0 for channel in last.network.kept["conv"])


def test_readers_weights_are_added_up() -> None:
    dense, graph = build("FlattenLinear"), graph_of("FlattenLinear")
    first = steps_of(untrained(candidates=2), dense, graph, {"conv": 6, "hidden": 1})[0].network
    hidden = weight_of(dense, "hidden.weight")[list(first.kept["hidden"])].view(2, 3, 2, 4)
    assert torch.allclose(weight_of(first.model, "hidden.weight").view(2, 3, 4), hidden[:, :, 0] + hidden[:, :, 1])
    head = weight_of(dense, "head.weight")[:, list(first.kept["hidden"])]
    assert torch.allclose(weight_of(first.model, "head.weight"), head.sum(1, keepdim=True))


def test_expanded_without_noise_is_the_cut_network() -> None:
    dense, graph = build("Residual"), graph_of("Residual")
    (step,) = steps_of(untrained(candidates=3, mode="expand", noise=0.0), dense, graph, {"stem": 5, "conv1": 3})
    assert {name: len(kept) for name, kept in step.network.kept.items()} == {"stem": 5, "conv1": 3}
    plain = cut(dense, graph, Candidate("", step.network.kept))
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(step.network.model(x), plain(x))
    assert not inserted(step.network.model)


def test_expanded_units_hold_the_neuron_and_noisy_copies() -> None:
    dense, graph = build("FlattenLinear"), graph_of("FlattenLinear")
    whole = {name: tuple(range(width)) for name, width in graph.widths.items()}
    method, services = untrained(candidates=3, mode="expand", noise=0.1), services_of(dense, seed=0)
    places = {"conv": "conv", "hidden": "hidden"}
    scores = method.score(dense, graph, services.calibration, seed=0)
    network, _ = method._united(Network(dense, graph, whole), places, graph.widths, scores, services)
    weight = weight_of(network.model, "conv.weight").view(6, 3, 3, 3, 3)
    assert torch.equal(weight[:, 0], weight_of(dense, "conv.weight"))
    noise = (weight[:, 1:] - weight_of(dense, "conv.weight")[:, None]).flatten(2).norm(dim=2)
    shares = noise / weight_of(dense, "conv.weight").flatten(1).norm(dim=1)[:, None]
    assert ((shares > 0.05) & (shares < 0.2)).all()
    assert network.graph.widths == {"conv": 18, "hidden": 21}
    x = torch.randn(2, 3, 8, 8)
    assert (network.model(x) - dense(x)).abs().max() < 0.3 * dense(x).abs().max()


def test_from_scratch_nothing_of_the_trained_weights_is_left() -> None:
    dense, graph = build("FlattenLinear"), graph_of("FlattenLinear")
    runs = [steps_of(untrained(from_scratch=True), dense, graph, graph.widths)[0].network for _ in range(2)]
    kept = list(runs[0].kept["conv"])
    assert not torch.isclose(weight_of(runs[0].model, "conv.weight"), weight_of(dense, "conv.weight")[kept]).any()
    assert torch.equal(weight_of(runs[0].model, "conv.weight"), weight_of(runs[1].model, "conv.weight")), (
        "the seed decides"
    )


PLACES = {
    "Residual": {"conv1": "bn1"},
    "Grouped": {},
    "DenseBlock": {"grow2": "grow2", "transition": "transition"},
    "FlattenLinear": {"conv": "conv", "hidden": "hidden"},
    "WrittenAttention": {},
    "Transformer": {},
    "Transposed": {"last": "last"},
}


@pytest.mark.parametrize("name", NETWORKS)
def test_places_of_units_follow_the_structure_of_the_groups(name: str) -> None:
    """Units are behind the batch norm, if any; never on a residual stream, or at grouped or transposed layers."""
    steps = small_path(untrained(candidates=2), name, {group.name: 2 for group in graph_of(name).groups})
    assert inserted(steps[0].network.model) == dict.fromkeys(PLACES[name].values(), 2)
    assert all(len(kept) == 2 for kept in steps[-1].network.kept.values())


class Beside(nn.Module):
    """A convolution whose output is read behind its batch norm and also before it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = conv(3, 4), nn.BatchNorm2d(4)
        self.one, self.other, self.head = conv(4, 3), conv(4, 3), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        x = torch.cat([self.one(self.bn(x)), self.other(x)], 1)
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def test_maxout_places_leave_out_modules_read_before_the_maximum() -> None:
    dense = Beside().eval()
    graph = trace(dense, torch.zeros(1, 3, 8, 8))
    first, last = steps_of(untrained(candidates=2), dense, graph, {"conv": 3, "one": 1, "other": 1})
    assert inserted(first.network.model) == {"one": 2, "other": 2}
    assert len(last.network.kept["conv"]) == 3


def test_smallest_weights_of_each_layer_go() -> None:
    one, other = nn.Linear(2, 2), nn.Linear(2, 2)
    model = nn.Sequential(one, other)
    one.weight.data = torch.tensor([[0.1, -4.0], [3.0, 0.2]])
    other.weight.data = torch.tensor([[-10.0, 20.0], [40.0, 30.0]])
    biases = [layer.bias.clone() for layer in (one, other)]
    model.register_parameter("position", nn.Parameter(torch.ones(3, 3)))
    zero_smallest(model, 0.5)
    assert (model.get_parameter("position") == 1).all(), "is no layer's weight"
    assert one.weight.tolist() == [[0, -4], [3, 0]]
    assert other.weight.tolist() == [[0, 0], [40, 30]]
    assert all(torch.equal(layer.bias, bias) for layer, bias in zip((one, other), biases, strict=True))


def test_zeroed_weights_stay_zero_in_training_and_the_others_train() -> None:
    steps = small_path(Maxout(epochs=1.0, weight_pruning=0.6, weight_rounds=2))
    assert [dict(step.settings) for step in steps] == [{}, {}, {"weights_pruned": 0.3}, {"weights_pruned": 0.6}]
    assert [step.epochs for step in steps] == [1.0, 2.0, 3.0, 4.0]
    plain, half, full = (step.network for step in steps[1:])
    assert plain.kept == half.kept == full.kept
    for name, weight in full.model.named_parameters():
        earlier = dict(half.model.named_parameters())[name]
        if weight.dim() > 1:
            assert int((weight == 0).sum()) == round(0.6 * weight.numel())
            assert int((earlier == 0).sum()) == round(0.3 * weight.numel())
            assert ((weight == 0) | (earlier != 0)).all(), "what was zero stays"
        assert (weight[weight != 0] != earlier[weight != 0]).any()


def test_one_candidate_is_a_cut_by_magnitude() -> None:
    (step,) = small_path(untrained(candidates=1), widths={"conv": 3, "hidden": 4})
    plain = cut(build("FlattenLinear"), graph_of("FlattenLinear"), Candidate("", step.network.kept))
    assert {name: len(kept) for name, kept in step.network.kept.items()} == {"conv": 3, "hidden": 4}
    assert all(torch.equal(value, plain.state_dict()[key]) for key, value in step.network.model.state_dict().items())
