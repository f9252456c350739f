"""Filter magnitude: small filters are removed.

Li, Kadav, Durdanovic, Samet, Graf: "Pruning Filters for Efficient ConvNets", ICLR 2017 (arXiv 1608.08710): the score of
filter j is the sum of its absolute weights, s_j = sum |W_j|. `L2` uses the Euclidean norm instead.

The paper scores single layers. Ours: if several layers write the same channels (a residual stream), their scores are
added, each divided by the Euclidean norm of its layer's scores so that no layer dominates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from raprune.channels.graph import ChannelGraph
from raprune.methods.method import Batches, Method, Scores


@dataclass(frozen=True, kw_only=True)
class L1(Method):
    """The score s_j = sum |W_j|."""

    title: ClassVar[str] = "sum of absolute filter weights (Li et al., ICLR 2017)"
    data_free: ClassVar[bool] = True

    def score(self, model: nn.Module, graph: ChannelGraph, batches: Batches, *, seed: int) -> Scores:
        return sum_over_layers(model, graph, lambda filters_OI: filters_OI.abs().sum(dim=1))


@dataclass(frozen=True, kw_only=True)
class L2(Method):
    """The score s_j = ||W_j||_2."""

    title: ClassVar[str] = "Euclidean norm of the filter"
    data_free: ClassVar[bool] = True

    def score(self, model: nn.Module, graph: ChannelGraph, batches: Batches, *, seed: int) -> Scores:
        return sum_over_layers(model, graph, lambda filters_OI: filters_OI.norm(dim=1))


def sum_over_layers(model: nn.Module, graph: ChannelGraph, rate: Callable[[Tensor], Tensor]) -> Scores:
    """Return the scores of all groups from a rating of filters.

    `rate` takes a layer's filters, shape `(out channels, weights of one filter)` in float64, and gives one value per
    filter. A group that no weight writes gets equal scores.
    """
    parameters = dict(model.named_parameters())
    scores: Scores = {}
    with torch.no_grad():
        for group in graph.groups:
            total = np.zeros(group.num_channels)
            for member in group.members:
                weight = parameters.get(member.parameter)
                if not member.writes or weight is None or weight.dim() < 2:
                    continue
                filters_OI = weight.detach().movedim(member.axis, 0).flatten(1).double()
                rated = rate(filters_OI).cpu().numpy()
                total += rated[member.indices].sum(axis=1) / max(float(np.linalg.norm(rated)), 1e-30)
            scores[group.name] = total
    return scores
