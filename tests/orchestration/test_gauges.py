from __future__ import annotations

import os
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from prometheus_client.parser import text_string_to_metric_families

from raprune.orchestration.coordinator import coordinator_name, find_coordinator
from raprune.orchestration.gauges import COUNTERS, GAUGES, MAX_FRONT, Values, measure, signs_of_life
from raprune.records import Candidate, Metrics, Proposal, Stage, Trial, TrialState
from raprune.results.front import front
from raprune.results.progress import progress
from raprune.spec.budget import Budget
from raprune.store.folder import Store
from raprune.store.record import RunRecord

RUN: dict[str, Any] = {
    "spec": {"budget_flops": 0.5, "max_drop": 0.1, "search": {"trials": 6}, "finalists": {"count": 2, "seeds": 3}},
    "dense": {"val_accuracy": 0.9},
    "started_at": 0.0,
}


def trial(
    number: int, accuracy: float | None, flops: float = 0.4, *, latency: float | None = None, **proposed: Any
) -> Trial:
    """A trial of two seconds on one GPU; one without an accuracy failed."""
    proposal = Proposal(number=number, method="l2", allocation="uniform", target=Budget(flops=flops), **proposed)
    if accuracy is None:
        state, metrics, error = TrialState.FAILED, None, "ValueError: no"
    else:
        state, error = TrialState.COMPLETE, None
        metrics = Metrics(
            accuracy=accuracy,
            loss=1.0,
            flops=int(1000 * flops),
            params=100,
            flops_fraction=flops,
            params_fraction=0.25,
            latency_ms=latency,
            latency_fraction=latency,
        )
    return Trial(
        trial_id=proposal.trial_id,
        proposal=proposal,
        state=state,
        candidate=None if accuracy is None else Candidate("l2", {"a": tuple(range(number + 1))}),
        metrics=metrics,
        error=error,
        seconds=2.0,
        gpu_seconds=1.0,
    )


def name_of(trial: Trial) -> tuple[tuple[str, str], ...]:
    assert trial.candidate is not None
    return (("candidate", trial.candidate.id), ("method", "l2"))


def test_a_run_without_a_trial_says_what_was_asked_for() -> None:
    measured = measure(RunRecord.model_validate(RUN), [])
    gauges = measured.gauges
    assert gauges["raprune_trials"] == {
        (("state", state),): count
        for state, count in (("WAITING", 6), ("RUNNING", 0), ("COMPLETE", 0), ("STOPPED", 0), ("FAILED", 0))
    }
    assert gauges["raprune_front_points"] == gauges["raprune_hypervolume"] == {(): 0}
    assert gauges["raprune_dense_accuracy"] == {(): 0.9}
    assert gauges["raprune_accuracy_floor"] == {(): pytest.approx(0.8)}
    assert gauges["raprune_budget"] == {(("cost", "flops"),): 0.5}
    assert gauges["raprune_finalists"] == {(("state", "trained"),): 0}, "none is chosen yet"
    chosen = measure(RunRecord.model_validate(RUN | {"finetunings": 6}), []).gauges
    assert chosen["raprune_finalists"] == {(("state", "trained"),): 0, (("state", "wanted"),): 6}
    assert gauges["raprune_best_accuracy"] == gauges["raprune_best_cost"] == gauges["raprune_front_accuracy"] == {}
    assert all(values == {} for values in measured.counters.values())


def test_the_numbers_are_those_of_the_front_and_of_raprune_status() -> None:
    trials = [trial(0, 0.7, 0.2), trial(1, 0.8, 0.4), trial(2, 0.6, 0.3), trial(3, 0.95, 0.9), trial(4, None)]
    gauges = measure(RunRecord.model_validate(RUN), trials, running=1).gauges
    now = progress(RunRecord.model_validate(RUN), trials, running=1)
    assert gauges["raprune_trials"][(("state", "RUNNING"),)] == 1
    assert gauges["raprune_trials"][(("state", "COMPLETE"),)] == now.states["COMPLETE"] == 4
    assert gauges["raprune_hypervolume"] == {(): now.hypervolume} and now.hypervolume > 0
    assert gauges["raprune_best_accuracy"] == {(): 0.8}, "the better one is over the budget"
    assert gauges["raprune_best_cost"] == {(("cost", "flops"),): 0.4, (("cost", "params"),): 0.25}
    assert gauges["raprune_front_accuracy"] == {name_of(trials[0]): 0.7, name_of(trials[1]): 0.8}
    assert gauges["raprune_front_cost"] == {
        (*name_of(t), ("cost", cost)): value
        for t, flops in ((trials[0], 0.2), (trials[1], 0.4))
        for cost, value in (("flops", flops), ("params", 0.25))
    }


def test_latency_is_a_cost_where_it_is_known() -> None:
    run = RUN | {"spec": {"budget_latency": "0.5"}}
    trials = [trial(0, 0.7, 0.2, latency=0.3), trial(1, 0.8, 0.1, latency=0.4)]
    gauges = measure(RunRecord.model_validate(run), trials).gauges
    assert gauges["raprune_budget"] == {(("cost", "latency"),): 0.5}
    assert gauges["raprune_front_cost"][(*name_of(trials[0]), ("cost", "latency"))] == 0.3


def test_counters_count_by_stage_rung_and_state_and_seconds_by_device() -> None:
    trials = [
        trial(0, 0.7),
        trial(0, 0.72, rung=1, parent="search-00000"),
        trial(1, None),
        trial(2, 0.8, stage=Stage.FINETUNE),
        trial(2, 0.8, stage=Stage.FINETUNE, repeat=1),
    ]
    counters = measure(RunRecord.model_validate(RUN), trials).counters
    assert {tuple(value for _, value in tags): n for tags, n in counters["raprune_recorded_trials"].items()} == {
        ("search", "0", "COMPLETE"): 1,
        ("search", "1", "COMPLETE"): 1,
        ("search", "0", "FAILED"): 1,
        ("finetune", "0", "COMPLETE"): 2,
    }
    assert {tuple(value for _, value in tags): s for tags, s in counters["raprune_trial_seconds"].items()} == {
        ("search", "worker"): 6.0,
        ("search", "gpu"): 3.0,
        ("finetune", "worker"): 4.0,
        ("finetune", "gpu"): 2.0,
    }


def test_counters_never_fall_as_a_run_goes_on() -> None:
    trials = [trial(n, None if n % 3 == 2 else 0.5 + n / 100, 0.1 + n / 100, rung=n % 2) for n in range(12)]
    before: Values = {name: {} for name in COUNTERS}
    for count in range(len(trials) + 1):
        now = measure(RunRecord.model_validate(RUN), trials[:count]).counters
        assert all(now[name].get(tags, 0) >= value for name in before for tags, value in before[name].items())
        before = now


def test_a_long_front_is_bounded_and_its_ends_are_kept() -> None:
    trials = [trial(n, 0.5 + n / 1000, 0.1 + n / 1000) for n in range(300)]
    gauges = measure(RunRecord.model_validate(RUN), trials).gauges
    assert len(front(trials, Budget(flops=0.5))) == 300 == gauges["raprune_front_points"][()]
    assert len(gauges["raprune_front_accuracy"]) == MAX_FRONT
    assert {name_of(trials[0]), name_of(trials[-1])} <= set(gauges["raprune_front_accuracy"])


def test_every_measured_metric_is_declared() -> None:
    measured = measure(RunRecord.model_validate(RUN), [trial(0, 0.7, latency=0.3), trial(1, None)])
    all_values = measured.gauges | signs_of_life(measured, now=1.0, silent_s=2.0, store_waits=3)
    assert set(all_values) == set(GAUGES) and set(measured.counters) == set(COUNTERS)
    for name, values in (all_values | measured.counters).items():
        for tags in values:
            assert tuple(label for label, _ in tags) == (GAUGES | COUNTERS)[name].tags, name


@pytest.fixture
def store(ray_cluster: None, tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "run")
    store.create(RunRecord.model_validate(RUN))
    yield store
    ray.kill(ray.get_actor(coordinator_name(store.uri), namespace="raprune"))


def scraped(store: Store) -> dict[str, list[tuple[dict[str, str], float]]]:
    """Metric -> labels and values of the run, as Prometheus would read them."""
    node = ray.nodes()[0]
    request = urllib.request.Request(
        f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics",
        headers={"Authorization": f"Bearer {os.environ['RAY_AUTH_TOKEN']}"},
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        families = text_string_to_metric_families(answer.read().decode())
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in families:
        for sample in family.samples:
            if sample.labels.get("run") == store.name:
                found.setdefault(sample.name.removeprefix("ray_"), []).append((sample.labels, sample.value))
    return found


def until(store: Store, is_so: Callable[[dict[str, list[tuple[dict[str, str], float]]]], bool]) -> Any:
    """What is scraped once it is so; a failure after a minute."""
    end = time.monotonic() + 60
    while not is_so(found := scraped(store)):
        assert time.monotonic() < end, found
        time.sleep(0.5)
    return found


def on_front(found: dict[str, list[tuple[dict[str, str], float]]]) -> set[str]:
    return {labels["candidate"] for labels, _ in found.get("raprune_front_accuracy", [])}


def counted(found: dict[str, list[tuple[dict[str, str], float]]]) -> float:
    """As the queries do: of the coordinators of one run the one that counted the most."""
    highest: dict[tuple[str, str, str], float] = {}
    for labels, value in found.get("raprune_recorded_trials_total", []):
        key = (labels["stage"], labels["rung"], labels["state"])
        highest[key] = max(value, highest.get(key, 0.0))
    return sum(highest.values())


@pytest.mark.ray
@pytest.mark.nightly
def test_all_metrics_reach_prometheus_and_a_candidate_that_left_the_front_goes(store: Store) -> None:
    coordinator = find_coordinator(store)
    first, better = trial(0, 0.7, 0.4), trial(1, 0.8, 0.3, latency=0.2)
    assert first.candidate is not None and better.candidate is not None
    ray.get(coordinator.record.remote([first, trial(2, None)]))
    metrics = set(GAUGES) | {f"{name}_total" for name in COUNTERS}
    # The last clause as well may take another scrape: what is exported leaves the process in parts.
    found = until(
        store,
        lambda found: on_front(found) == {first.candidate.id} and counted(found) == 2 and set(found) == metrics,
    )
    assert found["raprune_dense_accuracy"][0][1] == 0.9
    ray.get(coordinator.record.remote([better]))
    assert ray.get(coordinator.unexported_s.remote()) > 0, "it is not there yet"
    until(store, lambda found: on_front(found) == {better.candidate.id})
    until(store, lambda _: ray.get(coordinator.unexported_s.remote()) == 0)


@pytest.mark.ray
@pytest.mark.nightly
def test_counters_go_on_where_they_were_after_the_coordinator_was_killed(store: Store) -> None:
    coordinator = find_coordinator(store)
    ray.get(coordinator.record.remote([trial(n, 0.5 + n / 10) for n in range(3)]))
    until(store, lambda found: counted(found) == 3)
    ray.kill(coordinator, no_restart=False)
    ray.get(coordinator.record.remote([trial(3, 0.8)]))
    seen: list[float] = []

    def has_four(found: dict[str, list[tuple[dict[str, str], float]]]) -> bool:
        seen.append(counted(found))
        return seen[-1] == 4

    until(store, has_four)
    assert seen == sorted(seen) and seen[0] >= 3, "it never falls"
