"""What a search chooses among: its targets, methods, allocations and keep ratios."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from raprune.allocate import ALLOCATIONS
from raprune.cost import CostModel
from raprune.methods import Method, method_named
from raprune.orchestration.proposals import RATIOS, SearchSpace, make_blocks
from raprune.spec import SearchSpec

CONTROLS = ("random", "l1")
"""Methods that every search tries: what does not beat them is not worth its trouble."""

_LOWEST_MARGIN = 1.02
"""Targets begin this much above the lowest reachable cost, where more than one network still meets them."""


def search_space(spec: SearchSpec, cost: CostModel) -> SearchSpace:
    """What the search chooses among: from `search.smallest` of the budget, or the lowest reachable, to the budget."""
    of_flops = spec.budget_flops is not None
    highest = spec.budget_flops or spec.budget_params or 1.0
    narrowest = cost.smallest(min_channels=spec.search.min_channels, multiple_of=spec.search.multiple_of)
    reachable = (
        int(cost.flops(narrowest)) / cost.dense_flops if of_flops else int(cost.params(narrowest)) / cost.dense_params
    )
    return SearchSpace(
        methods=spec.methods,
        controls=tuple(name for name in CONTROLS if name not in spec.methods),
        # Widths by predicted damage are the best of the simple ones, and tried first.
        allocations=spec.allocations or (RATIOS, *(name for name in reversed(ALLOCATIONS) if name != RATIOS)),
        blocks=make_blocks(cost.group_names),
        lowest=min(highest, max(spec.search.smallest * highest, reachable * _LOWEST_MARGIN)),
        highest=highest,
        target="flops" if of_flops else "params",
        params_limit=spec.budget_params if of_flops else None,
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


def settings_of(method: type[Method]) -> dict[str, Mapping[str, Any]]:
    """The hyper-parameters of a method that are searched over, from its fields' metadata."""
    found: dict[str, Mapping[str, Any]] = {}
    for entry in dataclasses.fields(method):
        if "search" in entry.metadata:
            is_int = entry.type in (int, "int")
            found[entry.name] = {"int": is_int, "default": entry.default, **entry.metadata["search"]}
    return found
