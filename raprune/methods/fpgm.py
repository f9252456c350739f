"""Filter pruning via geometric median: filters that the other filters can replace are removed.

He, Liu, Wang, Hu, Yang: "Filter Pruning via Geometric Median for Deep Convolutional Neural Networks Acceleration", CVPR
2019 (arXiv 1811.00250): the score of filter c is sum_j ||W_c - W_j||_2 over the layer's filters j. A filter near the
geometric median has a small score.

The paper scores single layers; scores of layers that write the same channels are added as in `magnitude.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from raprune.channels.graph import ChannelGraph
from raprune.methods.magnitude import sum_over_layers
from raprune.methods.method import Batches, Method, Scores


@dataclass(frozen=True, kw_only=True)
class Fpgm(Method):
    """The score sum_j ||W_c - W_j||_2."""

    title: ClassVar[str] = "distance to the layer's other filters (FPGM; He et al., CVPR 2019)"
    data_free: ClassVar[bool] = True

    def score(self, model: nn.Module, graph: ChannelGraph, batches: Batches, *, seed: int) -> Scores:
        return sum_over_layers(model, graph, lambda filters_OI: torch.cdist(filters_OI, filters_OI).sum(dim=1))
