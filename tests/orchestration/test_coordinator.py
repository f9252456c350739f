from __future__ import annotations

import os
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from raprune.orchestration.coordinator import GAUGES, coordinator_name, find_coordinator
from raprune.orchestration.proposals import Proposals
from raprune.spec import SamplerSpec
from raprune.store import Store
from raprune.trial import TrialState
from tests.orchestration.test_proposals import SPACE, trial_of

pytestmark = pytest.mark.ray

RUN = {
    "spec": {"budget_flops": 0.3, "search": {"trials": 20}, "finalists": {"count": 0}},
    "dense": {"val_accuracy": 0.9},
    "started_at": 0.0,
}


def trials(count: int) -> list[Any]:
    proposals = Proposals(SPACE, SamplerSpec(trials=count, lookahead=count), seed=0)
    return [trial_of(proposal) for proposal in iter(proposals.next, None)]


@pytest.fixture
def store(ray_cluster: None, tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "run")
    store.create(RUN)
    yield store
    actor = ray.get_actor(coordinator_name(store.uri), namespace="raprune")
    ray.kill(actor)


def test_a_trial_is_durable_when_its_record_returns_and_is_recorded_once(store: Store) -> None:
    coordinator = find_coordinator(store)
    first, second, third, failed = trials(4)
    ray.get(coordinator.record.remote([first]))
    assert store.trials() == [first]
    ray.get([coordinator.record.remote([t]) for t in (second, first, third, second, failed)])
    assert store.trials() == ray.get(coordinator.trials.remote()) == [first, second, third, failed]
    now = ray.get(coordinator.progress.remote(3))
    assert now.searched == 4 and now.states[TrialState.RUNNING] == 3 and now.states[TrialState.FAILED] == 1


def test_a_killed_coordinator_is_rebuilt_from_the_store_and_loses_no_call(store: Store) -> None:
    coordinator = find_coordinator(store)
    recorded = trials(12)
    for number, trial in enumerate(recorded):
        if number in (3, 7):
            ray.kill(coordinator, no_restart=False)
        ray.get(coordinator.record.remote([trial]))
    assert ray.get(coordinator.trials.remote()) == store.trials() == recorded


def test_a_second_driver_takes_over_the_living_coordinator(store: Store) -> None:
    coordinator = find_coordinator(store)
    ray.get(coordinator.record.remote(trials(1)))
    again = find_coordinator(store)
    assert again._actor_id == coordinator._actor_id
    assert len(ray.get(again.trials.remote())) == 1


def test_the_gauges_reach_prometheus_under_their_names(store: Store) -> None:
    coordinator = find_coordinator(store)
    ray.get([coordinator.record.remote([t]) for t in trials(4)])
    ray.get(coordinator.progress.remote())
    port = ray.nodes()[0]["MetricsExportPort"]
    address = f"http://{ray.nodes()[0]['NodeManagerAddress']}:{port}/metrics"
    request = urllib.request.Request(address, headers={"Authorization": f"Bearer {os.environ['RAY_AUTH_TOKEN']}"})
    found: set[tuple[str, float]] = set()
    for _ in range(60):
        with urllib.request.urlopen(request, timeout=10) as answer:
            lines = [line for line in answer.read().decode().splitlines() if f'run="{store.name}"' in line]
        names = {line.partition("{")[0].removeprefix("ray_") for line in lines}
        found = {
            (state, float(line.split()[-1]))
            for line in lines
            for state in ("COMPLETE", "FAILED")
            if f'state="{state}"' in line
        }
        if names >= set(GAUGES) and found == {("COMPLETE", 3.0), ("FAILED", 1.0)}:
            break
        time.sleep(0.5)
    assert names == set(GAUGES)
    assert found == {("COMPLETE", 3.0), ("FAILED", 1.0)}
