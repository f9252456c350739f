"""A search whose budget is a latency, to its end and killed on the way."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from raprune.budget import Budget
from raprune.errors import BudgetError
from raprune.front import budget_of, front
from raprune.latency import TABLE
from raprune.orchestration.search import search
from raprune.preparation import stored_table
from raprune.report import LATENCY_FILE, print_front, print_pick
from raprune.single import export
from raprune.spec import SearchSpec
from raprune.store import Store
from raprune.trial import Stage

pytestmark = pytest.mark.ray


def spec_of(folder: Path, budget: float | str) -> SearchSpec:
    return SearchSpec.model_validate(
        {
            "data": {"max_images": 400},
            "dense": {"epochs": 1, "lr": 0.1},
            "search": {"trials": 8, "lookahead": 4, "calibration_images": 64},
            "finalists": {"count": 1, "each_method": False, "train": {"epochs": 0.1}},
            "resources": {"workers": 2},
            "latency": {"batch_size": 64, "repeats": 3, "widths": 3},
            "budget_latency": budget,
            "output": str(folder / "run"),
        }
    )


def console(width: int = 140) -> Console:
    return Console(file=io.StringIO(), width=width, color_system=None)


def text(of: Console) -> str:
    assert isinstance(of.file, io.StringIO)
    return of.file.getvalue()


@pytest.fixture(scope="module")
def finished(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, str]:
    spec, said = spec_of(tmp_path_factory.mktemp("latency"), 0.95), console()
    search(spec, console=said)
    return Store(spec.output), text(said)


def test_every_candidate_is_predicted_within_the_budget(finished: tuple[Store, str]) -> None:
    store, said = finished
    trials, table = store.trials(), stored_table(store)
    assert table is not None and len(trials) == 9
    for trial in trials:
        assert trial.metrics is not None and trial.metrics.latency_fraction is not None
        assert trial.proposal.target_flops == 1.0 and trial.proposal.target_latency is not None
        assert trial.metrics.latency_fraction <= trial.proposal.target_latency <= 0.95
        assert trial.metrics.latency_ms == pytest.approx(trial.metrics.latency_fraction * table.dense_ms)
    known = store.run()["latency"]
    assert known["dense_ms"] == table.dense_ms and 0 <= known["median_error"] <= known["worst_error"]
    assert "Table of layer times measured; on 10 other networks its median error is" in " ".join(said.split())


def test_whole_networks_of_the_front_were_measured(finished: tuple[Store, str]) -> None:
    store, _ = finished
    timed = store.read_json(LATENCY_FILE)
    rows = front(store.trials(), budget_of(store.run()))
    assert set(timed["candidates"]) == {row["candidate"] for row in rows}
    assert timed["dense_ms"] > 0 and timed["batch_size"] == 64 and min(timed["candidates"].values()) > 0
    shown = console()
    print_front(store.uri, console=shown)
    words = " ".join(text(shown).split())
    assert " time val % " in words and "Time: share of the dense network's latency" in words


def test_another_latency_is_picked_without_new_work(finished: tuple[Store, str]) -> None:
    store, _ = finished
    dense_ms = store.run()["latency"]["dense_ms"]
    least = min(t.metrics.latency_fraction or 1.0 for t in store.trials() if t.metrics)
    for latency in (f"{least}", f"{least * dense_ms}ms"):
        shown = console()
        print_pick(store.uri, Budget(), latency=latency, console=shown, as_json=True)
        assert json.loads(text(shown))["latency_fraction"] <= least * (1 + 1e-9)


def test_a_candidate_is_made_again_by_the_same_table(finished: tuple[Store, str], tmp_path: Path) -> None:
    store, _ = finished
    trial = next(t for t in store.trials() if t.proposal.stage is Stage.SEARCH)
    assert trial.candidate is not None
    assert export(store.uri, trial.trial_id, str(tmp_path / "made")) == trial.candidate.id


def test_a_latency_out_of_reach_is_refused_before_the_run_begins(ray_cluster: None, tmp_path: Path) -> None:
    spec = spec_of(tmp_path, "1us")
    with pytest.raises(BudgetError, match=r"--budget-latency .*out of reach"):
        search(spec, console=console())
    assert not Store(spec.output).is_run() and not Store(spec.output).exists(TABLE)
