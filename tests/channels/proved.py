"""What the tests of trace, cost and surgery share: proved graphs of the small networks, and random candidates."""

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
    """A small network and its proved graph."""
    model = build(name)
    return model, prove(model, trace(model, image()), image()).graph


def candidates(graph: ChannelGraph) -> st.SearchStrategy[Candidate]:
    """Any channels of any groups, at least one of each."""
    kept = {
        group.name: st.sets(st.integers(0, group.num_channels - 1), min_size=1).map(lambda s: tuple(sorted(s)))
        for group in graph.groups
    }
    return st.fixed_dictionaries(kept).map(lambda kept: Candidate("test", kept))


def outputs(model: nn.Module, x: Tensor) -> Tensor:
    """All outputs of the network in one line."""
    with torch.no_grad():
        return torch.cat([value.reshape(-1) for value in pytree.tree_leaves(model(x))])


def counted_flops(model: nn.Module, x: Tensor) -> int:
    """PyTorch's own count."""
    counter = FlopCounterMode(display=False)
    with counter:
        model(x)
    return int(counter.get_total_flops())
