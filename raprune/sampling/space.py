"""The search space of a job: its targets, methods, allocations and keep ratios."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from raprune.records import Proposal, Setting
from raprune.spec.budget import Budget
from raprune.spec.job import BASELINES, SearchSpec

if TYPE_CHECKING:
    from raprune.cost.flops import CostModel, Counts

RATIOS = "ratios"
"""The allocation that follows a keep ratio for each block of groups."""

MAX_BLOCKS = 32
_LOWEST_MARGIN = 1.02
"""Factor of the lowest target over the lowest reachable cost: more than one network meets such a target."""


@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """The search space: the values that the search chooses among."""

    methods: tuple[str, ...]
    allocations: tuple[str, ...]
    """`ratios` among them draws a keep ratio for each block."""
    blocks: tuple[tuple[str, ...], ...]
    """Names of the groups that share one keep ratio, in network order."""
    lowest: float
    highest: float
    """Range of the sampled target, as fractions of the dense network."""
    target: str = "flops"
    """The cost that the target limits: `flops`, `params`, `latency` or `memory`."""
    cost: str = "flops"
    """The cost that accuracy is set against: `flops` or `latency`."""
    limits: Budget = field(default_factory=Budget)
    """Fixed limits of the other costs."""
    channels: Mapping[str, int] = field(default_factory=dict)
    """Group name -> its number of channels. A gate is a group of one: the name of its block -> 1."""
    gates: tuple[str, ...] = ()
    """Names of the blocks that may go, which are in `channels` as well."""
    baselines: tuple[str, ...] = ()
    """Methods that are tried for comparison, at spread targets, and not searched over."""
    fixed: Mapping[str, Mapping[str, Setting]] = field(default_factory=dict)
    """Method -> hyper-parameters that every proposal of it has."""
    settings: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    """Method -> name of a hyper-parameter -> `{"choices": [...]}` or `{"low", "high"}`, with `"log"` and `"int"`, and
    its `"default"`."""

    @property
    def simple(self) -> tuple[str, ...]:
        """The allocations that need no keep ratios."""
        return tuple(name for name in self.allocations if name != RATIOS)

    def at(self, place: float) -> float:
        """The target at the fractional part of `place`: just above 0 is the lowest target, 0 (or 1) the highest."""
        share = 1.0 - (-place) % 1.0
        # Evenly on a logarithmic scale, since accuracy falls with each halving of the cost.
        return float(np.clip(self.lowest * (self.highest / self.lowest) ** share, self.lowest, self.highest))

    def ladder(self, count: int) -> list[float]:
        """At most `count` targets spread over the range, the highest first."""
        targets = np.geomspace(self.highest, self.lowest, count).clip(self.lowest, self.highest)
        return list(dict.fromkeys(targets.tolist()))

    def budget_of(self, target: float) -> Budget:
        """The budget of a proposal: the sampled target, within the fixed limits."""
        return Budget(**{**self.limits.fractions, self.target: target})

    def target_of(self, proposal: Proposal) -> float:
        """The sampled target that `budget_of` was given."""
        target = proposal.target.fractions[self.target]
        # The store reads a limit of all FLOPs, beside another limit, as no limit.
        return 1.0 if target is None else target

    def ratios_of(self, widths: Mapping[str, int]) -> dict[str, float]:
        """The fraction of each group's channels that stayed, 0 or 1 for a gate; a group that is not named is whole."""
        return {name: widths.get(name, count) / count for name, count in self.channels.items()}


def search_space(
    spec: SearchSpec,
    cost: CostModel,
    *,
    allocations: Sequence[str],
    settings: Mapping[str, Mapping[str, Mapping[str, Any]]],
) -> SearchSpace:
    """Return the search space: targets from `search.smallest` of the budget, or the lowest reachable, to the budget.

    `allocations` are all that there are, the simplest first; `settings` maps each method of the job to its
    hyper-parameters that are searched over (`raprune.methods.searched_settings`).
    """
    target, highest = next((name, limit) for name, limit in spec.budget.fractions.items() if limit is not None)
    narrowest = cost.smallest(min_channels=spec.search.min_channels, multiple_of=spec.search.step)
    lowest = max(spec.search.smallest * highest, _fraction(cost, target, narrowest) * _LOWEST_MARGIN)
    return SearchSpace(
        methods=spec.methods,
        baselines=tuple(name for name in BASELINES if name not in spec.methods),
        # Widths by predicted damage are the best of the simple ones, and tried first.
        allocations=spec.allocations or (RATIOS, *(name for name in reversed(allocations) if name != RATIOS)),
        blocks=make_blocks(cost.group_names),
        channels=dict(zip(cost.group_names, cost.num_channels.tolist(), strict=True)) | dict.fromkeys(cost.gates, 1),
        gates=cost.gates,
        lowest=min(highest, lowest),
        highest=highest,
        target=target,
        cost=spec.budget.cost,
        limits=spec.budget.model_copy(update={target: None}),
        settings={
            name: {key: options for key, options in settings[name].items() if key not in spec.settings.get(name, {})}
            for name in spec.methods
        },
        fixed=spec.settings,
    )


def _fraction(cost: CostModel, kind: str, widths: Counts) -> float:
    """The cost of the widths as a fraction of the dense network's."""
    if kind == "latency":
        return float(cost.latency_ms(widths)) / cost.dense_latency_ms
    if kind == "memory":
        return int(cost.memory_bytes(widths)) / cost.dense_memory
    if kind == "params":
        return int(cost.params(widths)) / cost.dense_params
    return int(cost.flops(widths)) / cost.dense_flops


def make_blocks(group_names: Sequence[str], max_blocks: int = MAX_BLOCKS) -> tuple[tuple[str, ...], ...]:
    """Contiguous blocks of near-equal size, one for each group when there are at most `max_blocks`."""
    edges = np.linspace(0, len(group_names), min(len(group_names), max_blocks) + 1).round().astype(int)
    return tuple(tuple(group_names[a:b]) for a, b in pairwise(edges))
