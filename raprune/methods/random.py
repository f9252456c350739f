"""Random scores: the baseline that every method must beat.

At high sparsity random selection with good widths beats most published criteria, so every search includes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import nn

from raprune.channels.graph import ChannelGraph
from raprune.methods.method import Batches, Method, Scores


@dataclass(frozen=True, kw_only=True)
class Random(Method):
    """Scores that are uniform in [0, 1), by seed."""

    title: ClassVar[str] = "random scores, the baseline"
    data_free: ClassVar[bool] = True
    seeded: ClassVar[bool] = True

    def score(self, model: nn.Module, graph: ChannelGraph, batches: Batches, *, seed: int) -> Scores:
        generator = np.random.default_rng(seed)
        return {group.name: generator.random(group.num_channels) for group in graph.groups}
