from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raprune.pareto import hypervolume
from raprune.records import Proposal, Stage, Trial, TrialState
from raprune.sampling.point import Point
from raprune.sampling.stopping import GROWTH, Enough, Spent, Stagnation, reason_to_stop
from raprune.spec.budget import Budget
from raprune.spec.job import SamplerSpec

GROWING = [(0.9 - 0.1 * i, 0.5) for i in range(6)]


@pytest.mark.parametrize(
    ("limits", "elapsed_s", "device_s", "stagnant", "reason"),
    [
        ({}, 1e9, 1e9, True, None),
        ({"time_limit_s": 60}, 59.9, 0, False, None),
        ({"time_limit_s": 60}, 60, 0, False, "the time limit of 60 s is reached"),
        ({"gpu_hours": 2}, 0, 7199, False, None),
        ({"gpu_hours": 2}, 0, 7200, False, "2 device-hours are spent"),
        ({"patience": 3}, 0, 0, False, None),
        ({"patience": 3}, 0, 0, True, "the last 3 results did not enlarge the front"),
    ],
)
def test_a_search_ends_by_the_first_limit_that_it_meets(
    limits: dict[str, float], elapsed_s: float, device_s: float, stagnant: bool, reason: str | None
) -> None:
    spec = SamplerSpec.model_validate(limits)
    assert reason_to_stop(spec, Spent(elapsed_s=elapsed_s, device_s=device_s), stagnant=stagnant) == reason


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        (GROWING, False),
        ([(0.5, 0.5)] * 3, False),
        ([(0.5, 0.5), *[(0.6, 0.5)] * 2], False),
        ([(0.5, 0.5), *[(0.6, 0.5)] * 3], True),
        ([(0.5, 0.5), *[(0.6, 0.5)] * 2, (0.6, 0.4)], False),
    ],
)
def test_a_front_stagnates_once_the_last_results_do_not_enlarge_it(
    points: list[tuple[float, float]], expected: bool
) -> None:
    assert stagnates(points, 3)[-1] is expected


def stagnates(points: Sequence[tuple[float, float]], patience: int) -> list[bool]:
    """After each of the points, the answer of the rule."""
    stagnation, found = Stagnation(patience), []
    for point in points:
        stagnation.add(point)
        found.append(stagnation.is_reached)
    return found


coordinates = st.one_of(st.integers(0, 5).map(lambda i: i / 4), st.floats(0.0, 1.25), st.just(math.nan))


@given(st.lists(st.tuples(coordinates, coordinates), min_size=1, max_size=30), st.integers(1, 6))
def test_stagnation_one_by_one_is_that_of_two_hypervolumes(points: list[tuple[float, float]], patience: int) -> None:
    expected = []
    for end in range(1, len(points) + 1):
        before, now = (hypervolume(part, (1.0, 1.0)) for part in (points[: max(0, end - patience)], points[:end]))
        expected.append(end > patience and now <= before * (1 + GROWTH))
    assert stagnates(points, patience) == expected


def test_time_spent_by_an_earlier_driver_counts() -> None:
    stored = [
        Trial(
            trial_id=f"search-{number:05d}",
            proposal=Proposal(number=number, method="l1", allocation="uniform", target=Budget(flops=0.3), stage=stage),
            state=TrialState.FAILED,
            seconds=1500,
        )
        for number, stage in ((0, Stage.SEARCH), (1, Stage.SEARCH), (2, Stage.FINETUNE))
    ]
    # Two workers, on half a card each.
    enough = partial(Enough, workers=2, devices=0.5, cost="flops")
    hour = enough(SamplerSpec(gpu_hours=0.5), stored)
    # 3,000 s on half a card are 1,500 s of it; 600 s more on half a card make half an hour.
    assert not hour()
    hour.spend(Point(trial_id="search-00003", state=TrialState.COMPLETE, seconds=600))
    assert hour() and hour.reason == "0.5 device-hours are spent"
    # Two workers side by side took 1,500 s.
    assert not enough(SamplerSpec(time_limit_s=1600), stored)()
    assert enough(SamplerSpec(time_limit_s=1499), stored)()
    assert enough(SamplerSpec(), [], already="enough was enough")()
