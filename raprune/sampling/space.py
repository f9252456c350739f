"""The search space of a job: its targets, methods, allocations and keep ratios."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from raprune.sampling.sources import RATIOS, SearchSpace, make_blocks
from raprune.spec.job import CONTROLS, SearchSpec

if TYPE_CHECKING:
    from raprune.cost.flops import CostModel, Counts

_LOWEST_MARGIN = 1.02
"""Targets begin this much above the lowest reachable cost, where more than one network still meets them."""


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
        controls=tuple(name for name in CONTROLS if name not in spec.methods),
        # Widths by predicted damage are the best of the simple ones, and tried first.
        allocations=spec.allocations or (RATIOS, *(name for name in reversed(allocations) if name != RATIOS)),
        blocks=make_blocks(cost.group_names),
        channels=dict(zip(cost.group_names, cost.num_channels.tolist(), strict=True)),
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
    if kind == "params":
        return int(cost.params(widths)) / cost.dense_params
    return int(cost.flops(widths)) / cost.dense_flops
