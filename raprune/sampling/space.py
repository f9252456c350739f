"""What a search chooses among: its targets, methods, allocations and keep ratios."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from raprune.cost.flops import CostModel, Counts
from raprune.methods import Method, method_named
from raprune.pruning.allocate import ALLOCATIONS
from raprune.sampling.sources import RATIOS, SearchSpace, make_blocks
from raprune.spec.job import CONTROLS, SearchSpec

_LOWEST_MARGIN = 1.02
"""Targets begin this much above the lowest reachable cost, where more than one network still meets them."""


def search_space(spec: SearchSpec, cost: CostModel) -> SearchSpace:
    """What the search chooses among: from `search.smallest` of the budget, or the lowest reachable, to the budget."""
    limits = {"flops": spec.budget.flops, "params": spec.budget.params, "latency": spec.budget.latency}
    target, highest = next((name, limit) for name, limit in limits.items() if limit is not None)
    narrowest = cost.smallest(min_channels=spec.search.min_channels, multiple_of=spec.search.step)
    lowest = max(spec.search.smallest * highest, _fraction(cost, target, narrowest) * _LOWEST_MARGIN)
    return SearchSpace(
        methods=spec.methods,
        controls=tuple(name for name in CONTROLS if name not in spec.methods),
        # Widths by predicted damage are the best of the simple ones, and tried first.
        allocations=spec.allocations or (RATIOS, *(name for name in reversed(ALLOCATIONS) if name != RATIOS)),
        blocks=make_blocks(cost.group_names),
        channels=dict(zip(cost.group_names, cost.num_channels.tolist(), strict=True)),
        lowest=min(highest, lowest),
        highest=highest,
        target=target,
        cost=spec.cost,
        params_limit=None if target == "params" else spec.budget.params,
        latency_limit=None if target == "latency" else spec.budget.latency,
        settings={
            name: {
                key: options
                for key, options in settings_of(method_named(name)).items()
                if key not in spec.settings.get(name, {})
            }
            for name in spec.methods
        },
        fixed=spec.settings,
    )


def _fraction(cost: CostModel, kind: str, widths: Counts) -> float:
    """The cost of the widths as a fraction of the dense network's."""
    if kind == "latency":
        return float(cost.latency_ms(widths)) / cost.dense_latency_ms
    if kind == "params":
        return int(cost.params(widths)) / cost.dense_params
    return int(cost.flops(widths)) / cost.dense_flops


def settings_of(method: type[Method]) -> dict[str, Mapping[str, Any]]:
    """The hyper-parameters of a method that are searched over, from its fields' metadata."""
    found: dict[str, Mapping[str, Any]] = {}
    for entry in dataclasses.fields(method):
        if "search" in entry.metadata:
            is_int = entry.type in (int, "int")
            found[entry.name] = {"int": is_int, "default": entry.default, **entry.metadata["search"]}
    return found
