"""Allocations: from scores and a target to the number of channels that stay in each group, and their indices.

Every allocation gives a width vector close to the target and never above it (within 0.5 % of it where the network's
channels are fine enough). Finding widths and scoring channels are separate, so that all methods can be compared with
equal widths.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from raprune.cost.flops import CostModel, Counts
from raprune.errors import BudgetError
from raprune.pruning.knapsack import choices_of, narrowed, traded, widths_at
from raprune.pruning.target import Target, all_fit, fits
from raprune.records import Candidate, Setting
from raprune.spec.budget import Budget

LEAST_DAMAGE = "least_damage"
"""The allocation that follows what the method predicts."""
SCALES = 64
"""Number of scales, or of numbers of channels, that are tried before the bisection between two of them."""

ScoresByGroup = Mapping[str, npt.NDArray[np.float64]]
"""Group name -> one score a channel, shape `(num_channels,)`; higher means keep."""

Damage = Mapping[str, npt.NDArray[np.float64]]
"""Group name -> predicted damage when its m lowest-scored channels go, m = 0 .. num_channels; ascending."""


def allocate(
    name: str,
    cost: CostModel,
    target: Target,
    *,
    scores: ScoresByGroup,
    keep_ratios: Mapping[str, float],
    damage: Damage | None = None,
    comparable: bool = False,
) -> Counts:
    """The width vector of the allocation `name`, shape `(G,)`, within `target`.

    Scores that are not `comparable` between groups (`Method.comparable`) are divided by their group's mean.
    `damage` is what the method predicts (`Method.damage`); without it, `least_damage` takes the sum of the scores.

    Raises:
        BudgetError: if even the narrowest network is above the target.
        FloatingPointError: if scores or damage are not finite.
    """
    check_reachable(cost, target.budget, min_channels=target.min_channels, multiple_of=target.multiple_of)
    _check_finite("scores", scores)
    damage = damage or {group: _sum_of_lowest(values) for group, values in scores.items()}
    _check_finite("predicted damage", damage)
    return ALLOCATIONS[name](cost, target, scores if comparable else _by_mean(scores), keep_ratios, damage)


def select(
    scores: ScoresByGroup,
    cost: CostModel,
    widths: Counts,
    *,
    method: str,
    settings: Mapping[str, Setting],
    identity: tuple[str, ...] = (),
) -> Candidate:
    """The candidate that keeps the best-scored channels of each group; of equal scores the lower index stays.

    `cost` is that of the network without the blocks `identity`.
    """
    kept = {}
    for name, width in zip(cost.group_names, widths.tolist(), strict=True):
        best = np.argsort(-scores[name], kind="stable")[:width]
        kept[name] = tuple(sorted(best.tolist()))
    return Candidate(method, kept, settings, identity)


def ratios(
    cost: CostModel, target: Target, scores: ScoresByGroup, keep_ratios: Mapping[str, float], damage: Damage
) -> Counts:
    """A keep ratio for each block of layers, chosen by the search, and scaled to the target."""
    wanted = np.array([keep_ratios.get(name, 1.0) for name in cost.group_names])
    return _scaled(cost, target, wanted)


def uniform(
    cost: CostModel, target: Target, scores: ScoresByGroup, keep_ratios: Mapping[str, float], damage: Damage
) -> Counts:
    """The same keep ratio in every layer."""
    return _scaled(cost, target, np.ones(len(cost.group_names)))


def global_rank(
    cost: CostModel, target: Target, scores: ScoresByGroup, keep_ratios: Mapping[str, float], damage: Damage
) -> Counts:
    """The best-scored channels of the whole network: one threshold for all layers."""
    floor = cost.smallest(min_channels=target.min_channels, multiple_of=target.multiple_of)
    groups, ranked = [], []
    for number, name in enumerate(cost.group_names):
        descending = np.sort(scores[name])[::-1]
        # The best `floor` channels of a group stay whatever their score, so only the others are ranked.
        rest = descending[int(floor[number]) :]
        ranked.append(rest)
        groups.append(np.full(len(rest), number))
    order = np.argsort(-np.concatenate(ranked), kind="stable")
    sequence = np.concatenate(groups)[order]

    def rounded(count: float) -> Counts:
        widths = floor + np.bincount(sequence[: int(count)], minlength=len(floor))
        return _to_multiple(widths, cost, floor, target.multiple_of)

    low, high = _bracket(cost, target, rounded, np.linspace(0, len(sequence), SCALES).astype(np.int64))
    while low < high - 1:
        middle = (low + high) // 2
        if fits(cost, target, rounded(middle)):
            low = middle
        else:
            high = middle
    return _fill(cost, target, rounded(low), (int(g) for g in sequence[int(low) :]))


def isomorphic(
    cost: CostModel, target: Target, scores: ScoresByGroup, keep_ratios: Mapping[str, float], damage: Damage
) -> Counts:
    """The best-scored channels of each kind of layers, the same fraction of every kind.

    Fang, Ma, Mi, Wang: "Isomorphic Pruning for Vision Models", ECCV 2024 (arXiv 2407.04616) rank scores only among
    sub-structures of the same form, because those of different forms have other distributions.
    """
    places: dict[str, npt.NDArray[np.float64]] = {}
    for kind in np.unique(cost.kinds):
        names = [name for name, own in zip(cost.group_names, cost.kinds, strict=True) if own == kind]
        joined = np.concatenate([scores[name] for name in names])
        place = np.empty(len(joined))
        # Of equal scores the first counts as the better one, as in `select`.
        place[np.argsort(-joined, kind="stable")] = (np.arange(len(joined)) + 0.5) / len(joined)
        ends = np.cumsum([len(scores[name]) for name in names])
        places |= dict(zip(names, np.split(1.0 - place, ends[:-1]), strict=True))
    return global_rank(cost, target, places, keep_ratios, damage)


def least_damage(
    cost: CostModel, target: Target, scores: ScoresByGroup, keep_ratios: Mapping[str, float], damage: Damage
) -> Counts:
    """Return widths with nearly the least predicted damage, summed over the layers.

    Starting from the dense network, each group gives up the channels that do least damage for their cost, at the
    other groups' present widths. Then channels that still fit come back, and groups trade channels as long as that
    lowers the sum.

    This is a knapsack with a choice of widths for each group, solved at a price of the cost that rises. Where the cost
    is a sum over the groups, the damage is above the least one by no more than the largest damage of one group's move
    (Sinha and Zoltners, "The multiple-choice knapsack problem", 1979). Costs of layers between two groups are products,
    for which no bound holds.
    """
    if fits(cost, target, cost.num_channels):
        return cost.num_channels.copy()
    floor = cost.smallest(min_channels=target.min_channels, multiple_of=target.multiple_of)
    choices = [
        choices_of(np.asarray(damage[name], dtype=np.float64), int(lowest), target.multiple_of)
        for name, lowest in zip(cost.group_names, floor, strict=True)
    ]
    equal = uniform(cost, target, scores, keep_ratios, damage)
    at_equal = [int(np.flatnonzero(c.widths == width)[0]) for c, width in zip(choices, equal, strict=True)]
    # Trades end in a local optimum, so they start from two places.
    found = [traded(cost, target, choices, at) for at in (narrowed(cost, target, choices), at_equal)]
    at = min(found, key=lambda at: sum(float(c.damage[place]) for c, place in zip(choices, at, strict=True)))
    return widths_at(choices, at)


def _check_finite(what: str, by_group: Mapping[str, npt.NDArray[np.float64]]) -> None:
    for name, values in by_group.items():
        if not np.isfinite(values).all():
            raise FloatingPointError(
                f"Group {name}: the {what} are not all finite, so its channels cannot be compared with others. The "
                f"method may divide by zero, or activations overflow on the calibration images."
            )


def _by_mean(scores: ScoresByGroup) -> ScoresByGroup:
    return {name: values / max(float(np.abs(values).mean()), 1e-30) for name, values in scores.items()}


Allocation = Callable[[CostModel, Target, ScoresByGroup, Mapping[str, float], Damage], Counts]

ALLOCATIONS: dict[str, Allocation] = {
    "ratios": ratios,
    "uniform": uniform,
    "global_rank": global_rank,
    "isomorphic": isomorphic,
    LEAST_DAMAGE: least_damage,
}
"""Name of each allocation -> the function that finds the widths."""
ON_REQUEST = ("isomorphic",)
"""Allocations that a search tries only if its job names them."""


def by_default() -> tuple[str, ...]:
    """Return the allocations among which a search chooses if its job names none."""
    return tuple(name for name in ALLOCATIONS if name not in ON_REQUEST)


def list_allocations() -> dict[str, str]:
    """Name of each allocation -> a sentence that says what it does."""
    return {name: (allocation.__doc__ or "").partition("\n")[0] for name, allocation in ALLOCATIONS.items()}


def _sum_of_lowest(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.r_[0.0, np.cumsum(np.sort(scores - min(0.0, float(scores.min()))))] / max(
        float(np.abs(scores).sum()), 1e-30
    )


def check_reachable(cost: CostModel, budget: Budget, *, min_channels: int = 1, multiple_of: int = 1) -> None:
    """Refuse a budget that even the narrowest network passes. A latency is checked where the cost model has a table.

    Raises:
        BudgetError: with the lowest reachable value and the layers that bind.
    """
    narrowest = cost.smallest(min_channels=min_channels, multiple_of=multiple_of)
    for kind, limit, count, dense, by_module in (
        ("flops", budget.flops, int(cost.flops(narrowest)), cost.dense_flops, cost.flops_by_module),
        ("params", budget.params, int(cost.params(narrowest)), cost.dense_params, cost.params_by_module),
        ("memory", budget.memory, int(cost.memory_bytes(narrowest)), cost.dense_memory, cost.memory_by_group),
    ):
        if limit is not None and count > limit * dense:
            unit = {"flops": "FLOPs", "params": "parameters", "memory": "bytes at the peak"}[kind]
            layers = {module: f"{share:,} {unit}" for module, share in by_module(narrowest).items()}
            lowest = f"{count / dense:.4f} ({count:,} of {dense:,} {kind})"
            raise _out_of_reach(
                kind, limit, lowest, layers, count / dense, cost, min_channels=min_channels, multiple_of=multiple_of
            )
    if budget.latency is None or cost.table is None:
        return
    fastest, dense_ms = float(cost.latency_ms(narrowest)), cost.dense_latency_ms
    if fastest > budget.latency * dense_ms:
        times = cost.latency_by_module(narrowest)
        times["what runs between the layers"] = cost.table.offset_ms
        slowest = sorted(times.items(), key=lambda item: -item[1])
        raise _out_of_reach(
            "latency",
            budget.latency,
            f"{fastest / dense_ms:.4f} ({fastest:.3g} of {dense_ms:.3g} ms)",
            {module: f"{time_ms:.2g} ms" for module, time_ms in slowest},
            fastest / dense_ms,
            cost,
            min_channels=min_channels,
            multiple_of=multiple_of,
        )


def _out_of_reach(
    kind: str,
    limit: float,
    lowest: str,
    layers: Mapping[str, str],
    fraction: float,
    cost: CostModel,
    *,
    min_channels: int,
    multiple_of: int,
) -> BudgetError:
    binding = ", ".join(f"{module or 'the network itself'} ({share})" for module, share in list(layers.items())[:3])
    return BudgetError(
        f"--budget-{kind} {limit:g}: out of reach. The lowest this network can go to is {lowest}, with {min_channels} "
        f"channel(s) left in each of its {len(cost.group_names)} groups (widths in multiples of {multiple_of}).",
        hint=f"What stays is mostly in: {binding}. `raprune inspect` names what is frozen and why; a budget of "
        f"{_round_up(fraction)} can be met.",
    )


def _round_up(fraction: float) -> str:
    return f"{min(1.0, np.ceil(fraction * 1000 + 1) / 1000):.3f}"


def _scaled(cost: CostModel, target: Target, wanted: npt.NDArray[np.float64]) -> Counts:
    """`wanted * scale`, with the largest scale within the target by bisection, then the channels that still fit."""
    floor = cost.smallest(min_channels=target.min_channels, multiple_of=target.multiple_of)
    channels = cost.num_channels * wanted

    def widths(scale: float) -> Counts:
        raw = np.clip(np.floor(channels * scale + 1e-9), floor, cost.num_channels).astype(np.int64)
        return _to_multiple(raw, cost, floor, target.multiple_of)

    low, high = _bracket(cost, target, widths, np.linspace(0.0, 1.0 / float(wanted.min()), SCALES))
    for _ in range(50 if low < high else 0):
        middle = (low + high) / 2
        if fits(cost, target, widths(middle)):
            low = middle
        else:
            high = middle
    return _fill(cost, target, widths(low), _next_in_turn(channels, low, target.multiple_of))


def _bracket(
    cost: CostModel, target: Target, widths: Callable[[float], Counts], scales: npt.NDArray[Any]
) -> tuple[Any, Any]:
    """Return the largest of the ascending `scales` whose widths fit, and the scale after it, or itself if it is last.

    Latency need not rise with the widths, so that wider networks than one that does not fit may fit.
    """
    within = all_fit(cost, target, np.stack([widths(scale) for scale in scales]))
    last = int(np.flatnonzero(within)[-1]) if within.any() else 0
    return scales[last], scales[min(last + 1, len(scales) - 1)]


def _next_in_turn(channels: npt.NDArray[np.float64], scale: float, multiple_of: int) -> Iterator[int]:
    """Return the groups in the order in which a growing scale would widen each of them by one step."""
    steps = channels * scale / multiple_of
    until_next = (np.floor(steps + 1e-9) + 1 - steps) / np.maximum(channels, 1e-12)
    yield from np.argsort(until_next, kind="stable").tolist()


def _fill(cost: CostModel, target: Target, widths: Counts, order: Iterator[int]) -> Counts:
    """Widen groups, in `order`, as long as they fit; then any that still fits. Gives up after 64 misfits."""
    misfits = 0
    widths = widths.copy()
    for group in order:
        wider = widths.copy()
        wider[group] = min(wider[group] + target.multiple_of, cost.num_channels[group])
        if target.multiple_of > 1 and wider[group] % target.multiple_of and wider[group] != cost.num_channels[group]:
            continue
        if fits(cost, target, wider):
            widths = wider
        else:
            misfits += 1
            if misfits == 64:
                break
    return widths


def _to_multiple(widths: Counts, cost: CostModel, floor: Counts, multiple_of: int) -> Counts:
    """Widths rounded down to a multiple; a group that is whole stays whole, and none falls below the floor."""
    if multiple_of == 1:
        return widths
    whole = widths >= cost.num_channels
    return np.where(whole, cost.num_channels, np.maximum(widths // multiple_of * multiple_of, floor))
