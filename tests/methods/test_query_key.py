"""Tests of queries and keys of fewer widths against the singular value decomposition of the dense products."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from raprune.channels.cut import cut
from raprune.channels.graph import ChannelGraph
from raprune.channels.members import Group
from raprune.channels.multihead import projections_called
from raprune.channels.proof import prove
from raprune.channels.trace import trace
from raprune.methods.least_squares import refit
from raprune.methods.method import Cut
from raprune.methods.query_key import match_products, width_errors
from raprune.methods.reconstruction import Reconstruction
from raprune.pruning.keys import score_key
from raprune.records import Candidate
from raprune.spec.job import SearchSpec
from tests.channels.networks import Attention, JoinedBias, SharedKeys, Transformer

HEADS, WIDTH, CHANNELS = Attention.HEADS, Attention.WIDTH, Attention.CHANNELS
KEPT = (1, 2)


class Separate(Attention):
    """Queries, keys and values from layers of their own, so that the widths of values are another group."""

    def __init__(self, *, bias: bool = True, fused: bool = True) -> None:
        super().__init__(fused=fused)
        del self.qkv
        self.q, self.k, self.v = (nn.Linear(CHANNELS, HEADS * WIDTH, bias=bias) for _ in range(3))
        self.turned: Callable[[Tensor], Tensor] = lambda x: x

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        out: Tensor = self.proj(self.mixed(self.turned(q), self.turned(k), v).transpose(1, 2).flatten(2))
        return out


class Normed(Separate):
    """A norm of queries and of keys over the width of a head."""

    def __init__(self) -> None:
        super().__init__()
        self.turned = nn.LayerNorm(WIDTH)


class Gated(Separate):
    """The queries of each head also scale what it gives, so that their basis has another reader."""

    def mixed(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return super().mixed(q, k, v) * q.square().sum(-1, keepdim=True)


class Multihead(nn.Module):
    """PyTorch's own attention."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(CHANNELS, 2, batch_first=True)
        nn.init.normal_(self.inner.in_proj_bias)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x, x, x, need_weights=False)[0]
        return out


def made(attention: Callable[[], nn.Module]) -> tuple[Transformer, ChannelGraph]:
    torch.manual_seed(0)
    model = Transformer(attention()).eval()
    image = torch.randn(1, 3, 8, 8)
    return model, prove(model, trace(model, image), image).graph


def images() -> Tensor:
    return torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def widths_of(graph: ChannelGraph, number: int = 0) -> Group:
    """Return the group of the widths of the queries of a product."""
    rows = graph.products[number].queries[0]
    return next(
        group
        for group in graph.groups
        for member in group.members
        if not group.name.endswith(".heads") and (member.parameter, member.axis) == (rows.parameter, 0)
    )


def narrowed(model: nn.Module, graph: ChannelGraph, kept: Mapping[str, tuple[int, ...]]) -> nn.Module:
    """Return the cut network whose queries and keys give the best products."""
    smaller = cut(model, graph, Candidate("test", kept))
    with torch.no_grad(), projections_called(model):
        match_products(smaller, images().split(16), Cut(dense=model, graph=graph, kept=kept))
    return smaller


def products_of(model: nn.Module) -> Tensor:
    """Return the products of the queries and keys of all tokens of all images, `(heads, tokens, tokens)`."""
    seen: list[Tensor] = []

    def note(_: nn.Module, inputs: Any, out: Tensor) -> None:
        seen.append(out.flatten(0, 1).unflatten(-1, (HEADS, -1)).transpose(0, 1))

    handles = [model.get_submodule(f"attention.{name}").register_forward_hook(note) for name in "qk"]
    with torch.no_grad():
        model(images())
    for handle in handles:
        handle.remove()
    return seen[0] @ seen[1].mT


def make_narrow(model: nn.Module, graph: ChannelGraph) -> None:
    """Give the products of each head as few directions as `KEPT` has, and the values no others than `KEPT`."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for number, product in enumerate(graph.products):
            inside: dict[str, set[int]] = {}
            for rows in (*product.queries, *product.keys):
                inside.setdefault(rows.parameter, set()).update(rows.positions.reshape(-1).tolist())
            for rows in product.queries:
                for head, positions in enumerate(torch.from_numpy(rows.positions)):
                    # Heads that share their keys share the directions, too.
                    seed = int(product.keys[0].positions[head, 0])
                    plane = torch.randn(len(positions), len(KEPT), generator=torch.Generator().manual_seed(seed))
                    plane = torch.linalg.qr(plane).Q
                    parameters[rows.parameter][positions] = plane @ plane.mT @ parameters[rows.parameter][positions]
            group = widths_of(graph, number)
            for member in group.members:
                gone = [c for c in range(group.num_channels) if c not in KEPT]
                places = set(member.indices[gone].reshape(-1).tolist()) - inside.get(member.parameter, set())
                if member.axis == 0 and member.parameter in parameters:
                    parameters[member.parameter][sorted(places)] = 0.0


@pytest.mark.parametrize("bias", [False, True])
def test_products_of_narrow_heads_are_the_best_of_their_rank(bias: bool) -> None:
    model, graph = made(lambda: Separate(bias=bias, fused=False))
    kept, wanted = {widths_of(graph).name: KEPT}, products_of(model)
    U, S, Vh = torch.linalg.svd(wanted, full_matrices=False)
    best = U[..., : len(KEPT)] * S[:, None, : len(KEPT)] @ Vh[:, : len(KEPT)]
    found = products_of(narrowed(model, graph, kept))
    torch.testing.assert_close(found, best, atol=1e-4, rtol=1e-3)
    without = products_of(cut(model, graph, Candidate("test", kept)))
    assert (found - wanted).norm() < 0.8 * (without - wanted).norm()


@pytest.mark.parametrize(
    "attention", [Separate, lambda: Separate(fused=False), Attention, SharedKeys, JoinedBias, Multihead]
)
def test_products_that_a_narrow_head_can_give_leave_no_error(attention: Callable[[], nn.Module]) -> None:
    model, graph = made(attention)
    make_narrow(model, graph)
    smaller = narrowed(model, graph, {widths_of(graph).name: KEPT})
    with torch.no_grad():
        torch.testing.assert_close(smaller(images()), model(images()), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("asymmetric", [True, False])
@pytest.mark.parametrize("attention", [Separate, Attention, Multihead])
def test_refit_behind_a_cut_keeps_the_best_products(attention: Callable[[], nn.Module], asymmetric: bool) -> None:
    model, graph = made(lambda: nn.Sequential(attention(), attention()))
    make_narrow(model, graph)
    kept = {widths_of(graph, number).name: KEPT for number in (0, 1)}
    smaller = cut(model, graph, Candidate("test", kept))
    how = Cut(dense=model, graph=graph, kept=kept)
    refit(smaller, lambda: iter([(images(), torch.zeros(64))]), how, asymmetric=asymmetric)
    with torch.no_grad():
        torch.testing.assert_close(smaller(images()), model(images()), rtol=1e-3, atol=1e-4)


def test_heads_and_widths_that_go_together_keep_the_best_products_of_the_other_heads() -> None:
    model, graph = made(Attention)
    make_narrow(model, graph)
    heads = narrowed(model, graph, {"attention.heads": (0, 2), widths_of(graph).name: KEPT})
    with torch.no_grad():
        torch.testing.assert_close(
            heads(images()), cut(model, graph, Candidate("test", {"attention.heads": (0, 2)}))(images())
        )


def test_weights_of_whole_widths_stay_as_they_are() -> None:
    model, graph = made(Attention)
    kept = {"attention.heads": (0, 2)}
    smaller = narrowed(model, graph, kept)
    state = cut(model, graph, Candidate("test", kept)).state_dict()
    assert all(torch.equal(value, state[name]) for name, value in smaller.state_dict().items())


@pytest.mark.parametrize("attention", [Normed, Gated])
def test_queries_that_are_used_in_another_way_have_no_free_basis(attention: Callable[[], nn.Module]) -> None:
    _, graph = made(attention)
    assert not graph.products


def test_products_of_a_cut_network_follow_its_channels() -> None:
    model, graph = made(Attention)
    kept = {"attention.heads": (0, 2), widths_of(graph).name: (0, 1, 2)}
    smaller, after = cut(model, graph, Candidate("test", kept)), graph.after(kept)
    image = torch.randn(1, 3, 8, 8)
    assert after.products == prove(smaller, trace(smaller, image), image).graph.products


def test_activations_that_are_not_finite_are_refused() -> None:
    model, graph = made(Attention)
    with torch.no_grad():
        model.get_parameter("attention.qkv.bias")[0] = float("nan")
    with pytest.raises(FloatingPointError, match=r"attention\.qkv"):
        narrowed(model, graph, {widths_of(graph).name: KEPT})


def test_error_of_fewer_widths_is_what_the_best_products_lack() -> None:
    model, graph = made(lambda: Separate(fused=False))
    wanted = products_of(model)
    with torch.no_grad():
        (error,) = width_errors(model, graph, images().split(16), {"attention.q"})
    squares = torch.linalg.svdvals(wanted)[:, :WIDTH].square().sum(0).flip(0).cumsum(0)
    assert error.curve() == pytest.approx((squares / squares[-1]).numpy(), abs=1e-5)
    change = error.change(WIDTH - len(KEPT))
    layer = model.get_submodule("attention.q")
    assert isinstance(layer, nn.Linear) and change.bias is not None
    with torch.no_grad():
        layer.weight.add_(change.weight)
        layer.bias.add_(change.bias)
    lost = (products_of(model) - wanted).square().sum() / wanted.square().sum()
    assert float(lost) == pytest.approx(error.curve()[WIDTH - len(KEPT) - 1], rel=1e-3)


@pytest.mark.parametrize("attention", [Separate, Attention, Multihead])
def test_scores_of_widths_weigh_the_products(attention: Callable[[], nn.Module]) -> None:
    """Widths that no product needs are cheaper than those of a network whose products need all."""
    model, graph = made(attention)
    batches = lambda: iter([(images(), torch.zeros(64))])  # noqa: E731  # a function without a name
    method, name = Reconstruction(sensitivity=0.0), widths_of(graph).name
    needed = np.sort(method.score(model, graph, batches, seed=0)[name])
    make_narrow(model, graph)
    unneeded = np.sort(method.score(model, graph, batches, seed=0)[name])
    gone = len(unneeded) - len(KEPT) - 1
    assert unneeded[gone] < 0.5 * needed[gone]


def test_scores_that_weigh_the_products_have_a_key_of_their_own() -> None:
    """Scores in a folder of statistics that were computed before the products counted are not read."""
    _, graph = made(Separate)
    assert graph.products
    keys = {
        score_key(Reconstruction(), {}, one, SearchSpec(), base=None, images=8)
        for one in (graph, replace(graph, products=()))
    }
    assert len(keys) == 2


def test_refit_of_pytorchs_own_attention_fits_its_output_projection() -> None:
    model, graph = made(Multihead)
    kept = {"attention.inner.heads": (0,)}
    smaller, unfitted = (cut(model, graph, Candidate("test", kept)) for _ in range(2))
    refit(smaller, lambda: iter([(images(), torch.zeros(64))]), Cut(dense=model, graph=graph, kept=kept))
    with torch.no_grad():
        wanted = model(images())
        assert (smaller(images()) - wanted).norm() < 0.7 * (unfitted(images()) - wanted).norm()
    assert type(model.get_submodule("attention.inner")) is nn.MultiheadAttention
