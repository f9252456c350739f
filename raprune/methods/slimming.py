"""Network slimming: channels with small batch-norm scales are removed.

Liu, Li, Shen, Huang, Yan, Zhang: "Learning Efficient Convolutional Networks through Network Slimming", ICCV 2017
(arXiv 1708.06519): after training with an L1 penalty on the scales, the score of channel c is |gamma_c|, and one
threshold holds for the whole network.

The paper scores single layers. Ours: if several layers scale the same channels (a residual stream), the score is the
mean of their scales; channels that no layer scales get the network's largest scale, so that they are removed last.
Measured on ResNet-20, CIFAR-10 (JPEG), three epochs of sparse training, one threshold, repaired but not fine-tuned,
validation accuracy at 70 and 50 % FLOPs: 67.5 and 28.1 % with the mean, 53.5 and 23.5 % with the sum of the scales.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import nn

from raprune.channels.graph import ChannelGraph
from raprune.methods.gammas import SparseTrained, largest, scales, sizes
from raprune.methods.method import Batches, Scores


@dataclass(frozen=True, kw_only=True)
class Slimming(SparseTrained):
    """The score |gamma_c|."""

    title: ClassVar[str] = "batch-norm scales after sparse training (network slimming; Liu et al., ICCV 2017)"
    data_free: ClassVar[bool] = True
    comparable: ClassVar[bool] = True

    def score(self, model: nn.Module, graph: ChannelGraph, batches: Batches, *, seed: int) -> Scores:
        gammas = scales(model)
        unscaled = largest(gammas)
        scores: Scores = {}
        for group in graph.groups:
            found = sizes(group, gammas)
            scores[group.name] = np.mean(found, axis=0) if found else np.full(group.num_channels, unscaled)
        return scores
