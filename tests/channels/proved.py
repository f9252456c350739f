"""Proved graphs of the small networks, and random candidates, for the tests of trace, cost and cut."""

from __future__ import annotations

from functools import cache

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from raprune.channels.graph import ChannelGraph
from raprune.channels.proof import prove
from raprune.channels.trace import trace
from raprune.records import Candidate
from tests.channels.networks import build, image


@cache
def proved(name: str) -> tuple[nn.Module, ChannelGraph]:
    """Return a small network and its proved graph."""
    model = build(name)
    return model, prove(model, trace(model, image()), image()).graph


def candidates(graph: ChannelGraph) -> st.SearchStrategy[Candidate]:
    """Draw any channels of all groups, at least one channel of each group."""
    kept = {
        group.name: st.sets(st.integers(0, group.num_channels - 1), min_size=1).map(lambda s: tuple(sorted(s)))
        for group in graph.groups
    }
    return st.fixed_dictionaries(kept).map(lambda kept: Candidate("test", kept))


def outputs(model: nn.Module, x: Tensor) -> Tensor:
    """Return all outputs of the network as one vector."""
    with torch.no_grad():
        return torch.cat([value.reshape(-1) for value in pytree.tree_leaves(model(x))])


def counted_flops(model: nn.Module, x: Tensor) -> int:
    """Return PyTorch's own count of FLOPs."""
    counter = FlopCounterMode(display=False)
    with counter:
        model(x)
    return int(counter.get_total_flops())
