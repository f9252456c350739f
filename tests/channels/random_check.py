"""The check of one random network: traced, proved, cut, and compared with masking by hooks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from raprune.channels.cut import cut
from raprune.channels.graph import ChannelGraph
from raprune.channels.proof import prove
from raprune.channels.trace import trace
from raprune.cost.flops import CostModel, measured
from raprune.errors import ModelError
from raprune.records import Candidate
from tests.channels.hook_masking import norms_that_scale, removed_channels_zeroed
from tests.channels.random_networks import RandomNetwork, Step
from tests.channels.random_steps import SIZE

TOLERANCE = 1e-8
"""Largest difference that float64 arithmetic explains, as a fraction of the largest output."""


def checked(program: tuple[Step, ...], seed: int = 0) -> str:
    """Return `proved`, `frozen` or `refused`; raise AssertionError if a proved cut is wrong.

    `frozen` means that nothing can go but the network says why.
    """
    model = RandomNetwork(program, seed).eval()
    image = torch.zeros(1, 3, SIZE, SIZE)
    try:
        graph = prove(model, trace(model, image), image, seed=seed).graph
    except ModelError:
        return "refused"
    stays = [frozen for frozen in graph.frozen if frozen.reason != "the network's output"]
    assert all(frozen.reason for frozen in stays), "channels stay without a reason"
    if not graph.groups:
        assert stays, "nothing can go, and no reason is given"
        return "frozen"
    compare(model, graph, seed)
    return "proved"


def compare(model: nn.Module, graph: ChannelGraph, seed: int) -> None:
    """Cut a random half and compare: outputs with masking by hooks, costs with the closed form."""
    generator = torch.Generator().manual_seed(seed)
    kept = {
        group.name: tuple(
            sorted(torch.randperm(group.num_channels, generator=generator)[: max(1, group.num_channels // 2)].tolist())
        )
        for group in graph.groups
    }
    widths = [len(kept[group.name]) for group in graph.groups]
    # In float32, because PyTorch counts a recurrent layer otherwise in float64.
    flops, params = measured(cut(model, graph, Candidate("half", kept)), torch.zeros(1, 3, SIZE, SIZE))
    assert flops == int(CostModel(graph).flops(widths)), "the closed form of the FLOPs is wrong"
    assert params == int(CostModel(graph).params(widths)), "the closed form of the parameters is wrong"
    dense = model.double()
    smaller = cut(dense, graph, Candidate("half", kept))
    x = torch.randn(2, 3, SIZE, SIZE, generator=generator, dtype=torch.float64)
    assert run(smaller, x).isfinite().all(), "the cut network is not finite"
    with norms_that_scale(dense), norms_that_scale(smaller), removed_channels_zeroed(dense, graph, kept):
        reference, out = run(dense, x), run(smaller, x)
    error = float((out - reference).abs().max() / reference.abs().max().clamp_min(1e-300))
    assert error <= TOLERANCE, f"the cut network differs from the masked one by {error:.0e}"


def run(model: nn.Module, x: Tensor) -> Tensor:
    """Return the output."""
    torch.backends.mha.set_fastpath_enabled(False)  # which calls no hooks
    try:
        with torch.no_grad():
            out: Tensor = model(x)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    return out
