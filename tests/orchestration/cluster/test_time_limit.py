from __future__ import annotations

from dataclasses import replace

import pytest

from raprune.orchestration.cluster.time_limit import ENOUGH, FIRST_S, SHORTEST_S, TimeLimit, durations
from raprune.records import Stage, TrialState
from tests.factories import live_trial


def after(seconds: list[float], *, asked_s: float | None = None, epoch_s: float | None = 3.0) -> TimeLimit:
    limit = TimeLimit(asked_s, epoch_s)
    for one in seconds:
        limit.finished(one)
    return limit


@pytest.mark.parametrize(
    ("seconds", "limit_s"),
    [
        ([], FIRST_S),
        ([1.0] * (ENOUGH - 1), FIRST_S),
        ([1.0] * ENOUGH, SHORTEST_S),
        ([10.0] * ENOUGH, 200.0),
        ([10.0] * ENOUGH + [1000.0], 200.0),
    ],
)
def test_limit_left_open_is_twenty_times_the_median_of_enough_trials(seconds: list[float], limit_s: float) -> None:
    assert after(seconds).limit_s(trains=False) == limit_s


def test_limit_of_the_job_counts_from_the_first_trial_on() -> None:
    assert after([], asked_s=5.0).limit_s(trains=False) == 5.0
    assert after([100.0] * ENOUGH, asked_s=5.0).limit_s(trains=False) == 5.0


def test_trial_that_trains_may_be_silent_for_twenty_epochs_more() -> None:
    assert after([10.0] * ENOUGH).limit_s(trains=True) == 200.0 + 20 * 3.0
    assert after([], asked_s=5.0).limit_s(trains=True) == 5.0 + 20 * 3.0
    assert after([10.0] * ENOUGH, epoch_s=None).limit_s(trains=True) == FIRST_S, "nobody measured an epoch"


@pytest.mark.parametrize(
    ("limit", "origin"),
    [
        (after([], asked_s=5.0), "(5)"),
        (after([]), "(by default 14400 until 8 trials are finished)"),
        (after([1.0] * 9), "(by default 20 times the median of 9 trials)"),
    ],
)
def test_reason_names_the_field_and_where_its_value_is_from(limit: TimeLimit, origin: str) -> None:
    assert limit.reason(7.2) == (
        f"no progress for 7 s: over resources.trial_timeout_s {origin}; raise it if the method needs longer"
    )


def test_limit_of_a_resumed_search_counts_the_trials_of_its_store() -> None:
    """Trial 3 failed and trials 5 to 9 are not recorded: the others count."""
    stored = [replace(live_trial(number), seconds=10.0) for number in (0, 1, 2, 3, 4, *range(10, 14))]
    stored[3] = replace(stored[3], state=TrialState.FAILED, seconds=0.1)
    tuned = replace(stored[0], proposal=replace(stored[0].proposal, stage=Stage.FINETUNE), seconds=1000.0)
    on_path = replace(stored[1], proposal=replace(stored[1].proposal, step=1), seconds=1000.0)
    limit = TimeLimit(None, 3.0, durations([*stored, tuned, on_path]))
    assert limit.limit_s(trains=False) == 200.0 and len(limit.durations_s) == ENOUGH
