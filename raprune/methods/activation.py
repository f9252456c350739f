"""Mean activation: channels with small activations are removed. A baseline without a paper; the score is mean |a_c|."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from raprune.channels.graph import ChannelGraph
from raprune.methods.activations import score_by_readers
from raprune.methods.method import Batches, Method, Scores


@dataclass(frozen=True, kw_only=True)
class Activation(Method):
    """The mean of |a_c| over images and positions, at the inputs of the layers that read channel c."""

    title: ClassVar[str] = "mean absolute activation"

    def score(self, model: nn.Module, graph: ChannelGraph, batches: Batches, *, seed: int) -> Scores:
        return score_by_readers(model, graph, batches, lambda x_BCP: x_BCP.abs().mean(dim=2))
