"""A whole search on a Ray cluster: what the executor of `in_process.py` plays is what Ray does."""

from __future__ import annotations

from pathlib import Path

import pytest
import ray

from raprune.records import TrialState
from raprune.store.folder import Store
from tests.factories import small_search
from tests.orchestration.whole_search import facts, run

pytestmark = pytest.mark.ray


def test_search_on_ray_finds_what_the_executor_found_and_leaves_no_actor(
    ray_cluster: None, finished: Store, tmp_path: Path
) -> None:
    spec = small_search(tmp_path / "run")
    text = run(spec)
    assert "12 of 12" in text or "dense" in text
    on_ray = Store(spec.output)
    assert facts(on_ray.trials()) == facts(finished.trials())
    assert on_ray.read_json("report/test.json") == finished.read_json("report/test.json")
    assert set(on_ray.names("models")) == set(finished.names("models"))
    assert len({trial.worker for trial in on_ray.trials()}) == 2, "two workers, each a process of its own"
    alive = [name for name in ray.util.list_named_actors(all_namespaces=True) if "raprune" in str(name)]
    assert alive == []


@pytest.mark.nightly
def test_a_worker_that_dies_is_replaced_and_its_trial_tried_again(ray_cluster: None, tmp_path: Path) -> None:
    deaths = tmp_path / "deaths"
    deaths.mkdir()
    model = {"name": "tests.orchestration.fragile:build", "arguments": {"deaths": str(deaths), "times": 1}}
    spec = small_search(tmp_path / "run", model=model)
    run(spec)
    trials = Store(spec.output).trials()
    assert len(list(deaths.iterdir())) == 1 and len(trials) == 14
    assert all(t.state is TrialState.COMPLETE for t in trials)
