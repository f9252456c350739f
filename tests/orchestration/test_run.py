"""What the user is told on the way."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import ray
from rich.console import Console

from raprune.errors import StoreError
from raprune.orchestration.run import Run, check_unchanged, describe, place_group, warn_of_symptoms
from raprune.pruning.preparation import prepare
from raprune.results.stages import Stages
from raprune.results.test_split import TEST_FILE
from raprune.spec.toml import load_spec
from raprune.store.folder import Store
from raprune.store.record import RunRecord


def test_symptoms_of_the_dense_network_are_said_once_and_kept_in_run_json(tmp_path: Path) -> None:
    spec = load_spec(
        None, {"model.name": "digits-net", "data.name": "digits", "methods": ["l1"], "output": str(tmp_path / "run")}
    )
    console = Console(file=io.StringIO(), width=80)
    run = Run(spec, Store(spec.output), prepare(spec), console, Stages())
    described = describe(run).to_json()
    described["spec"]["model"]["weights"] = "given.safetensors"
    described["dense"] |= {"val_accuracy": 0.9, "val_images": 10_000, "train_accuracy": 0.95, "train_images": 2_000}
    run.store.create(RunRecord.model_validate(described))
    assert described["data"]["chance"] < 0.12 and described["data"]["normalisation"] == "measured on the training split"

    def said() -> str:
        assert isinstance(console.file, io.StringIO)
        before = console.file.getvalue()
        warn_of_symptoms(run)
        return console.file.getvalue()[len(before) :]

    assert said() == "" and run.store.run()["warnings"] == []
    run.store.write_json(TEST_FILE, {"dense": 0.8, "candidates": {}, "images": 10_000})
    assert "Warning: The dense network scores 90.0% on validation and 80.0% on test" in said()
    assert len(run.store.run()["warnings"]) == 1
    assert said() == ""
    run.store.write_json("run.json", run.store.run() | {"dense": described["dense"] | {"val_accuracy": 0.1}})
    assert said().count("Warning: ") == 1, "95 % on the training images"


def test_description_of_a_run_in_json_has_the_fields_in_the_order_of_earlier_versions(tmp_path: Path) -> None:
    given = {"model.name": "digits-net", "data.name": "digits", "methods": ["l1"], "output": str(tmp_path / "run")}
    spec = load_spec(None, given)
    described = describe(Run(spec, Store(spec.output), prepare(spec), Console(), Stages())).to_json()
    assert list(described) == [
        *("spec", "state", "created_at", "started_at", "versions", "machine", "metric"),
        *("data", "architecture", "weights_hash", "dense", "graph"),
    ]
    first = ["val_accuracy", "val_loss", "val_images", "flops", "macs", "params"]
    assert list(described["dense"]) == [*first, "memory_bytes"]
    assert list(described["graph"]) == ["groups", "frozen", "notes", "proof"]
    assert described["weights_hash"] is None and described["dense"]["val_accuracy"] is None


def test_check_unchanged_of_an_earlier_run_compares_groups_and_costs(tmp_path: Path) -> None:
    """Such a run has a digest of the code's text, which a changed comment changed."""
    given = {"model.name": "digits-net", "data.name": "digits", "methods": ["l1"], "output": str(tmp_path / "run")}
    spec = load_spec(None, given)
    console, store = Console(file=io.StringIO(), width=80), Store(spec.output)
    prepared = prepare(spec)
    described = describe(Run(spec, store, prepared, console, Stages())).to_json()
    check_unchanged(store, RunRecord.model_validate(described), prepared, console)
    earlier = described | {"architecture": "6f97f17e6221ffd4"}
    check_unchanged(store, RunRecord.model_validate(earlier), prepared, console)
    with pytest.raises(StoreError, match="the network changed since the run began"):
        check_unchanged(
            store, RunRecord.model_validate(described | {"architecture": "another-graph"}), prepared, console
        )
    other = earlier | {"dense": earlier["dense"] | {"flops": 1}}
    with pytest.raises(StoreError, match="the network changed since the run began"):
        check_unchanged(store, RunRecord.model_validate(other), prepared, console)


def test_group_avoids_nodes_that_are_left_out_unless_it_does_not_fit_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = [{"NodeID": name, "Alive": True, "Resources": {"CPU": 2.0}} for name in "abc"]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    given = {"model.name": "digits-net", "data.name": "digits", "methods": ["l1"], "output": str(tmp_path / "run")}
    spec = load_spec(None, given | {"resources.train_workers": 4})
    run = Run(spec, Store(spec.output), prepare(spec), Console(), Stages())
    for left_out, workers, avoided in (((), 4, ()), (("b",), 4, ("b",)), (("c", "b"), 4, ())):
        placed = place_group(run, 1, 64, left_out)
        assert placed is not None and (placed.workers, placed.left_out) == (workers, avoided)
