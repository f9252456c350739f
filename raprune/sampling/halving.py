"""Successive halving, one candidate after another in the order of their numbers. Pure: outcomes in, decisions out.

Whether candidate n goes on from a rung is decided by the candidates up to n that came to it, once they are all in, so
that the decisions are the same whatever the number of workers and whoever finishes first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from raprune.records import TrialState
from raprune.sampling.promotion import Outcome, goes_on


@dataclass(frozen=True)
class RungDecision:
    """The decision about candidate `number` after `outcome`."""

    number: int
    outcome: Outcome
    next_rung: int | None
    """None: this was its last."""


@dataclass
class _Rung:
    """One rung: who came to it so far."""

    next: int = 0
    """The first number that is not decided here."""
    points: list[tuple[float, float]] = field(default_factory=list)
    waiting: dict[int, Outcome] = field(default_factory=dict)
    went_on: dict[int, bool] = field(default_factory=dict)


class SuccessiveHalving:
    """`count` rungs; from each the best `keep` go on to the next. One rung decides nothing: all end there."""

    def __init__(self, count: int, keep: float, *, cost: str = "flops") -> None:
        self._rungs = [_Rung() for _ in range(count)]
        self._keep = keep
        self._cost = cost

    def tell(self, number: int, outcome: Outcome) -> list[RungDecision]:
        """Take the outcome of a candidate at `outcome.rung`; the decisions that can be made now.

        A failed one ends where it failed, and does not count among those that it would have been compared with.
        """
        self._rungs[outcome.rung].waiting[number] = outcome
        return [decision for level in range(len(self._rungs)) for decision in self._decide(level)]

    def _decide(self, level: int) -> Iterator[RungDecision]:
        rung, below = self._rungs[level], self._rungs[level - 1] if level else None
        if level == len(self._rungs) - 1:
            # The last: nobody waits for anybody.
            yield from (RungDecision(number, rung.waiting.pop(number), None) for number in sorted(rung.waiting))
            return
        while below is None or rung.next in below.went_on:
            if below is not None and not below.went_on[rung.next]:
                rung.went_on[rung.next] = False
            elif rung.next not in rung.waiting:
                return
            else:
                yield self._judged(rung, level, rung.waiting.pop(rung.next))
            rung.next += 1

    def _judged(self, rung: _Rung, level: int, outcome: Outcome) -> RungDecision:
        onward = False
        if outcome.state is not TrialState.FAILED:
            rung.points.append(outcome.point(self._cost))
            onward = goes_on(rung.points, self._keep)
        rung.went_on[rung.next] = onward
        return RungDecision(rung.next, outcome, level + 1 if onward else None)
