"""The networks of a run under their names, in the layout of today and in that of before."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from raprune.cli import app
from raprune.records import Stage, Trial
from raprune.report import figures
from raprune.store.folder import Store
from raprune.store.networks import find_network, is_stored, rename_finetuned
from raprune.store.record import RunRecord
from tests.factories import FRONT_RUN as RUN
from tests.factories import front_trial as trial
from tests.factories import repeats


@pytest.fixture
def before(tmp_path: Path) -> Store:
    """A finished run in the layout of before: fine-tuned twice, once for the worse, named after its candidate."""
    store = Store(tmp_path / "run")
    store.create(RunRecord.model_validate(RUN | {"state": "finished", "finished_at": 200.0}))
    searched, other = trial(1, 0.9, 0.3), trial(0, 0.8, 0.2)
    tuned = repeats(1, [0.5, 0.6], flops=0.3, parent=searched.trial_id)
    better = trial(7, 0.85, 0.2, stage=Stage.FINETUNE, epochs=2.0, width=1, parent=other.trial_id)
    store.append([other, searched, *tuned, better])
    for one in (*tuned, better):
        assert one.candidate is not None
        repeat = one.proposal.repeat
        folder = f"models/{one.candidate.id}" + (f"-s{repeat}" if repeat else "")
        store.write_bytes(f"{folder}/weights.safetensors", one.trial_id.encode())
        store.write_json(f"{folder}/recipe.json", {"trial_id": one.trial_id})
    names = {searched.name: 0.55, f"{searched.name}-s1": 0.65, other.name: 0.84}
    store.write_json("report/test.json", {"dense": 0.97, "candidates": names, "images": 100})
    times = {"device": "CPU", "batch_size": 1, "precision": "float32", "dense_ms": 2.0}
    store.write_json("report/latency.json", times | {"candidates": {searched.name: 1.0, other.name: 0.5}})
    return store


def by_id(store: Store) -> dict[str, Trial]:
    return {one.trial_id: one for one in store.trials()}


def told(*words: str) -> Any:
    done = CliRunner().invoke(app, [*words, "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.output)


def test_front_and_pick_of_an_earlier_run_tell_repaired_and_fine_tuned_networks_apart(before: Store) -> None:
    trials = by_id(before)
    rows = {row["candidate"]: row for row in told("front", before.uri)}
    assert list(rows) == [trials["finetune-00007"].network, trials["search-00001"].network]
    tuned = rows[trials["finetune-00007"].network]
    assert (tuned["test_accuracy"], tuned["measured_ms"]) == (0.84, 0.5)
    repaired = rows[trials["search-00001"].network]
    assert (repaired["val_accuracy"], repaired["test_accuracy"]) == (0.9, None), "its own was never measured"
    assert told("pick", before.uri, "--budget-flops", "0.3")["candidate"] == repaired["candidate"]
    everything = {row["trial_id"]: row for row in told("front", before.uri, "--all")}
    assert everything["finetune-00001"]["test_accuracy"] == pytest.approx(0.6)


def test_report_and_status_of_an_earlier_run_are_written(
    before: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One kind of file: tests/report draws them all.
    monkeypatch.setattr(figures, "KINDS", ("svg",))
    assert CliRunner().invoke(app, ["report", before.uri, "--output", str(tmp_path / "report")]).exit_code == 0
    page = (tmp_path / "report" / "front.html").read_text()
    assert by_id(before)["finetune-00007"].network in page and "not finished" not in page
    assert told("status", before.uri)["finetunings"] == 3


def test_networks_of_an_earlier_run_are_found_by_their_trials(before: Store) -> None:
    trials = by_id(before)
    parent = trials["search-00001"].network
    assert find_network(before, trials["finetune-00001"]) == f"models/{parent}"
    assert find_network(before, trials["finetune-00001-s1"]) == f"models/{parent}-s1"
    assert find_network(before, trials["search-00001"]) is None, "its folder holds the fine-tuned one"


def test_export_from_an_earlier_run_copies_the_network_of_the_trial(before: Store, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["export", before.uri, "finetune-00001", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "out" / "weights.safetensors").read_bytes() == b"finetune-00001"
    assert f"network {by_id(before)['finetune-00001'].network}, trial finetune-00001" in done.output
    assert "validation accuracy 50.00%" in done.output


def test_fine_tuned_networks_of_an_earlier_run_are_renamed_for_the_repaired_ones(before: Store) -> None:
    trials = by_id(before)
    rename_finetuned(before, trials.values())
    searched, tuned = trials["search-00001"], trials["finetune-00001"]
    assert all(is_stored(before, trials[f"finetune-{name}"]) for name in ("00001", "00001-s1", "00007"))
    assert find_network(before, searched) is None
    before.write_json(f"models/{searched.network}/recipe.json", {"trial_id": searched.trial_id})
    assert is_stored(before, searched) and is_stored(before, tuned)
    assert before.read_bytes(f"models/{tuned.network}/weights.safetensors") == b"finetune-00001"


def test_network_that_the_search_trained_is_found_under_its_trial(tmp_path: Path) -> None:
    store, searched = Store(tmp_path), trial(3, 0.9, 0.3)
    store.write_json(f"models/{searched.trial_id}/recipe.json", {"trial_id": searched.trial_id})
    assert find_network(store, searched) == f"models/{searched.trial_id}" and not is_stored(store, searched)
    assert find_network(store, replace(searched, candidate=None)) is None


def test_folder_without_a_recipe_holds_no_network(tmp_path: Path) -> None:
    store, searched = Store(tmp_path), trial(3, 0.9, 0.3)
    store.write_json(f"models/{searched.network}/recipe.json", ["not", "a", "recipe"])
    assert find_network(store, searched) is None
