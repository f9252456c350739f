"""Attention: heads and widths are separate groups, numbers on modules follow a cut, and the scale stays."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from raprune.channels.cut import cut
from raprune.channels.graph import ChannelGraph
from raprune.channels.proof import prove
from raprune.channels.trace import trace
from raprune.cost.flops import CostModel, measured, prunable_params_fraction
from raprune.records import Candidate
from tests.channels.networks import Attention, JoinedBias, SharedKeys, Transformer, image
from tests.channels.proved import outputs

HEADS, WIDTH, CHANNELS = Attention.HEADS, Attention.WIDTH, Attention.CHANNELS


class SeparateAttention(Attention):
    """Queries, keys and values from layers of their own, with norms of queries and keys."""

    def __init__(self) -> None:
        super().__init__()
        del self.qkv
        self.q, self.k, self.v = (nn.Linear(CHANNELS, HEADS * WIDTH) for _ in range(3))
        self.q_norm, self.k_norm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        out: Tensor = self.proj(self.mixed(self.q_norm(q), self.k_norm(k), v).transpose(1, 2).flatten(2))
        return out


class PackedAttention(Attention):
    """Queries, keys and values lie side by side in each head, as in LeViT."""

    def forward(self, x: Tensor) -> Tensor:
        packed = self.qkv(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        q, k, v = packed.split(packed.shape[-1] // 3, dim=-1)
        out: Tensor = self.proj(self.mixed(q, k, v).transpose(1, 2).flatten(2))
        return out


class TalkingHeads(Attention):
    """The products of all heads are mixed before the softmax, as in CaiT."""

    def __init__(self) -> None:
        super().__init__()
        self.talk = nn.Linear(HEADS, HEADS)

    def mixed(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        products = q * self.scale @ k.transpose(-2, -1)
        return self.talk(products.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).softmax(-1) @ v


class BiasOfHeads(Attention):
    """Relative positions from a table and a scale of each head, as in Swin."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.logit_scale = nn.Parameter(torch.randn(9, HEADS)), nn.Parameter(torch.rand(HEADS, 1, 1))
        self.register_buffer("index", (torch.arange(4)[:, None] - torch.arange(4)[None]).reshape(-1) + 4)

    def mixed(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        assert isinstance(self.index, Tensor)
        bias = self.table[self.index].view(4, 4, -1).permute(2, 0, 1)
        products = q @ k.transpose(-2, -1) * self.logit_scale.exp()
        return (products + bias.unsqueeze(0)).softmax(-1) @ v


class Places(nn.Module):
    """A table of positions with a number for each head."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.bias_shape = nn.Parameter(torch.randn(9, HEADS)), (4, 4, HEADS)
        self.register_buffer("index", (torch.arange(4)[:, None] - torch.arange(4)[None]).reshape(-1) + 4)

    def bias(self) -> Tensor:
        assert isinstance(self.index, Tensor)
        return self.table[self.index].view(self.bias_shape).permute(2, 0, 1).unsqueeze(0)


class BiasOfPart(Attention):
    """The table of positions is that of a part with a shape of its own, as in MaxViT."""

    def __init__(self) -> None:
        super().__init__()
        self.places = Places()

    def mixed(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return functional.scaled_dot_product_attention(q, k, v, self.places.bias())


class BiasOfNetwork(Attention):
    """A network of relative coordinates gives the mask of fused attention, as in a ViT with relative positions."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Linear(2, 6), nn.Linear(6, HEADS)
        self.register_buffer("coordinates", torch.randn(16, 2))

    def mixed(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        bias = self.narrow(self.wide(self.coordinates).relu()).view(4, 4, -1).permute(2, 0, 1).unsqueeze(0)
        return functional.scaled_dot_product_attention(q, k, v, bias)


class Rotary(Attention):
    """Queries and keys are turned by their positions, pair by pair, as in EVA."""

    def mixed(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        angles = torch.arange(4.0).to(q)[:, None] * torch.tensor([1.0, 1.0, 0.1, 0.1]).to(q)

        def turned(x: Tensor) -> Tensor:
            across = torch.stack([-x[..., 1::2], x[..., ::2]], -1).reshape(x.shape)
            return x * angles.cos() + across * angles.sin()

        return functional.scaled_dot_product_attention(turned(q), turned(k), v)


class HardNumbers(Attention):
    """The number of channels of the output comes from the input."""

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, 3, 4).permute(2, 0, 3, 1, 4).unbind(0)
        out: Tensor = self.proj(self.mixed(q, k, v).transpose(1, 2).reshape(batch, tokens, 12))
        return out


class ClassToken(nn.Module):
    """Attention of one token to all, whose queries have an axis of heads and one of a single token, as VOLO's."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.head_dim = HEADS, WIDTH
        self.kv, self.q = nn.Linear(CHANNELS, 2 * HEADS * WIDTH), nn.Linear(CHANNELS, HEADS * WIDTH)
        self.proj = nn.Linear(HEADS * WIDTH, CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        k, v = self.kv(x).reshape(b, n, 2, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        q = self.q(x[:, :1]).reshape(b, self.num_heads, 1, self.head_dim)
        seen = (q @ k.transpose(-2, -1)).softmax(-1) @ v
        token = self.proj(seen.transpose(1, 2).reshape(b, 1, self.head_dim * self.num_heads))
        return torch.cat([token, x[:, 1:]], dim=1)


class SelfAttention(nn.Module):
    """`nn.MultiheadAttention` over one input."""

    def __init__(self, *, need_weights: bool) -> None:
        super().__init__()
        self.inner, self.need_weights = nn.MultiheadAttention(CHANNELS, 2, batch_first=True), need_weights

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x, x, x, need_weights=self.need_weights)[0]
        return out


def network(kind: str) -> tuple[nn.Module, ChannelGraph]:
    torch.manual_seed(0)
    attention = {
        "fused": Attention,
        "written": lambda: Attention(fused=False),
        "separate": SeparateAttention,
        "packed": PackedAttention,
        "talking": TalkingHeads,
        "biased": BiasOfHeads,
        "shared": SharedKeys,
        "joined bias": JoinedBias,
        "biased by a part": BiasOfPart,
        "biased by a network": BiasOfNetwork,
        "rotary": Rotary,
        "hard": HardNumbers,
        "class token": ClassToken,
        "module": lambda: SelfAttention(need_weights=False),
        "module with weights": lambda: SelfAttention(need_weights=True),
    }[kind]()
    model = Transformer(attention).eval()
    return model, prove(model, trace(model, image()), image()).graph


WHOLE = (
    "fused",
    "written",
    "separate",
    "packed",
    "talking",
    "biased",
    "biased by a part",
    "biased by a network",
    "shared",
    "joined bias",
    "class token",
    "module",
    "module with weights",
)


@pytest.mark.parametrize("kind", WHOLE)
def test_attention_heads_and_widths_are_separate_groups(kind: str) -> None:
    _, graph = network(kind)
    heads = [group for group in graph.groups if group.name.endswith(".heads")]
    assert [frozen.module for frozen in graph.frozen] == ["head"]
    assert prunable_params_fraction(graph) > 0.97
    sizes = (2, CHANNELS // 2) if kind.startswith("module") else (HEADS, WIDTH)
    assert [group.num_channels for group in heads] == [sizes[0]]
    assert sizes[1] in [group.num_channels for group in graph.groups if group not in heads]


@pytest.mark.parametrize("kind", WHOLE)
def test_cut_of_heads_and_widths_costs_what_the_closed_form_says(kind: str) -> None:
    model, graph = network(kind)
    cost, rng = CostModel(graph), np.random.default_rng(0)
    for _ in range(4):
        kept = {
            group.name: tuple(sorted(rng.permutation(group.num_channels)[: rng.integers(1, group.num_channels)]))
            for group in graph.groups
        }
        smaller = cut(model, graph, Candidate("test", {name: tuple(map(int, c)) for name, c in kept.items()}))
        widths = cost.vector({name: len(channels) for name, channels in kept.items()})
        assert (int(cost.flops(widths)), int(cost.params(widths))) == measured(smaller, image())


@pytest.mark.parametrize("kind", WHOLE)
def test_cut_in_two_steps_equals_a_cut_at_once(kind: str) -> None:
    model, graph = network(kind)
    first = {group.name: tuple(range(group.num_channels - 1)) for group in graph.groups}
    second = {name: kept[: max(1, len(kept) - 1)] for name, kept in first.items()}
    steps = cut(cut(model, graph, Candidate("test", first)), graph.after(first), Candidate("test", second))
    torch.testing.assert_close(outputs(steps, image()), outputs(cut(model, graph, Candidate("test", second)), image()))


def test_cut_of_a_head_equals_zeros_in_the_output_projection() -> None:
    model, graph = network("fused")
    smaller = cut(model, graph, Candidate("test", {"attention.heads": (0, 2)}))
    with torch.no_grad():
        model.get_parameter("attention.proj.weight")[:, WIDTH : 2 * WIDTH] = 0
    torch.testing.assert_close(outputs(smaller, image()), outputs(model, image()))


def test_cut_of_widths_keeps_the_scale_of_fused_attention() -> None:
    model, graph = network("fused")
    smaller = cut(model, graph, Candidate("test", {"attention.qkv": (0, 3)}))
    with torch.no_grad():
        rows = model.get_parameter("attention.qkv.weight").view(3, HEADS, WIDTH, CHANNELS)
        model.get_parameter("attention.qkv.bias").view(3, HEADS, WIDTH)[:, :, 1:3] = 0
        rows[:, :, 1:3] = 0
    torch.testing.assert_close(outputs(smaller, image()), outputs(model, image()))


def test_numbers_on_modules_follow_the_cut() -> None:
    model, graph = network("fused")
    smaller = cut(model, graph, Candidate("test", {"attention.qkv": (0, 3), "attention.heads": (1,)}))
    numbers = vars(smaller.get_submodule("attention"))
    assert [numbers[name] for name in ("num_heads", "head_dim", "attn_dim")] == [1, 2, 2]
    assert numbers["scale"] == WIDTH**-0.5
    assert vars(model.get_submodule("attention"))["num_heads"] == HEADS


def test_graph_with_heads_survives_json() -> None:
    _, graph = network("fused")
    again = ChannelGraph.from_json(graph.to_json())
    assert again.to_json() == graph.to_json()
    assert again.attributes == graph.attributes
    assert again.scales == graph.scales
    assert again.products == graph.products


def test_attention_coordinates_in_a_buffer_are_no_channels() -> None:
    class Coordinates(nn.Module):
        """A network of relative coordinates gives a bias, as in Swin v2."""

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("coordinates", torch.randn(16, 2))
            self.wide, self.narrow, self.mix = nn.Linear(2, 6), nn.Linear(6, 4), nn.Linear(CHANNELS, CHANNELS)

        def forward(self, x: Tensor) -> Tensor:
            bias = self.narrow(self.wide(self.coordinates)).mean(1).view(4, 4)
            return self.mix(bias @ x)

    torch.manual_seed(0)
    model = Transformer(Coordinates()).eval()
    graph = prove(model, trace(model, image()), image()).graph
    assert "attention.wide" in graph.widths
    assert not any(member.parameter.endswith("coordinates") for group in graph.groups for member in group.members)


def test_attention_with_rotary_positions_loses_heads_and_no_widths() -> None:
    _, graph = network("rotary")
    assert graph.widths["attention.heads"] == HEADS
    assert "attention.qkv" not in graph.widths
    assert {"embed", "attention.heads"} <= set(graph.widths)


def test_numbers_of_heads_in_the_code_stay_with_the_place_that_stops() -> None:
    _, graph = network("hard")
    reasons = {frozen.module: frozen.reason for frozen in graph.frozen}
    assert set(graph.by_name) == {"embed", "attention.qkv"}
    assert "stops in attention" in reasons["attention.heads"]


def test_module_attention_of_a_cut_network_takes_masks_as_before() -> None:
    """A cut that removes one channel of the stream, which is zero, changes nothing."""
    model, graph = network("module with weights")
    with torch.no_grad():
        for member in graph.by_name["embed"].members:
            parameter = model.get_parameter(member.parameter)
            parameter.index_fill_(member.axis, torch.from_numpy(member.indices[-1]), 0.0)
    dense = model.get_submodule("attention.inner")
    kept = {"embed": tuple(range(CHANNELS - 1))}
    smaller = cut(model, graph, Candidate("test", kept)).get_submodule("attention.inner")
    x = torch.randn(2, 4, CHANNELS)
    padding = torch.zeros(2, 4, dtype=torch.bool)
    padding[1, 3] = True
    mask = torch.triu(torch.full((4, 4), -torch.inf), 1)
    for options in ({}, {"key_padding_mask": padding}, {"attn_mask": mask, "average_attn_weights": False}):
        want, weights = dense(x, x, x, **options)
        short = x[..., :-1]
        came, attention = smaller(short, short, short, **options)
        torch.testing.assert_close(came, want[..., :-1])
        torch.testing.assert_close(attention, weights)
