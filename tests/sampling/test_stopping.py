from __future__ import annotations

from functools import partial

import pytest

from raprune.records import Proposal, Stage, Trial, TrialState
from raprune.sampling.point import Point
from raprune.sampling.stopping import Enough, Spent, reason_to_stop
from raprune.spec.budget import Budget
from raprune.spec.job import SamplerSpec

GROWING = [(0.9 - 0.1 * i, 0.5) for i in range(6)]


@pytest.mark.parametrize(
    ("limits", "elapsed_s", "device_s", "points", "reason"),
    [
        ({}, 1e9, 1e9, [(0.5, 0.5)] * 100, None),
        ({"time_limit_s": 60}, 59.9, 0, [], None),
        ({"time_limit_s": 60}, 60, 0, [], "the time limit of 60 s is reached"),
        ({"gpu_hours": 2}, 0, 7199, [], None),
        ({"gpu_hours": 2}, 0, 7200, [], "2 device-hours are spent"),
        ({"patience": 3}, 0, 0, GROWING, None),
        ({"patience": 3}, 0, 0, [(0.5, 0.5)] * 3, None),
        ({"patience": 3}, 0, 0, [(0.5, 0.5), *[(0.6, 0.5)] * 2], None),
        ({"patience": 3}, 0, 0, [(0.5, 0.5), *[(0.6, 0.5)] * 3], "the last 3 results did not enlarge the front"),
        ({"patience": 3}, 0, 0, [(0.5, 0.5), *[(0.6, 0.5)] * 2, (0.6, 0.4)], None),
    ],
)
def test_a_search_ends_by_the_first_limit_that_it_meets(
    limits: dict[str, float], elapsed_s: float, device_s: float, points: list[tuple[float, float]], reason: str | None
) -> None:
    spec = SamplerSpec.model_validate(limits)
    assert reason_to_stop(spec, Spent(elapsed_s=elapsed_s, device_s=device_s), points) == reason


def test_what_a_driver_before_this_one_spent_counts() -> None:
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
    assert not hour([])
    hour.spend(Point(trial_id="search-00003", state=TrialState.COMPLETE, seconds=600))
    assert hour([]) and hour.reason == "0.5 device-hours are spent"
    # Two workers side by side took 1,500 s.
    assert not enough(SamplerSpec(time_limit_s=1600), stored)([])
    assert enough(SamplerSpec(time_limit_s=1499), stored)([])
    assert enough(SamplerSpec(), [], already="enough was enough")([])
