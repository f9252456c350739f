"""The knapsack of `least_damage`: one width for each group, the least damage within a target.

Groups first give channels up at a price that rises, then trade them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from raprune.cost.flops import CostModel, Counts
from raprune.pruning.target import Target, against_limits, all_fit, fits

KNOTS = 16
"""Maximum number of widths of a group at which `least_damage` looks up latencies; between them it interpolates."""
MOVES = 128
"""Maximum number of moves in `least_damage`."""
SIDES = 32
"""Maximum number of narrowing and of widening steps that are tried against one another for a move."""


@dataclass(frozen=True)
class Choices:
    """The widths that a group may have, descending, and the damage of each."""

    widths: Counts
    damage: npt.NDArray[np.float64]


@dataclass(frozen=True)
class Move:
    """One group's move to another of its choices."""

    group: int
    place: int
    change: float
    """Change of the damage."""
    rate: float
    """Change of the damage, divided by the fraction of the target's cost that the move takes or gives."""


def widths_at(choices: list[Choices], at: list[int]) -> Counts:
    return np.array([choice.widths[place] for choice, place in zip(choices, at, strict=True)], dtype=np.int64)


def choices_of(damage: npt.NDArray[np.float64], lowest: int, multiple_of: int) -> Choices:
    whole = len(damage) - 1
    widths = np.arange(whole, lowest - 1, -1)
    widths = widths[(widths % multiple_of == 0) | (widths == whole)]
    return Choices(widths, damage[whole - widths])


def narrowed(cost: CostModel, target: Target, choices: list[Choices]) -> list[int]:
    """A choice for each group, within the target: groups give what is worth its cost, at a price that rises."""
    at, widths, price = [0] * len(choices), cost.num_channels.copy(), 0.0
    # Each round narrows a group by at least one of its choices, and the narrowest network fits.
    for _ in range(sum(len(choice.widths) for choice in choices)):
        offers = []
        for group, saved in enumerate(_saved(cost, target, choices, at)):
            if (saved > 0).any():
                choice, here = choices[group], at[group]
                lost = choice.damage[here + 1 :] - choice.damage[here]
                offers.append((float((lost[saved > 0] / saved[saved > 0]).min()), group, lost, saved))
        if not offers:
            # Latency need not fall with each single group.
            return [len(choice.widths) - 1 for choice in choices]
        price = max(price * 1.05, min(rate for rate, *_ in offers))
        for rate, group, lost, saved in sorted(offers, key=lambda offer: offer[:2]):
            if rate > price:
                break
            was, place = at[group], at[group] + 1 + int((lost - price * saved).argmin())
            widths[group] = choices[group].widths[place]
            if fits(cost, target, widths):
                # No further than it has to.
                for nearest in range(was + 1, place + 1):
                    widths[group] = choices[group].widths[nearest]
                    if fits(cost, target, widths):
                        at[group] = nearest
                        return at
            at[group] = place
    raise AssertionError("the narrowest network is within the target")


def _saved(cost: CostModel, target: Target, choices: list[Choices], at: list[int]) -> list[npt.NDArray[np.float64]]:
    """Return for each group the fractions of the target's cost that its narrower choices save at the others' widths.

    FLOPs, parameters and bytes of a group are nearly lines over its widths; latency has steps.
    """
    widths, most = widths_at(choices, at), 2 if target.budget.latency is None else KNOTS
    places = [_spread(here, len(choice.widths) - 1, most) for choice, here in zip(choices, at, strict=True)]
    vectors = np.repeat(widths[None], sum(map(len, places)), axis=0)
    groups = np.repeat(np.arange(len(choices)), [len(of_group) for of_group in places])
    vectors[np.arange(len(vectors)), groups] = np.concatenate(
        [choice.widths[of_group] for choice, of_group in zip(choices, places, strict=True)]
    )
    loads = sum((counts / limit for counts, limit in against_limits(cost, target, vectors)), np.zeros(len(vectors)))
    saved = []
    for choice, here, of_group, load in zip(
        choices, at, places, np.split(loads, np.cumsum([len(p) for p in places])[:-1]), strict=True
    ):
        # Descending widths, so that their negatives ascend.
        saved.append(load[0] - np.interp(-choice.widths[here + 1 :], -choice.widths[of_group], load))
    return saved


def _spread(first: int, last: int, most: int) -> npt.NDArray[np.int64]:
    """Return at most `most` whole numbers from `first` to `last`, both included."""
    if last - first < most:
        return np.arange(first, last + 1)
    return first + np.arange(most) * (last - first) // (most - 1)


def traded(cost: CostModel, target: Target, choices: list[Choices], at: list[int]) -> list[int]:
    """Widen groups, and narrow others to make room, always by the best such move, until no move helps."""
    at, widths = list(at), widths_at(choices, at)
    for _ in range(MOVES):
        wider = _steps(cost, target, choices, at, widths, up=True)
        narrower = [Move(-1, 0, 0.0, 0.0), *_steps(cost, target, choices, at, widths, up=False)[:SIDES]]
        pairs = [
            (a, b)
            for b in narrower
            for a in (wider if b.group < 0 else wider[:SIDES])
            if a.group != b.group and a.change + b.change < 0
        ]
        pairs.sort(key=lambda pair: pair[0].change + pair[1].change)
        vectors = np.repeat(widths[None], len(pairs), axis=0)
        for row, pair in enumerate(pairs):
            for step in pair:
                if step.group >= 0:
                    vectors[row, step.group] = choices[step.group].widths[step.place]
        within = all_fit(cost, target, vectors)
        if not within.any():
            break
        best = int(within.argmax())
        for step in pairs[best]:
            if step.group >= 0:
                at[step.group] = step.place
        widths = vectors[best]
    return at


def _steps(
    cost: CostModel, target: Target, choices: list[Choices], at: list[int], widths: Counts, *, up: bool
) -> list[Move]:
    """Return the moves of one group by 1, 2, 4 ... of its choices, ordered by their gain per cost."""
    found = []
    for group, (choice, here) in enumerate(zip(choices, at, strict=True)):
        for distance in (1, 2, 4, 8, 16):
            place = here - distance if up else here + distance
            if 0 <= place < len(choice.widths):
                found.append((group, place, float(choice.damage[place] - choice.damage[here])))
    vectors = np.repeat(widths[None], len(found), axis=0)
    for row, (group, place, _) in enumerate(found):
        vectors[row, group] = choices[group].widths[place]
    loads = np.zeros(len(found))
    for (counts, limit), (now, _) in zip(
        against_limits(cost, target, vectors), against_limits(cost, target, widths), strict=True
    ):
        loads += (counts - now if up else now - counts) / limit
    steps = [Move(*move, move[2] / max(load, 1e-30)) for move, load in zip(found, loads.tolist(), strict=True)]
    return sorted(steps, key=lambda step: step.rate)
