"""Tests of the search against any oracle, its bound, and its path on networks of known accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil, log2

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from raprune.checks.contract.networks import build, graph_of
from raprune.checks.contract.noise import services_of
from raprune.methods import METHODS, Network, Step
from raprune.methods.binary_search import BinarySearch, cost_of_groups, largest_removal
from raprune.pruning.services import WorkloadServices


class Oracle:
    """An oracle that accepts by a table, and records the questions."""

    def __init__(self, accepted: set[int]) -> None:
        self.accepted = accepted
        self.asked: list[int] = []

    def __call__(self, removed: int) -> bool:
        self.asked.append(removed)
        return removed in self.accepted


@given(st.integers(1, 5000), st.data())
def test_any_monotone_oracle_is_answered_rightly_within_the_bound(neurons: int, data: st.DataObject) -> None:
    largest = data.draw(st.integers(0, neurons - 1))
    oracle = Oracle(set(range(largest + 1)))
    assert largest_removal(neurons - 1, oracle) == largest
    assert len(oracle.asked) <= ceil(log2(neurons))
    assert len(set(oracle.asked)) == len(oracle.asked) and 0 not in oracle.asked


@given(st.integers(0, 300), st.sets(st.integers(1, 300)), st.booleans())
def test_any_other_oracle_gets_an_answer_that_it_accepts(count: int, accepted: set[int], gallop: bool) -> None:
    accepted = {removed for removed in accepted if removed <= count}
    oracle = Oracle(accepted)
    found = largest_removal(count, oracle, gallop=gallop)
    assert found in accepted | {0}
    assert all(1 <= removed <= count for removed in oracle.asked)
    assert len(set(oracle.asked)) == len(oracle.asked), "nothing is evaluated twice"
    assert largest_removal(count, Oracle(accepted), gallop=gallop) == found


def test_galloping_crosses_a_dip() -> None:
    accepted = {*range(10), *range(12, 41)}  # 10 and 11 are refused, between what is accepted
    assert largest_removal(15, Oracle(accepted)) == 15
    assert largest_removal(20, Oracle(accepted)) == 9
    assert largest_removal(20, Oracle(accepted), gallop=True) == 20
    assert largest_removal(63, Oracle(accepted), gallop=True) == 40


def test_largest_removal_of_eight_neurons_asks_as_by_hand() -> None:
    """Of 8 neurons 5 can be removed: 4 is accepted, 6 refused, 5 accepted."""
    oracle = Oracle({1, 2, 3, 4, 5})
    assert largest_removal(7, oracle) == 5
    assert oracle.asked == [4, 6, 5]
    assert largest_removal(0, Oracle(set())) == 0


class Known(WorkloadServices):
    """Services with 100 images; each channel below a group's `need` costs one image. Training is counted."""

    def __init__(self, dense: Network, need: Mapping[str, int]) -> None:
        real = services_of(dense.model, seed=0)
        self.__dict__.update(real.__dict__)
        self.need = need
        self.trained: list[float] = []
        self.evaluations = 0
        self._networks = {id(dense.model): dense}

    def cut(self, network: Network, kept: Mapping[str, tuple[int, ...]]) -> Network:
        smaller = super().cut(network, kept)
        self._networks[id(smaller.model)] = smaller
        return smaller

    def train(self, model: nn.Module, epochs: float, **others: object) -> None:
        self.trained.append(epochs)

    def metric(self, model: nn.Module, images: int | None = None) -> float:
        self.evaluations += 1
        widths = self._networks[id(model)].graph.widths
        missing = sum(max(0, need - widths[name]) for name, need in self.need.items())
        return max(0, 100 - missing) / 100


def dense_of(network: str) -> Network:
    model, graph = build(network), graph_of(network)
    return Network(model, graph, {group.name: tuple(range(group.num_channels)) for group in graph.groups})


def walk(
    method: BinarySearch, need: Mapping[str, int], widths: Mapping[str, int] | None = None, network: str = "Residual"
) -> tuple[list[Step], Known]:
    dense = dense_of(network)
    services = Known(dense, need)
    return list(method.path(dense, widths or dense.graph.widths, services)), services


STILL = BinarySearch(tolerance=0.0, finetune_epochs=0.0)


def test_each_group_is_searched_down_to_what_it_needs() -> None:
    """Residual has a stream of 8 channels and 6 inner channels; 3 and 5 are needed: 4, 6, 5 and 3, 1, 2 are tried."""
    steps, services = walk(STILL, {"stem": 3, "conv1": 5})
    assert [step.network.graph.widths for step in steps] == [{"stem": 3, "conv1": 6}, {"stem": 3, "conv1": 5}]
    assert [step.settings["evaluations"] for step in steps] == [3, 6]
    assert services.evaluations == 6 + 1, "and the dense network's"
    assert services.trained == []


@settings(max_examples=20)
@given(st.integers(1, 8), st.integers(1, 6))
def test_the_evaluations_stay_within_the_sum_of_logarithms(stem: int, conv1: int) -> None:
    steps, services = walk(STILL, {"stem": stem, "conv1": conv1})
    assert steps[-1].network.graph.widths == {"stem": stem, "conv1": conv1}
    assert services.evaluations - 1 == steps[-1].settings["evaluations"]
    assert services.evaluations - 1 <= ceil(log2(8)) + ceil(log2(6))


def test_only_widths_that_the_job_allows_are_tried() -> None:
    class InPairs(Known):
        def allowed(self, num_channels: int) -> list[int]:
            return [*range(4, num_channels, 2), num_channels]

    dense = dense_of("Residual")
    services = InPairs(dense, {"stem": 3, "conv1": 5})
    steps = list(STILL.path(dense, dense.graph.widths, services))
    assert steps[-1].network.graph.widths == {"stem": 4, "conv1": 6}


def test_search_keeps_the_largest_filters() -> None:
    dense = dense_of("Residual")
    with torch.no_grad():
        for name in ("stem.weight", "conv2.weight"):
            weight = dict(dense.model.named_parameters())[name]
            weight.copy_(torch.arange(8.0).roll(3)[:, None, None, None].expand_as(weight))  # 5 6 7 0 1 2 3 4
    *_, last = STILL.path(dense, dense.graph.widths, Known(dense, {"stem": 3, "conv1": 6}))
    assert last.network.kept["stem"] == (0, 1, 2)


@pytest.mark.parametrize(
    ("split", "widths"),
    [("global", {"stem": 4, "conv1": 6}), ("split", {"stem": 6, "conv1": 4})],
)
def test_tolerance_is_used_by_the_first_group_or_split(split: str, widths: dict[str, int]) -> None:
    """Four images may be lost: the first group uses all four, or half of them, and the second group the other half."""
    method = BinarySearch(tolerance=0.04, tolerance_split=split, finetune_epochs=0.0)  # type: ignore[arg-type]
    steps, _ = walk(method, {"stem": 8, "conv1": 6})
    assert steps[-1].network.graph.widths == widths


def test_backward_gives_the_last_group_the_tolerance() -> None:
    steps, _ = walk(BinarySearch(tolerance=0.04, order="backward", finetune_epochs=0.0), {"stem": 8, "conv1": 6})
    assert steps[-1].network.graph.widths == {"stem": 8, "conv1": 2}


def test_training_between_groups_and_of_probes_is_counted() -> None:
    method = BinarySearch(tolerance=0.0, probe_epochs=0.25, finetune_epochs=2.0)
    steps, services = walk(method, {"stem": 3, "conv1": 6})
    assert services.trained == [0.25] * 3 + [2.0] + [0.25] * 2, "the second group lost nothing: no training"
    assert [step.epochs for step in steps] == [2.75, 3.25]


def test_a_second_sweep_ends_the_search_where_nothing_goes() -> None:
    steps, _ = walk(BinarySearch(tolerance=0.0, finetune_epochs=0.0, sweeps=5), {"stem": 3, "conv1": 5})
    assert len(steps) == 4
    assert steps[-1].network.graph.widths == steps[1].network.graph.widths


def test_found_widths_above_the_wanted_are_lowered_in_a_last_step() -> None:
    steps, services = walk(BinarySearch(tolerance=0.0), {"stem": 3, "conv1": 5}, {"stem": 4, "conv1": 2})
    assert len(steps) == 3
    assert steps[-1].network.graph.widths == {"stem": 3, "conv1": 2}
    assert set(steps[-1].network.kept["conv1"]) < set(steps[-2].network.kept["conv1"])
    assert steps[-1].settings == steps[-2].settings, "no probe more"
    assert services.trained == [1.0, 1.0, 1.0]


def test_batch_norms_are_estimated_again_only_where_widths_were_wanted() -> None:
    method = BinarySearch(tolerance=0.0, finetune_epochs=0.0)
    found, lowered = walk(method, {"stem": 3, "conv1": 5}, {"stem": 8, "conv1": 2})[0][1:]
    statistics = [dict(step.network.model.named_buffers())["stem_bn.running_mean"] for step in (found, lowered)]
    dense = dict(build("Residual").named_buffers())["stem_bn.running_mean"]
    assert torch.equal(statistics[0], dense[list(found.network.kept["stem"])])
    assert not torch.equal(statistics[1], statistics[0])


def test_grouped_convolutions_lose_as_many_channels_in_each_block() -> None:
    need = {group.name: 1 for group in graph_of("Grouped").groups}
    steps, _ = walk(STILL, need, network="Grouped")
    model = steps[-1].network.model
    assert isinstance(model.grouped, nn.Conv2d)
    assert (model.grouped.groups, model.grouped.in_channels, model.grouped.out_channels) == (3, 3, 3)


def test_costs_of_groups_by_hand() -> None:
    """FlattenLinear is conv 3->6 of 3x3, linear 24->7, linear 7->5; without a group only other layers' biases stay."""
    graph = graph_of("FlattenLinear")
    params = cost_of_groups(graph, graph.params)
    assert params == {"conv": 6 * 27 + 6 + 24 * 7, "hidden": 24 * 7 + 7 + 7 * 5}
    flops = cost_of_groups(graph, graph.flops)
    assert flops == {"conv": 2 * (6 * 27 * 64 + 24 * 7), "hidden": 2 * (24 * 7 + 7 * 5)}


@pytest.mark.parametrize(
    ("order", "first"),
    [("forward", "conv"), ("backward", "hidden"), ("most_params_first", "conv"), ("most_flops_first", "conv")],
)
def test_the_order_of_groups(order: str, first: str) -> None:
    method = BinarySearch(tolerance=0.0, finetune_epochs=0.0, order=order)  # type: ignore[arg-type]  # one of its names
    steps, _ = walk(method, {"conv": 1, "hidden": 1}, network="FlattenLinear")
    widths, dense = steps[0].network.graph.widths, graph_of("FlattenLinear").widths
    assert [name for name in dense if widths[name] < dense[name]] == [first]


def test_an_unknown_order_is_refused() -> None:
    with pytest.raises(ValueError, match="order 'sideways': no such choice"):
        BinarySearch(order="sideways")  # type: ignore[arg-type]  # that it is none is the test


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_search_magnitudes_equal_those_of_the_baselines(norm: str) -> None:
    model, graph = build("Residual"), graph_of("Residual")
    scores = BinarySearch(norm=norm).score(model, graph, lambda: iter(()), seed=0)  # type: ignore[arg-type]
    direct = METHODS[norm]().score(model, graph, lambda: iter(()), seed=0)
    for name, values in scores.items():
        assert values == pytest.approx(direct[name], rel=1e-12)
