"""Tests of gates: the residual blocks that can go are found, none other, and the closed form counts without them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from raprune.channels.cut import cut
from raprune.channels.gates import with_gates
from raprune.channels.graph import ChannelGraph
from raprune.channels.proof import prove
from raprune.channels.trace import trace
from raprune.cost.flops import CostModel
from raprune.errors import RecipeError
from raprune.records import Candidate
from tests.channels.networks import ResidualBlock, Stages, image
from tests.channels.proved import counted_flops, outputs
from tests.tools import require_module


def gated(model: nn.Module) -> ChannelGraph:
    """The proved graph of a network, with its gates."""
    model.eval()
    return with_gates(model, prove(model, trace(model, image()), image()).graph, image())


def made(code: Callable[[Stages, Tensor], Tensor] | None = None) -> tuple[Stages, ChannelGraph]:
    torch.manual_seed(0)
    model = Stages(code)
    return model, gated(model)


def test_residual_blocks_are_gates_and_no_other_module() -> None:
    """A projection in the shortcut, a plain layer, and the stage around the blocks are none."""
    _, graph = made()
    assert graph.gates == ("stage.1", "stage.2")


@pytest.mark.parametrize(
    "code",
    [
        lambda net, x: net.stage(x) * net.stage[2].bn.weight.numel(),
        lambda net, x: net.stage[2](net.stage[2](net.stage[1](net.stage[0](x)))),
    ],
    ids=["an attribute of the block is read", "the block runs twice"],
)
def test_a_block_whose_place_no_identity_can_take_is_no_gate(code: Callable[[Stages, Tensor], Tensor]) -> None:
    _, graph = made(code)
    assert graph.gates == ("stage.1",)


def test_looking_for_gates_changes_neither_digest_nor_groups() -> None:
    _, graph = made()
    assert graph.digest() == ChannelGraph.from_json({**graph.to_json(), "gates": []}).digest()
    assert ChannelGraph.from_json(graph.to_json()).gates == graph.gates


def test_a_closed_gate_leaves_the_stream_coupled_and_drops_its_own_groups() -> None:
    _, graph = made()
    closed = graph.closed(["stage.1"])
    assert set(graph.widths) - set(closed.widths) == {"stage.1.conv1"}
    assert not any(m.parameter.startswith("stage.1.") for group in closed.groups for m in group.members)
    assert closed.gates == ("stage.2",)
    assert graph.closed([]) is graph


def test_widths_and_gates_together_cost_what_is_counted_after_surgery() -> None:
    model, graph = made()
    for gone in (("stage.1",), ("stage.2", "stage.1")):
        closed = graph.closed(gone)
        kept = {group.name: tuple(range(1, group.num_channels, 2)) for group in closed.groups}
        smaller = cut(model, graph, Candidate("test", kept, identity=gone))
        cost = CostModel(graph).closed(gone)
        widths = cost.vector({name: len(channels) for name, channels in kept.items()})
        assert int(cost.flops(widths)) == counted_flops(smaller, image())
        assert int(cost.params(widths)) == sum(p.numel() for p in smaller.parameters())
        assert cost.dense_flops == counted_flops(model, image())
        assert isinstance(smaller.get_submodule("stage.1"), nn.Identity)


def test_a_cut_without_a_block_has_the_outputs_of_the_network_without_it() -> None:
    model, graph = made()
    shallow = cut(model, graph, Candidate("test", {}, identity=("stage.2",)))
    by_hand = Stages()
    by_hand.load_state_dict(model.state_dict())
    del by_hand.stage[2]
    assert torch.equal(outputs(shallow, image()), outputs(by_hand.eval(), image()))
    assert isinstance(model.stage[2], ResidualBlock)


def test_a_block_that_cannot_go_is_refused() -> None:
    model, graph = made()
    with pytest.raises(RecipeError, match=r"'stage\.0', which this network cannot do without"):
        cut(model, graph, Candidate("test", {}, identity=("stage.0",)))


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("name", "count"),
    [("resnet50", 12), ("mobilenet_v2", 10), ("efficientnet_b0", 9), ("timm:vit_tiny", 12), ("shufflenet_v2_x0_5", 0)],
)
def test_all_residual_blocks_of_a_zoo_network_are_found(name: str, count: int) -> None:
    """ResNet-50 has 16 blocks, 4 of them with a projection; a stride or another width ends an inverted bottleneck."""
    if name.startswith("timm:"):
        model = require_module("timm").create_model("vit_tiny_patch16_224", img_size=64)
    elif name == "resnet50":
        # Narrow inside its blocks, so that a copy in float64 takes little time.
        model = models.ResNet(models.resnet.Bottleneck, [3, 4, 6, 3], width_per_group=8)
    else:
        model = getattr(models, name)(weights=None)
    x = torch.zeros(1, 3, 64, 64)
    graph = with_gates(model.eval(), trace(model, x), x)
    assert len(graph.gates) == count
