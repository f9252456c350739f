"""A search whose budget is a latency, to its end and killed on the way."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import ray
from rich.console import Console
from torch import nn

from raprune.cost import measure
from raprune.cost.conditions import usable_cpus
from raprune.cost.flops import CostModel
from raprune.cost.latency import TABLE, LatencyTable
from raprune.cost.measure import WholeTimer
from raprune.cost.stopwatch import Repeats
from raprune.errors import BudgetError
from raprune.orchestration import driver
from raprune.orchestration.cluster.placement import Placement
from raprune.orchestration.search import search
from raprune.orchestration.workers import latency
from raprune.orchestration.workers.latency import latency_table
from raprune.pruning import first_candidates
from raprune.pruning.export import export
from raprune.pruning.preparation import prepare, stored_table
from raprune.records import Stage
from raprune.report.terminal import print_front, print_pick
from raprune.results.front import listed
from raprune.results.rows import candidates
from raprune.results.timings import read_times
from raprune.spec.budget import Budget
from raprune.spec.job import SearchSpec
from raprune.store.folder import Store
from tests.orchestration.in_process import in_process

pytestmark = pytest.mark.ray


def spec_of(folder: Path, budget: float | str) -> SearchSpec:
    return SearchSpec.model_validate(
        {
            "model": {"name": "digits-net"},
            "data": {"name": "digits", "max_images": 400},
            "methods": ["l2", "l1", "random"],
            "dense": {"epochs": 1, "lr": 0.1},
            "search": {"trials": 6, "lookahead": 4, "calibration_images": 64},
            "finalists": {"count": 1, "each_method": False, "train": {"epochs": 0.1}},
            "resources": {"workers": 2},
            "latency": {"batch_size": 64, "repeats": 3, "widths": 3, "report_batch": 16},
            "budget": {"latency": budget},
            "output": str(folder / "run"),
        }
    )


def console(width: int = 140) -> Console:
    return Console(file=io.StringIO(), width=width, color_system=None)


def text(of: Console) -> str:
    assert isinstance(of.file, io.StringIO)
    return of.file.getvalue()


def held() -> str:
    """The cluster's free resources and the placement groups that hold others."""
    groups = [group for group in ray.util.placement_group_table().values() if group["state"] != "REMOVED"]
    return f"{ray.available_resources()}, {groups}"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, str]:
    spec, said = spec_of(tmp_path_factory.mktemp("latency"), 0.95), console()
    with pytest.MonkeyPatch.context() as quick, in_process():
        # A minute of timings, for a digits network that no test here needs to be timed well.
        quick.setattr(measure, "OFTEN", Repeats(most=10, least=3, limit_s=0.05))
        search(spec, console=said)
    return Store(spec.output), text(said)


def test_every_candidate_is_predicted_within_the_budget(finished: tuple[Store, str]) -> None:
    store, said = finished
    trials, table = store.trials(), stored_table(store)
    assert table is not None and len(trials) == 7
    for trial in trials:
        assert trial.metrics is not None and trial.metrics.latency_fraction is not None
        assert trial.proposal.target.flops is None and trial.proposal.target.latency is not None
        assert trial.metrics.latency_fraction <= trial.proposal.target.latency <= 0.95
        assert trial.metrics.latency_ms == pytest.approx(trial.metrics.latency_fraction * table.dense_ms)
    known = store.run()["latency"]
    assert known["dense_ms"] == table.dense_ms and 0 <= known["median_error"] <= known["worst_error"]
    assert "Table of layer times measured; on 10 other networks its median error is" in " ".join(said.split())


@pytest.mark.nightly
def test_first_candidates_are_timed_before_the_search_and_their_correction_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def predicted_ms(model: nn.Module) -> float:
        cost = CostModel(prepare(spec).graph, seen[0])
        widths = {name: len(model.get_parameter(f"{name}.weight")) for name in cost.group_names}
        return float(cost.latency_ms(cost.vector(widths)))

    def slow(*given: object, **named: object) -> WholeTimer:
        """Time networks as if each took 30 % longer than the table predicts, beside the dense one."""
        return lambda models: [*(1.3 * predicted_ms(model) for model in models), seen[0].dense_ms]

    seen: list[LatencyTable] = []
    made = latency_table

    def table(*given: Any) -> tuple[LatencyTable, bool]:
        found, is_new = made(*given)
        seen.append(found)
        return found, is_new

    monkeypatch.setattr(driver, "latency_table", table)
    monkeypatch.setattr(first_candidates, "whole_timer", slow)
    spec, said = spec_of(tmp_path, 0.95), console()
    with in_process():
        search(spec, console=said)
    store = Store(spec.output)
    kept, words = stored_table(store), " ".join(text(said).split())
    assert kept is not None and kept.correction is not None
    assert store.run()["latency"]["corrected_by"] == len(kept.correction.factors) > 0
    assert "timed as whole networks: within 30.0% of the prediction. These networks correct the prediction" in words
    for trial in store.trials():
        assert trial.metrics is not None and trial.metrics.latency_ms is not None
        cost = CostModel(prepare(spec).graph, kept)
        assert trial.metrics.latency_ms == pytest.approx(float(cost.latency_ms(cost.vector(trial.channels.widths))))
        assert trial.metrics.latency_fraction is not None and trial.metrics.latency_fraction <= 0.95


def test_whole_networks_of_the_front_were_measured(finished: tuple[Store, str]) -> None:
    store, _ = finished
    times = read_times(store, store.trials())
    rows = listed(candidates(store.trials()), store.record())
    assert times.budget is not None and (times.budget.batch_size, times.budget.threads) == (64, 1)
    assert [timing.batch_size for timing in times.conditions] == [1, 16], "as the job says"
    for timing in (*times.conditions, times.budget):
        assert set(timing.candidates) == {row.candidate for row in rows}
        assert timing.dense_ms > 0 and min(timing.candidates.values()) > 0
    shown = console()
    print_front(store.uri, console=shown)
    words = " ".join(text(shown).split())
    assert " latency memory faster@1 faster@16 val % " in words
    assert (
        "Latency: fraction of the dense network's under the conditions of the budget, a batch of 64, float32" in words
    )


def test_networks_are_timed_on_a_whole_node_and_where_none_gets_free_in_the_room_of_a_trial(
    ray_cluster: None, finished: tuple[Store, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, _ = finished
    spec = SearchSpec.model_validate(store.run()["spec"])
    subject = latency.Subject.of(spec, prepare(spec), Placement(1, 1.0, 0.0, "a trial"))

    def threads(name: str, *, node: float) -> set[int | None]:
        monkeypatch.setattr(latency, "node_resources", lambda: [{"CPU": node}])
        timed = Store(tmp_path / name)
        timed.create(store.record())
        latency.measure_front(subject, timed, store.trials())
        return {timing.threads for timing in read_times(timed, timed.trials()).conditions}

    # Two of the cluster's three processors are the whole node: an earlier test may still hold one. A larger node than
    # the cluster has never gets free.
    monkeypatch.setattr(latency, "ALONE_S", 300.0)
    assert threads("alone", node=2.0) == {min(2, usable_cpus())}, held()
    monkeypatch.setattr(latency, "ALONE_S", 0.5)
    assert threads("beside", node=4.0) == {1}


def test_another_latency_is_picked_without_new_work(finished: tuple[Store, str]) -> None:
    store, _ = finished
    dense_ms = store.run()["latency"]["dense_ms"]
    least = min(t.metrics.latency_fraction or 1.0 for t in store.trials() if t.metrics)
    for asked in (Budget(latency=least), Budget(latency_ms=least * dense_ms)):
        shown = console()
        print_pick(store.uri, asked, console=shown, as_json=True)
        assert json.loads(text(shown))["latency_fraction"] <= least * (1 + 1e-9)


def test_a_candidate_is_made_again_by_the_same_table(finished: tuple[Store, str], tmp_path: Path) -> None:
    store, _ = finished
    trial = next(t for t in store.trials() if t.proposal.stage is Stage.SEARCH)
    assert trial.candidate is not None
    assert export(store.uri, trial.trial_id, str(tmp_path / "made")).network == trial.candidate.id


def test_a_latency_out_of_reach_is_refused_before_the_run_begins(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, "1us")
    with in_process(), pytest.raises(BudgetError, match=r"--budget-latency .*out of reach"):
        search(spec, console=console())
    assert not Store(spec.output).is_run() and not Store(spec.output).exists(TABLE)
