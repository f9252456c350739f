"""Stages of a run: how far each is, and how long the rest takes. No time is shown that leaves out a stage to come."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from raprune.results.stages import (
    FILE,
    FINETUNE,
    REPORT,
    SCORES,
    SEARCH,
    TEST,
    RunStage,
    RunStages,
    Stages,
    Work,
    read_stages,
)
from raprune.store.folder import Store
from raprune.store.record import RunRecord


class Clock:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def stages(clock: Clock) -> Stages:
    return Stages(clock=clock, wall_clock=lambda: clock.now + 1e9)


def current(stages: Stages) -> RunStage:
    stage = stages.now().current
    assert stage is not None
    return stage


def test_stage_that_begins_ends_the_one_before_it(stages: Stages, clock: Clock) -> None:
    stages.begin(SCORES, total=3, unit="groups")
    clock.now += 7
    stages.begin(SEARCH)
    clock.now += 2
    now = stages.now()
    assert [(s.name, s.state, s.seconds) for s in now.stages] == [(SCORES, "ended", 7), (SEARCH, "running", 2)]
    assert now.elapsed_s == 9 and now.stages[1].started_at == 1e9 + 107


def test_stage_of_a_block_ends_with_it_even_by_an_error(stages: Stages) -> None:
    with pytest.raises(ZeroDivisionError), stages.stage(SEARCH):
        raise ZeroDivisionError
    assert stages.now().current is None and stages.now().stages[0].state == "ended"


def test_rate_is_taken_from_the_first_step_on_and_falls_while_nothing_comes(stages: Stages, clock: Clock) -> None:
    stages.begin(SEARCH, total=40, unit="trials")
    clock.now += 30  # workers come up
    for _ in range(11):
        stages.step()
        clock.now += 2
    stage = current(stages)
    assert stage.rate == pytest.approx(10 / 22) and stage.left_s == pytest.approx(29 / (10 / 22))
    clock.now += 100
    later = current(stages)
    assert stage.rate and later.rate and later.rate < stage.rate
    assert later.left_s is not None and stage.left_s is not None and later.left_s > stage.left_s


def test_two_workers_that_end_at_once_give_no_rate_yet(stages: Stages, clock: Clock) -> None:
    stages.begin(SEARCH, total=40, unit="trials")
    clock.now += 10
    stages.step()
    clock.now += 0.01
    stages.step()
    assert current(stages).rate is None and current(stages).left_s is None


def test_done_of_a_stage_never_falls(stages: Stages) -> None:
    stages.begin(FINETUNE, total=40, unit="epochs")
    stages.update(done=5)
    stages.update(done=3)
    assert current(stages).done == 5


def test_time_left_of_the_run_counts_every_stage_to_come(stages: Stages, clock: Clock) -> None:
    """Seen: "4 s left" for 100 s, as fine-tuning was left out."""
    stages.begin(SEARCH, total=64, unit="trials")
    for _ in range(61):
        stages.step()
        clock.now += 1
    assert current(stages).left_s == pytest.approx(3, rel=0.1)
    assert stages.now().left_s is None, "nothing was forecast"
    stages.expect({FINETUNE: 100.0, TEST: 10.0})
    assert stages.now().left_s == pytest.approx(113, rel=0.05)
    stages.begin(FINETUNE, total=10, unit="epochs")
    clock.now += 40
    stages.step()
    assert stages.now().left_s == pytest.approx(90 + 10)


def test_forecast_stage_that_had_nothing_to_do_is_no_longer_waited_for(stages: Stages, clock: Clock) -> None:
    stages.expect({SCORES: 50.0, SEARCH: 20.0, FINETUNE: 100.0, REPORT: 5.0})
    stages.begin(SEARCH)
    assert stages.now().left_s == 20 + 100 + 5
    stages.begin(REPORT)
    assert stages.now().left_s == 5 and [s.name for s in stages.now().stages] == [SEARCH, REPORT]


def test_stage_that_takes_longer_than_forecast_is_not_said_to_be_over_at_once(stages: Stages, clock: Clock) -> None:
    stages.expect({SCORES: 10.0})
    stages.begin(SCORES)
    clock.now += 100
    assert stages.now().left_s == pytest.approx(25)


def test_stage_of_which_nothing_is_done_takes_at_least_all_of_its_forecast(stages: Stages, clock: Clock) -> None:
    stages.expect({SEARCH: 10.0})
    stages.begin(SEARCH, total=40, unit="trials")
    clock.now += 9
    assert stages.now().left_s == 10


def test_time_limit_bounds_the_time_left(stages: Stages, clock: Clock) -> None:
    stages.begin(SEARCH, total=1000, unit="trials", limit_s=60.0)
    for _ in range(10):
        stages.step()
        clock.now += 1
    assert current(stages).left_s == 50


def test_works_are_counted_in_the_unit_of_the_stage(stages: Stages) -> None:
    stages.begin(FINETUNE, total=60, unit="epochs")
    works = [
        Work(what="finetune-00000", done=2, total=20, unit="epochs"),
        Work(what="finetune-00001", done=20, total=20, unit="epochs"),
        Work(what="finetune-00002, scores", done=3, total=9, unit="groups"),
    ]
    stages.hear(works, done_before=20)
    assert current(stages).done == 42
    assert current(stages).detail == "finetune-00000: epoch 2 of 20; finetune-00002, scores: group 3 of 9"


def test_stages_written_and_read_are_the_same(stages: Stages, clock: Clock) -> None:
    stages.expect({SEARCH: 20.0, FINETUNE: 100.0})
    stages.begin(SEARCH, total=9, unit="trials")
    stages.step()
    clock.now += 3
    now = stages.now()
    assert RunStages.from_json(json.loads(json.dumps(now.to_json()))) == now


def test_stages_of_a_run_are_its_record_once_it_has_finished(stages: Stages, tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert read_stages(store, RunRecord.model_validate({"state": "searching"})) is None
    stages.begin(SEARCH)
    store.write_json(FILE, stages.now().to_json())
    found = read_stages(store, RunRecord.model_validate({"state": "searching"}))
    assert found is not None and found.current is not None and found.current.name == SEARCH
    stages.end()
    record = stages.now().to_json()["stages"]
    finished = read_stages(store, RunRecord.model_validate({"state": "finished", "stages": record}))
    assert finished is not None and finished.current is None and finished.stages[0].state == "ended"
    assert read_stages(store, RunRecord.model_validate({"state": "finished"})) is None, "a run of an earlier version"


@pytest.mark.parametrize("content", ["{", "[]", '{"stages": [{"unknown": 1}]}', '{"stages": 3}'])
def test_stages_that_cannot_be_read_are_none(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE).write_text(content)
    assert read_stages(Store(tmp_path), RunRecord.model_validate({"state": "searching"})) is None
