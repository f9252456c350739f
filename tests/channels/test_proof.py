"""Tests of the proof: it freezes and names the wrong groups of a graph, and no other group."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from raprune.channels.graph import ChannelGraph
from raprune.channels.members import Group, Member
from raprune.channels.proof import prove
from raprune.channels.trace import trace
from raprune.errors import ModelError
from raprune.models.cifar_resnet import CifarResNet
from tests.channels.networks import Net, build, conv, image


def edited(graph: ChannelGraph, name: str, edit: Callable[[Group], tuple[Group, ...]]) -> ChannelGraph:
    """Return the graph with one group replaced."""
    groups: list[Group] = []
    for group in graph.groups:
        groups += edit(group) if group.name == name else (group,)
    return replace(graph, groups=tuple(groups))


def without_member(parameter: str, axis: int) -> Callable[[Group], tuple[Group, ...]]:
    def edit(group: Group) -> tuple[Group, ...]:
        left = tuple(m for m in group.members if (m.parameter, m.axis) != (parameter, axis))
        assert len(left) == len(group.members) - 1
        return (replace(group, members=left),)

    return edit


def with_indices(parameter: str, axis: int, change: Callable[[np.ndarray], np.ndarray]) -> Callable[..., tuple[Group]]:
    def edit(group: Group) -> tuple[Group]:
        return (
            replace(
                group,
                members=tuple(
                    Member(m.parameter, m.axis, change(m.indices), m.writes)
                    if (m.parameter, m.axis) == (parameter, axis)
                    else m
                    for m in group.members
                ),
            ),
        )

    return edit


EVERY_MEMBER = [
    (network, group.name, member.parameter, member.axis)
    for network in ("Residual", "Grouped", "FlattenLinear", "ChannelsLastNorm", "LayerScale", "Transposed")
    for group in trace(build(network), image()).groups
    for member in group.members
]


@pytest.mark.parametrize(("network", "group", "parameter", "axis"), EVERY_MEMBER)
def test_a_forgotten_member_freezes_its_group_alone(network: str, group: str, parameter: str, axis: int) -> None:
    model = build(network)
    graph = trace(model, image())
    wrong = edited(graph, group, without_member(parameter, axis))
    proof = prove(model, wrong, image())
    assert set(proof.frozen) == {group}
    assert set(proof.graph.widths) == set(graph.widths) - {group}
    assert proof.permutation_error < 1e-12
    assert proof.cut_error < 1e-12


@pytest.mark.parametrize(("network", "group", "parameter", "axis"), EVERY_MEMBER)
def test_positions_in_another_order_freeze_their_group_alone(
    network: str, group: str, parameter: str, axis: int
) -> None:
    model = build(network)
    wrong = edited(
        trace(model, image()), group, with_indices(parameter, axis, lambda indices: np.roll(indices, 1, axis=0))
    )
    assert set(prove(model, wrong, image()).frozen) == {group}


def test_a_missing_coupling_freezes_both_sides() -> None:
    model = build("Residual")
    other_side = ("conv2.", "bn2.", "head.")

    def split(group: Group) -> tuple[Group, ...]:
        parts = [[m for m in group.members if m.parameter.startswith(other_side) == side] for side in (False, True)]
        return tuple(replace(group, name=n, members=tuple(p)) for n, p in zip(("stem", "conv2"), parts, strict=True))

    graph = edited(trace(model, image()), "stem", split)
    proof = prove(model, graph, image())
    assert set(proof.frozen) == {"stem", "conv2"}
    assert set(proof.graph.widths) == {"conv1"}


def test_proof_one_wrong_group_among_many_is_frozen_alone() -> None:
    torch.manual_seed(0)
    model = CifarResNet(20, num_classes=10, in_channels=3).eval()
    x = image((1, 3, 32, 32))
    graph = trace(model, x)
    culprit = graph.groups[len(graph.groups) // 2]
    reads = next(m for m in culprit.members if not m.writes and m.axis == 1)
    wrong = edited(graph, culprit.name, with_indices(reads.parameter, 1, lambda indices: np.roll(indices, 1, axis=0)))
    proof = prove(model, wrong, x)
    assert set(proof.frozen) == {culprit.name}
    assert len(proof.graph.groups) == len(graph.groups) - 1


def test_proof_group_wrongly_called_maskable_is_frozen() -> None:
    model = build("ChannelsLastNorm")
    wrong = edited(trace(model, image()), "stem", lambda g: (replace(g, maskable=True),))
    proof = prove(model, wrong, image())
    assert set(proof.frozen) == {"stem"}
    assert "differs from the masked one" in proof.frozen["stem"]


def test_a_frozen_group_is_a_constant_of_the_cost() -> None:
    model = build("FixedView")
    graph = prove(model, trace(model, image()), image()).graph
    assert "squeeze" not in graph.by_name
    assert all("squeeze" not in factor.coefficients for factor in graph.factors)


def test_sizes_that_python_fixes_are_named_with_their_module() -> None:
    model = build("FixedView")
    proof = prove(model, trace(model, image()), image())
    assert proof.frozen["squeeze"].startswith("failed the proof: the cut network stops in mixer")


class TwoStories(Net):
    """A network of two blocks; Python fixes the sizes of one block only."""

    def __init__(self) -> None:
        super().__init__()
        self.fixed, self.free, self.last = conv(8, 8), conv(8, 6), conv(6, 8)

    def body(self, x: Tensor) -> Tensor:
        y = self.fixed(x)
        y = y.reshape(len(y), 8, -1).softmax(-1).reshape(y.shape[0], 8, 8, 8)
        return self.last(torch.relu(self.free(y)))


def test_proof_block_beside_a_fixed_block_stays_prunable() -> None:
    model = TwoStories().eval()
    proof = prove(model, trace(model, image()), image())
    assert set(proof.frozen) == {"fixed"}
    assert set(proof.graph.widths) == {"stem", "free", "last"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_any_dtype_is_proved_in_float64(dtype: torch.dtype) -> None:
    model = build("Residual").to(dtype)
    graph = trace(model, image().to(dtype))
    proof = prove(model, graph, image().to(dtype))
    assert proof.frozen == {}
    assert proof.permutation_error < 1e-12
    assert {p.dtype for p in model.parameters()} == {dtype}


def test_scales_of_zero_hide_nothing() -> None:
    """Residual branches have zero scales: without random scales every wrong graph of a branch would pass."""
    model = build("Residual")
    with torch.no_grad():
        for value in (model.bn2.weight, model.bn2.bias, model.head.weight, model.head.bias):  # type: ignore[union-attr]  # a Net has them
            value.zero_()  # type: ignore[operator]  # a parameter
    graph = trace(model, image())
    assert prove(model, graph, image()).frozen == {}
    wrong = edited(graph, "conv1", with_indices("conv2.weight", 1, lambda indices: np.roll(indices, 1, axis=0)))
    assert set(prove(model, wrong, image()).frozen) == {"conv1"}


def test_weights_that_are_not_finite_are_told() -> None:
    model = build("Residual")
    with torch.no_grad():
        next(model.parameters())[0, 0, 0, 0] = float("nan")
    with pytest.raises(ModelError, match="no finite"):
        prove(model, trace(model, image()), image())


def test_the_same_seed_gives_the_same_proof() -> None:
    model = build("ScaledBySize")
    graph = trace(model, image())
    one, other = (prove(model, graph, image(), seed=3) for _ in range(2))
    assert replace(one, seconds=0.0, graph=graph) == replace(other, seconds=0.0, graph=graph)
    assert one.graph.to_json() == other.graph.to_json()


def test_dropout_and_other_noise_is_no_failure() -> None:
    class Noisy(Net):
        def body(self, x: Tensor) -> Tensor:
            return x + 0.1 * torch.randn(len(x), 1, *x.shape[2:], dtype=x.dtype)

    model = Noisy().eval()
    assert prove(model, trace(model, image()), image()).frozen == {}


def test_shared_parameters_stay_shared_in_the_proof() -> None:
    model = build("SharedParameter")
    proof = prove(model, trace(model, image()), image())
    assert proof.frozen == {}
    assert isinstance(model, nn.Module)
    assert dict(model.named_parameters(remove_duplicate=False))["right.weight"] is model.left.weight  # type: ignore[union-attr]  # a Net has it
