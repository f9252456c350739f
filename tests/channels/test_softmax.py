"""The inputs of softmax in a proof, and the scale of attention whose queries were pooled or normalised."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from raprune.channels.cut import cut
from raprune.channels.graph import ChannelGraph
from raprune.channels.proof import prove
from raprune.channels.softmax import SoftmaxInputs
from raprune.channels.trace import trace
from raprune.records import Candidate
from tests.channels.networks import Attention, Transformer, image
from tests.channels.proved import outputs

HEADS, WIDTH, CHANNELS = Attention.HEADS, Attention.WIDTH, Attention.CHANNELS


class PooledQueries(Attention):
    """The largest of neighbouring queries counts, as in SAM 2."""

    def mixed(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        batch, heads, tokens, _ = q.shape
        tall = q.transpose(1, 2).reshape(batch, tokens // 2, 2, -1).permute(0, 3, 1, 2)
        pooled = functional.max_pool2d(tall, 2, 1, (1, 0))[:, :, :2].permute(0, 2, 3, 1)
        q = pooled.reshape(batch, 2, heads, -1).transpose(1, 2)
        return functional.scaled_dot_product_attention(q, k, v).repeat(1, 1, 2, 1)


class QueriesOfWindows(Attention):
    """Attention over five axes, with the largest of two queries, as in Hiera."""

    def mixed(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.unflatten(2, (2, 2)) for x in (q, k, v))
        q = q.unflatten(3, (2, 1)).amax(3)
        return functional.scaled_dot_product_attention(q, k, v).repeat(1, 1, 1, 2, 1).flatten(2, 3)


class NormedQueries(nn.Module):
    """One head, whose queries and keys pass a batch norm, as in iFormer."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Conv1d(CHANNELS, 6, 1, bias=False) for _ in range(3))
        self.q_norm, self.k_norm, self.proj = nn.BatchNorm1d(6), nn.BatchNorm1d(6), nn.Linear(6, CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(1, 2)
        q, k, v = (y.transpose(1, 2).unsqueeze(1) for y in (self.q_norm(self.q(x)), self.k_norm(self.k(x)), self.v(x)))
        out: Tensor = self.proj(functional.scaled_dot_product_attention(q, k, v).squeeze(1))
        return out


KINDS = {"pooled": PooledQueries, "windows": QueriesOfWindows, "normed": NormedQueries}


def network(kind: str) -> tuple[nn.Module, ChannelGraph]:
    """Return a network whose weights are small, as those of networks that were never trained."""
    torch.manual_seed(0)
    model = Transformer(KINDS[kind]()).eval()
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, nn.BatchNorm1d):
                assert module.running_mean is not None
                module.running_mean.uniform_(-1, 1)
                module.bias.uniform_(-1, 1)
            elif isinstance(module, nn.Linear) and "qkv" in name:
                module.weight.mul_(0.01)
    return model, trace(model, image())


def width_group(graph: ChannelGraph) -> str:
    return "attention.q" if "attention.q" in graph.widths else "attention.qkv"


@pytest.mark.parametrize("kind", KINDS)
def test_cut_of_widths_keeps_the_scale_behind_pooling_and_norms(kind: str) -> None:
    model, graph = network(kind)
    graph = prove(model, graph, image()).graph
    group = graph.by_name[width_group(graph)]
    assert [frozen.module for frozen in graph.frozen] == ["head"]
    model = model.double()
    with torch.no_grad():  # large products, so that the scale is seen
        for name, module in model.named_modules():
            if name.startswith("attention.q") and isinstance(module, nn.Linear | nn.BatchNorm1d):
                module.weight.mul_(300 if isinstance(module, nn.Linear) else 3)
    smaller = cut(model, graph, Candidate("test", {group.name: (0, 3)}))
    gone = [c for c in range(group.num_channels) if c not in (0, 3)]
    with torch.no_grad():
        for member in group.members:
            positions = torch.from_numpy(member.indices[gone].reshape(-1))
            tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
            tensors[member.parameter].index_fill_(member.axis, positions, 0.0)
    x = image().double()
    torch.testing.assert_close(outputs(smaller, x), outputs(model, x))


@pytest.mark.parametrize("kind", KINDS)
def test_proof_sees_a_wrong_scale_in_products_that_are_almost_equal(kind: str) -> None:
    model, graph = network(kind)
    width = width_group(graph)
    assert {scale.group for scale in graph.scales} == {width}
    proof = prove(model, replace(graph, scales=()), image())
    assert width in proof.frozen
    assert width not in proof.graph.widths


def test_softmax_inputs_of_some_heads_are_among_those_of_all() -> None:
    x = torch.randn(2, 4, 5, 6, dtype=torch.float64)
    for change, differ in ((0.0, False), (1e-3, True)):
        inputs = SoftmaxInputs()
        inputs.softmax(x, -1)
        inputs.replay()
        inputs.softmax(x[:, [3, 1]] + change, -1)
        assert inputs.differ == differ


def test_softmax_inputs_of_one_value_are_compared() -> None:
    inputs = SoftmaxInputs()
    inputs.softmax(torch.full((2, 3, 1, 1), 0.1), -1)
    inputs.replay()
    inputs.softmax(torch.full((2, 3, 1, 1), 0.2), -1)
    assert inputs.differ


def test_softmax_inputs_that_a_mask_hides_do_not_count() -> None:
    inputs = SoftmaxInputs()
    inputs.softmax(torch.tensor([[0.5, -torch.inf]]), -1)
    inputs.replay()
    inputs.softmax(torch.tensor([[0.5, -1e4]]), -1)
    assert not inputs.differ
