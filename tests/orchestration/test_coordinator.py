from __future__ import annotations

import io
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from rich.console import Console

from raprune.errors import RapruneError, StoreError, UsageError
from raprune.orchestration import lease
from raprune.orchestration.coordinator import ask, coordinator_name, find_coordinator
from raprune.orchestration.lease import held
from raprune.records import TrialState
from raprune.results.stages import Work
from raprune.store.folder import Store
from raprune.store.record import RunRecord
from raprune.store.retry import Patience
from tests.factories import EMPTY_RUN, proposed_trials
from tests.orchestration.in_process import Executor

pytestmark = pytest.mark.ray


@pytest.fixture
def store(ray_cluster: None, tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "run")
    store.create(RunRecord.model_validate(EMPTY_RUN))
    yield store
    actor = ray.get_actor(coordinator_name(store.uri), namespace="raprune")
    ray.kill(actor)


def test_a_trial_is_durable_when_its_record_returns_and_is_recorded_once(store: Store) -> None:
    coordinator = find_coordinator(store)
    first, second, third, failed = proposed_trials(4)
    ray.get(coordinator.record.remote([first]))
    assert store.trials() == [first]
    ray.get([coordinator.record.remote([t]) for t in (second, first, third, second, failed)])
    # Records that wait together have no order.
    assert store.trials()[0] == first
    assert sorted(store.trials(), key=lambda trial: trial.proposal.number) == [first, second, third, failed]
    assert ray.get(coordinator.trials.remote()) == [trial.outline for trial in store.trials()]
    assert ray.get(coordinator.trial.remote(second.trial_id)) == second
    now = ray.get(coordinator.progress.remote(3))
    assert now.searched == 4 and now.states[TrialState.RUNNING] == 3 and now.states[TrialState.FAILED] == 1


def test_works_are_known_until_their_trial_is_recorded(store: Store) -> None:
    coordinator = find_coordinator(store)
    trial, other = proposed_trials(2)
    work = Work(what="fine-tuning", done=2, total=20, unit="epochs")
    for key in (trial.trial_id, other.trial_id, "scores-abc/0"):
        ray.get(coordinator.tell.remote(key, work))
    ray.get(coordinator.record.remote([trial]))
    ray.get(coordinator.tell.remote(trial.trial_id, work))
    assert ray.get(coordinator.works.remote()) == {other.trial_id: work, "scores-abc/0": work}


@pytest.mark.nightly
def test_a_killed_coordinator_is_rebuilt_from_the_store_and_loses_no_call(store: Store) -> None:
    coordinator = find_coordinator(store)
    recorded = proposed_trials(8)
    for number, trial in enumerate(recorded):
        if number == 3:
            ray.kill(coordinator, no_restart=False)
        ray.get(coordinator.record.remote([trial]))
    assert store.trials() == recorded
    assert ray.get(coordinator.trials.remote()) == [trial.outline for trial in recorded]


def test_a_second_driver_takes_over_the_living_coordinator(store: Store) -> None:
    coordinator = find_coordinator(store)
    ray.get(coordinator.record.remote(proposed_trials(1)))
    again = find_coordinator(store)
    assert again._actor_id == coordinator._actor_id
    assert len(ray.get(again.trials.remote())) == 1


def test_while_the_store_is_away_records_wait_and_all_else_is_answered(store: Store) -> None:
    """A trial that is finished then waits in the coordinator, through a kill of it too."""
    coordinator = find_coordinator(store.patient(Patience(total_s=120)))
    first, *later = proposed_trials(3)
    ray.get(coordinator.record.remote([first]))
    ray.get(coordinator.hold.remote("driver"))
    away = Path(f"{store.uri}-away")
    Path(store.uri).rename(away)
    records = [coordinator.record.remote([trial]) for trial in later]
    until = time.monotonic() + 30
    while not (answer := ray.get(coordinator.hold.remote("driver"))).outages and time.monotonic() < until:
        time.sleep(0.1)
    assert "does not answer: the folder is gone" in answer.outages["coordinator"]
    assert ray.get(coordinator.progress.remote()).searched == 1
    ray.kill(coordinator, no_restart=False)
    assert ray.wait(records, num_returns=2, timeout=2) == ([], records), "neither lost nor answered"
    away.rename(store.uri)
    ray.get(records)
    assert sorted(t.trial_id for t in store.trials()) == [t.trial_id for t in (first, *later)]
    assert ray.get(coordinator.hold.remote("driver")).outages == {}


def test_a_record_that_can_never_be_written_is_said_as_it_is(store: Store) -> None:
    coordinator = find_coordinator(store)
    (Path(store.uri) / "trials").write_text("in the way")
    with pytest.raises(StoreError, match=r"cannot (read|write)") as caught:
        ask(coordinator.record.remote(proposed_trials(1)))
    assert caught.value.hint


def test_a_run_is_one_drivers_until_it_is_silent(
    executor: Executor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "LEASE_S", 1.5)
    monkeypatch.setattr(lease, "BEAT_S", 0.2)
    store = Store(tmp_path / "run")
    store.create(RunRecord.model_validate(EMPTY_RUN))
    coordinator = find_coordinator(store)
    console = Console(file=io.StringIO(), width=120)
    with held(coordinator, "one", store.name, console=console):
        second = held(coordinator, "two", store.name, console=console)
        with pytest.raises(UsageError, match="another driver works on this run"), second:
            raise AssertionError("the run was given away")
        ask(coordinator.record.remote(proposed_trials(1), "one"))
        with pytest.raises(RapruneError, match="another driver took this run over"):
            ask(coordinator.record.remote(proposed_trials(2), "two"))
    with held(coordinator, "two", store.name, console=console):
        ask(coordinator.record.remote(proposed_trials(2), "two"))
    assert len(store.trials()) == 2


@pytest.mark.nightly
def test_a_coordinator_that_no_driver_needs_ends(ray_cluster: None, tmp_path: Path) -> None:
    store = Store(tmp_path / "run")
    store.create(RunRecord.model_validate(EMPTY_RUN))
    coordinator = find_coordinator(store, orphaned_s=2.0)
    for _ in range(6):
        ray.get(coordinator.hold.remote("driver"))
        time.sleep(0.5)
    assert is_there(coordinator_name(store.uri))
    until = time.monotonic() + 30
    while is_there(coordinator_name(store.uri)) and time.monotonic() < until:
        time.sleep(0.2)
    assert not is_there(coordinator_name(store.uri))


def is_there(name: str) -> bool:
    return name in {actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)}
