from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from raprune.channels.cut import cut, kept_positions
from raprune.channels.graph import KeptPositions
from raprune.cost.flops import CostModel
from raprune.records import Candidate
from tests.channels.networks import image
from tests.channels.proved import outputs, proved

NETWORKS = ("Residual", "Grouped", "DenseBlock", "FlattenLinear", "WrittenAttention", "Transposed")


@given(st.sampled_from(NETWORKS), st.integers(0, 2**31))
def test_two_cuts_in_turn_are_one_cut(network: str, seed: int) -> None:
    """Cutting a cut network by the graph `after` equals cutting the dense network by both candidates at once."""
    model, graph = proved(network)
    generator = torch.Generator().manual_seed(seed)

    def some(count: int) -> tuple[int, ...]:
        width = int(torch.randint(1, count + 1, (), generator=generator))
        return tuple(sorted(torch.randperm(count, generator=generator)[:width].tolist()))

    first = {group.name: some(group.num_channels) for group in graph.groups}
    narrower = cut(model, graph, Candidate("test", first))
    after = graph.after(first)
    assert after.widths == {name: len(channels) for name, channels in first.items()}
    second = {group.name: some(group.num_channels) for group in after.groups}
    twice = cut(narrower, after, Candidate("test", second))
    both = {name: tuple(first[name][index] for index in second[name]) for name in first}
    at_once = cut(model, graph, Candidate("test", both))
    assert {n: v.shape for n, v in twice.state_dict().items()} == {n: v.shape for n, v in at_once.state_dict().items()}
    assert torch.equal(outputs(twice.eval(), image()), outputs(at_once.eval(), image()))
    widths = {name: len(channels) for name, channels in both.items()}
    before_costs, after_costs = CostModel(graph), CostModel(after)
    assert before_costs.flops(before_costs.vector(widths)) == after_costs.flops(after_costs.vector(widths))
    assert before_costs.params(before_costs.vector(widths)) == after_costs.params(after_costs.vector(widths))


def test_a_group_that_is_not_named_stays_whole() -> None:
    _, graph = proved("FlattenLinear")
    name = graph.groups[0].name
    after = graph.after({name: (0, 2)})
    assert after.widths == {**graph.widths, name: 2}


def test_only_some_groups_are_left_and_cost_the_same() -> None:
    _, graph = proved("Residual")
    name = graph.groups[0].name
    part = graph.only([name])
    assert [group.name for group in part.groups] == [name]
    assert CostModel(part).dense_flops == CostModel(graph).dense_flops
    one, whole = CostModel(part), CostModel(graph)
    assert one.flops(one.vector({name: 1})) == whole.flops(whole.vector({name: 1}))


def test_kept_positions_agree_with_the_cut_and_the_graph_after_it() -> None:
    _, graph = proved("Residual")
    kept = {group.name: tuple(range(0, group.num_channels, 2)) for group in graph.groups}
    positions = KeptPositions(graph, kept)
    assert kept_positions(graph, kept).keys() == {parameter for parameter, _ in positions.sliced}
    after = graph.after(kept)
    for group in graph.groups:
        assert np.flatnonzero(positions.stays(group)).tolist() == list(kept[group.name])
        for member in group.members:
            stay, size = positions.of(member.parameter, member.axis), graph.shapes[member.parameter][member.axis]
            assert after.shapes[member.parameter][member.axis] == len(stay)
            assert set(positions.removed(group, member).tolist()).isdisjoint(stay.tolist())
            assert len(stay) < size
    whole = KeptPositions(graph, {})
    assert whole.sliced == [] and len(whole.of(*next(iter(positions.sliced)))) > 0
