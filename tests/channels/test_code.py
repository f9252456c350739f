"""Sizes in code: reshapes that take the number of channels from their input let PyTorch compute it after a cut."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import cloudpickle
import pytest
import torch
from torch import Tensor, nn

from raprune.channels.code import edit_code
from raprune.channels.cut import cut
from raprune.channels.graph import ChannelGraph
from raprune.channels.members import CodeEdit
from raprune.channels.proof import prove
from raprune.channels.trace import trace
from raprune.errors import RecipeError
from raprune.pruning.artifact import load, save
from raprune.records import Candidate
from raprune.store.folder import Store
from tests.channels.networks import Attention, Transformer, image
from tests.channels.proved import outputs

CHANNELS = 12


class ShapeAttention(Attention):
    """Attention as in XCiT, CaiT and DaViT: all sizes but the number of heads come from the input."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(CHANNELS, 3 * CHANNELS), nn.Linear(CHANNELS, CHANNELS)
        del self.head_dim, self.attn_dim

    def forward(self, x: Tensor) -> Tensor:
        B, N, C = x.shape
        q, k, v = self.qkv(x).reshape(B, N, 3, self.num_heads, C // self.num_heads).permute(2, 0, 3, 1, 4).unbind(0)
        out: Tensor = self.proj(self.mixed(q, k, v).transpose(1, 2).reshape(B, N, C))
        return out


class OfItsParent(ShapeAttention):
    """The method of the parent class, called by `super()`, which needs the closure of the method."""

    def forward(self, x: Tensor) -> Tensor:
        B, N, C = x.shape
        doubled: Tensor = super().forward(x)
        return doubled.reshape(B, N, C) + self.qkv(x).reshape(B, N, self.num_heads, -1).sum(2).mean(2, keepdim=True)


def attended(x: Tensor, qkv: nn.Module, heads: int) -> Tensor:
    B, N, C = x.shape
    q, k, v = qkv(x).reshape(B, N, 3, heads, C // heads).permute(2, 0, 3, 1, 4).unbind(0)
    out: Tensor = (q * (C // heads) ** -0.5 @ k.transpose(-2, -1)).softmax(-1) @ v
    return out.transpose(1, 2).reshape(B, N, C)


class BesideIt(ShapeAttention):
    """A function beside the class, whose scale follows the number of channels, as in torchvision's Swin."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.proj(attended(x, self.qkv, self.num_heads))
        return out


class KeysOfFewerTokens(ShapeAttention):
    """Keys and values of a smaller map, whose number of tokens is -1 in the code already, as in Twins."""

    def __init__(self) -> None:
        super().__init__()
        del self.qkv
        self.q, self.kv = nn.Linear(CHANNELS, CHANNELS), nn.Linear(CHANNELS, 2 * CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        B, N, C = x.shape
        q = self.q(x).reshape(B, N, self.num_heads, C // self.num_heads).permute(0, 2, 1, 3)
        kv = self.kv(x[:, ::2]).reshape(B, -1, 2, self.num_heads, C // self.num_heads).permute(2, 0, 3, 1, 4)
        out: Tensor = self.proj(self.mixed(q, kv[0], kv[1]).transpose(1, 2).reshape(B, N, C))
        return out


def network(kind: type[Attention]) -> tuple[nn.Module, ChannelGraph]:
    torch.manual_seed(0)
    model = Transformer(kind())
    model.embed, model.norm, model.head = nn.Conv2d(3, CHANNELS, 4, 4), nn.LayerNorm(CHANNELS), nn.Linear(CHANNELS, 5)
    return model.eval(), prove(model, trace(model, image()), image()).graph


def half(graph: ChannelGraph) -> Candidate:
    return Candidate("test", {group.name: tuple(range(0, group.num_channels, 2)) for group in graph.groups})


@pytest.mark.parametrize("kind", [ShapeAttention, BesideIt, KeysOfFewerTokens])
def test_code_with_sizes_of_its_input_is_cut_everywhere(kind: type[Attention]) -> None:
    model, graph = network(kind)
    first = "attention.q" if kind is KeysOfFewerTokens else "attention.qkv"
    assert graph.widths == {"embed": CHANNELS, first: 4, "attention.heads": 3}
    smaller = cut(model, graph, half(graph))
    assert outputs(smaller, image((2, 3, 16, 16))).isfinite().all()
    assert type(model.get_submodule("attention")) is kind
    assert isinstance(smaller.get_submodule("attention"), kind)


def test_code_of_a_cut_network_copies_and_travels() -> None:
    model, graph = network(ShapeAttention)
    smaller = cut(model, graph, half(graph))
    want = outputs(smaller, image())
    for other in (copy.deepcopy(smaller), cloudpickle.loads(cloudpickle.dumps(smaller))):
        torch.testing.assert_close(outputs(other, image()), want)
    again = cut(model, graph, half(graph))
    assert type(again.get_submodule("attention")) is type(smaller.get_submodule("attention"))


def test_code_is_in_the_recipe_and_in_the_graph_as_json(tmp_path: Path) -> None:
    model, graph = network(BesideIt)
    assert ChannelGraph.from_json(json.loads(json.dumps(graph.to_json()))).edits == graph.edits
    smaller = cut(model, graph, half(graph))
    save(Store(str(tmp_path)), "", model=smaller, graph=graph, candidate=half(graph), provenance={})
    torch.testing.assert_close(outputs(load(model, str(tmp_path)), image()), outputs(smaller, image()))


def test_code_that_is_another_than_that_of_the_recipe_is_refused() -> None:
    model, graph = network(ShapeAttention)
    other = replace(graph, edits=(CodeEdit("attention", "forward", "x.reshape(B, N, D)", 2),))
    with pytest.raises(RecipeError, match=r"x.reshape\(B, N, D\)"):
        cut(model, other, half(graph))


def test_code_of_a_method_that_calls_its_parent_keeps_its_closure() -> None:
    module = OfItsParent().eval()
    x = torch.randn(1, 4, CHANNELS)
    want = module(x)
    edit_code(module, [CodeEdit("", "forward", "doubled.reshape(B, N, C)", 2)])
    torch.testing.assert_close(module(x), want)
