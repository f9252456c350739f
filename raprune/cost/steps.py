"""The step of widths at which the latency of a network falls on its device and runtime.

Vector units and tiles compute channels in blocks of 8, 16, 32 or 64. Widths within a block take as long as the whole
block, or longer. Whole networks at the ends of a step and in its middle show it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from raprune.cost.flops import CostModel, Counts
from raprune.cost.latency import Floats

STEPS = (64, 32, 16, 8, 4, 2)
"""Steps that are tried, the largest first."""
FRACTIONS = (1.0, 0.8, 0.6)
"""Fractions of the dense widths from which a step is taken."""
PART = 0.375
"""Fraction of a step's fall: the middle of a true step lies this far or further above the line between its ends."""
LEAST = 0.02
"""Fraction of the latency: a lesser distance from the line is not told from noise."""


def find_step(cost: CostModel, milliseconds: Callable[[Sequence[Counts]], Floats]) -> int:
    """Return the largest step within which narrower networks are hardly faster; 1 if there is none.

    All groups are narrowed by a whole step and by half a step. Where latency follows the widths, half a step gives half
    of the fall. `milliseconds` measures the networks of width vectors. At least half of the groups have two steps or
    more; narrower groups stay whole.
    """
    for step in STEPS:
        if np.median(cost.num_channels) < 2 * step:
            continue
        vectors = [_below(cost, step, fraction, down) for fraction in FRACTIONS for down in (0, step // 2, step)]
        wide_ms, middle_ms, narrow_ms = milliseconds(vectors).reshape(-1, 3).sum(axis=0).tolist()
        if middle_ms - (wide_ms + narrow_ms) / 2 > max(PART * (wide_ms - narrow_ms), LEAST * wide_ms):
            return step
    return 1


def _below(cost: CostModel, step: int, fraction: float, down: int) -> Counts:
    """Return multiples of `step` near the fraction of the dense widths, less `down`; narrow groups stay whole."""
    multiples = np.maximum((cost.num_channels * fraction).astype(np.int64) // step, 2) * step
    return np.where(cost.num_channels < 2 * step, cost.num_channels, multiples - down)
