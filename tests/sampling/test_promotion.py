from __future__ import annotations

import random

from raprune.records import TrialState
from raprune.sampling.point import Point
from raprune.sampling.promotion import choose_finalists
from raprune.spec.budget import Budget


def outcome(number: int, accuracy: float, flops: float, **more: object) -> Point:
    values: dict[str, object] = {"candidate": f"c{number}", "state": TrialState.COMPLETE} | more
    return Point(trial_id=f"search-{number:05d}", accuracy=accuracy, flops_fraction=flops, **values)  # type: ignore[arg-type]  # mixed keyword values


FRONT = [outcome(i, 0.9 + 0.005 * i, 0.1 + 0.02 * i) for i in range(10)]
DOMINATED = [outcome(10 + i, 0.6 + 0.01 * i, 0.1 + 0.02 * i) for i in range(10)]


def test_finalists_lie_on_the_front_with_both_ends() -> None:
    chosen = choose_finalists(FRONT + DOMINATED, Budget(flops=0.3), 4)
    assert len(chosen) == 4 and set(chosen) <= {o.trial_id for o in FRONT}
    assert chosen[0] == "search-00009" and "search-00000" in chosen


def test_a_small_front_is_filled_up_from_the_next() -> None:
    chosen = choose_finalists(FRONT[:2] + DOMINATED, Budget(flops=0.3), 5)
    assert set(chosen[:2]) == {"search-00000", "search-00001"} and len(chosen) == 5


def test_only_complete_candidates_within_the_budget_and_each_once() -> None:
    outcomes = [
        outcome(0, 0.99, 0.31),
        outcome(1, 0.98, 0.2, params_fraction=0.6),
        outcome(2, 0.97, 0.2, state=TrialState.FAILED),
        outcome(3, 0.9, 0.2, candidate="same", params_fraction=0.4),
        outcome(4, 0.9, 0.2, candidate="same", params_fraction=0.4),
    ]
    assert choose_finalists(outcomes, Budget(flops=0.3, params=0.5), 6) == ["search-00003"]
    assert choose_finalists([], Budget(flops=0.3), 6) == []
    assert choose_finalists(FRONT, Budget(flops=0.3), 0) == []


def test_the_order_of_completion_does_not_matter() -> None:
    outcomes = FRONT + DOMINATED
    chosen = choose_finalists(outcomes, Budget(flops=0.3), 6)
    random.Random(0).shuffle(outcomes)
    assert choose_finalists(outcomes, Budget(flops=0.3), 6) == chosen


def test_the_best_of_each_method_follows_the_front() -> None:
    outcomes = [
        *(outcome(i, 0.9 + 0.005 * i, 0.1 + 0.02 * i, method="taylor") for i in range(5)),
        outcome(20, 0.80, 0.2, method="l1"),
        outcome(21, 0.82, 0.29, method="l1"),
        outcome(22, 0.99, 0.31, method="l1"),
        outcome(23, 0.3, 0.2, method="random"),
        outcome(24, 0.9, 0.2, method="fpgm", state=TrialState.FAILED),
    ]
    chosen = choose_finalists(outcomes, Budget(flops=0.3), 2, each_method=True)
    assert chosen == ["search-00004", "search-00000", "search-00021", "search-00023"]
    assert choose_finalists(outcomes, Budget(flops=0.3), 2) == chosen[:2]
    assert choose_finalists(outcomes, Budget(flops=0.3), 0, each_method=True) == []


def test_those_that_keep_the_accuracy_come_first_and_others_fill_up() -> None:
    chosen = choose_finalists(FRONT + DOMINATED, Budget(flops=0.3), 6, floor=0.93)
    above = {o.trial_id for o in FRONT if o.accuracy >= 0.93}
    assert set(chosen[:4]) == above and len(above) == 4 and len(chosen) == 6


def test_a_front_of_latency_is_not_that_of_flops() -> None:
    outcomes = [
        outcome(0, 0.9, 0.1, latency_fraction=0.9),
        outcome(1, 0.9, 0.3, latency_fraction=0.2),
        outcome(2, 0.8, 0.2, latency_fraction=0.6),
    ]
    assert choose_finalists(outcomes, Budget(), 1) == ["search-00000"]
    assert choose_finalists(outcomes, Budget(), 1, cost="latency") == ["search-00001"]
    assert choose_finalists(outcomes, Budget(latency=0.7), 3) == ["search-00001", "search-00002"]


def test_stopped_trials_are_no_finalists() -> None:
    assert choose_finalists([outcome(0, 0.99, 0.2, state=TrialState.STOPPED)], Budget(flops=0.3), 1) == []
