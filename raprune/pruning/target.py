"""The target of a candidate, and the test that widths meet it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from raprune.cost.flops import CostModel, Counts
from raprune.cost.latency import Floats
from raprune.spec.budget import Budget


@dataclass(frozen=True, kw_only=True)
class Target:
    """The target of a candidate: fractions of the dense network, and the widths that are allowed."""

    budget: Budget
    min_channels: int = 1
    multiple_of: int = 1


def against_limits(cost: CostModel, target: Target, widths: Counts) -> list[tuple[Counts | Floats, float]]:
    """Return for each limit of the target the costs at these widths, and the limit.

    FLOPs without a limit still weigh in against the dense network's: of two moves that save as many parameters, the one
    that saves more FLOPs comes first. Beside a limit of latency, which stands for the time itself, they do not.
    """
    budget = target.budget
    flops = 1.0 if budget.flops is None else budget.flops
    found: list[tuple[Counts | Floats, float]] = []
    if budget.flops is not None or budget.latency is None:
        found.append((cost.flops(widths), flops * cost.dense_flops))
    if budget.params is not None:
        found.append((cost.params(widths), budget.params * cost.dense_params))
    if budget.memory is not None:
        found.append((cost.memory_bytes(widths), budget.memory * cost.dense_memory))
    if budget.latency is not None:
        found.append((cost.latency_ms(widths), budget.latency * cost.dense_latency_ms))
    return found


def fits(cost: CostModel, target: Target, widths: Counts) -> bool:
    """True if the widths are within the target."""
    return all(float(count) <= limit for count, limit in against_limits(cost, target, widths))


def all_fit(cost: CostModel, target: Target, vectors: Counts) -> npt.NDArray[np.bool_]:
    """True for each width vector, a row of `vectors`, that is within the target."""
    within = np.ones(len(vectors), dtype=bool)
    for counts, limit in against_limits(cost, target, vectors):
        within &= counts <= limit
    return within
