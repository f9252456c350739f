"""Successive halving of candidates in the order of their numbers. Pure: points in, decisions out.

The decision about candidate n on a rung uses the candidates up to n that reached this rung, and is made once all of
their results are in. So the decisions do not depend on the number of workers or on the order in which trials end.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from raprune.pareto import Fronts
from raprune.records import TrialState
from raprune.sampling.point import Point
from raprune.sampling.promotion import is_promoted


@dataclass(frozen=True)
class RungDecision:
    """The decision about candidate `number` after its trial `point`."""

    number: int
    point: Point
    next_rung: int | None
    """None: the candidate ends here."""


@dataclass
class _Rung:
    """The candidates that reached one rung so far."""

    next: int = 0
    """The first number without a decision on this rung."""
    fronts: Fronts = field(default_factory=Fronts)
    waiting: dict[int, Point] = field(default_factory=dict)
    went_on: dict[int, bool] = field(default_factory=dict)


class SuccessiveHalving:
    """`count` rungs; the best fraction `keep` of each is promoted to the next. With one rung, all candidates end there.

    `cost` is the cost that accuracy is set against.
    """

    def __init__(self, count: int, keep: float, *, cost: str = "flops") -> None:
        self._rungs = [_Rung() for _ in range(count)]
        self._keep = keep
        self._cost = cost

    def tell(self, number: int, point: Point) -> list[RungDecision]:
        """Take the result of a candidate on rung `point.rung`, and return the decisions that can be made now.

        A failed candidate ends where it failed, and the others are not compared with it.
        """
        self._rungs[point.rung].waiting[number] = point
        return [decision for level in range(len(self._rungs)) for decision in self._decide(level)]

    def _decide(self, level: int) -> Iterator[RungDecision]:
        rung, below = self._rungs[level], self._rungs[level - 1] if level else None
        if level == len(self._rungs) - 1:
            # Nothing is decided on the last rung, so that no candidate waits for another.
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

    def _judged(self, rung: _Rung, level: int, point: Point) -> RungDecision:
        onward = False
        if point.state is not TrialState.FAILED:
            onward = is_promoted(rung.fronts, point.objectives(self._cost), self._keep)
        rung.went_on[rung.next] = onward
        return RungDecision(rung.next, point, level + 1 if onward else None)
