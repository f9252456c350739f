"""Average percentage of zeros: channels that are mostly zero are removed.

Hu, Peng, Tai, Tang: "Network Trimming: A Data-Driven Neuron Pruning Approach towards Efficient Deep Architectures",
2016 (arXiv 1607.03250). APoZ_c is the fraction of zeros of channel c after its activation, over images and positions;
a channel with a high APoZ is pruned, so the score is 1 - APoZ_c.

The paper looks at one layer. Ours: the zeros are counted at the input of each layer that reads the channel, so after
pooling as well; if several layers read the channel, their scores are added.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from raprune.channels.graph import ChannelGraph
from raprune.methods.activations import score_by_readers
from raprune.methods.method import Batches, Method, Scores


@dataclass(frozen=True, kw_only=True)
class Apoz(Method):
    """The score 1 - APoZ_c, the fraction of non-zero activations."""

    title: ClassVar[str] = "fraction of non-zero activations (APoZ; Hu et al., 2016)"

    def score(self, model: nn.Module, graph: ChannelGraph, batches: Batches, *, seed: int) -> Scores:
        return score_by_readers(model, graph, batches, lambda x_BCP: (x_BCP != 0).double().mean(dim=2))
