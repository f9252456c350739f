"""The typed content of `run.json`: runs of every version are read, and nothing that was written is lost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from raprune.errors import StoreError
from raprune.store.folder import Store
from raprune.store.record import RunRecord

CONTENT = {
    "spec": {"methods": ["l2"], "search": {"trials": 8, "sampler": "mixed"}, "finalists": {"count": 2}, "seed": 3},
    "state": "finished",
    "dense": {"val_accuracy": 0.98, "val_images": 251, "flops": 1000, "params": 100},
    "graph": {"groups": {"conv1": 16}, "frozen": [["linear", 10, "the network's output"]], "notes": []},
    "latency": {"device": "CPU", "batch_size": 1, "precision": "float32", "dense_ms": 4.0, "median_error": 0.01},
    "written_by_a_later_version": {"anything": [1, None]},
}


def test_record_in_json_is_the_content_that_was_read() -> None:
    record = RunRecord.model_validate(CONTENT)
    assert json.loads(json.dumps(record.to_json())) == CONTENT


def test_record_types_what_is_read_of_a_run() -> None:
    record = RunRecord.model_validate(CONTENT)
    assert record.finished and record.dense_accuracy == 0.98 and record.val_images == 251
    assert record.job.methods == ("l2",) and record.job.search.trials == 8 and record.job.finalists.seeds == 1
    assert record.latency is not None and record.latency.dense_ms == 4.0
    assert record.graph.frozen[0] == ("linear", 10, "the network's output")


@pytest.mark.parametrize(
    "content", [{}, {"spec": {}}, {"state": None}, {"dense": {"val_accuracy": None}}, {"data": {"num_classes": 10}}]
)
def test_record_of_an_earlier_version_lacks_fields_and_is_read(content: dict[str, object]) -> None:
    record = RunRecord.model_validate(content)
    assert not record.finished and record.dense_accuracy is None and record.val_images is None
    assert record.job.methods == () and record.job.search.trials is None and record.to_json() == content


def test_record_is_frozen() -> None:
    with pytest.raises(ValidationError):
        RunRecord().state = "finished"


def test_record_that_cannot_be_read_names_the_field(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"dense": {"flops": "many"}}))
    with pytest.raises(StoreError, match=r"run\.json is not understood: dense\.flops: .*integer"):
        Store(tmp_path).record()
    (tmp_path / "run.json").write_text(json.dumps({"spec": {"search": {"trials": "many"}}}))
    with pytest.raises(StoreError, match=r"is not understood: spec\.search\.trials: .*integer"):
        Store(tmp_path).record()


def test_note_changes_the_fields_that_it_is_given_and_no_others(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.create(RunRecord.model_validate(CONTENT))
    store.note({"state": "searching", "stopped": "patience"})
    assert store.run() == CONTENT | {"state": "searching", "stopped": "patience"}
    assert store.record().stopped == "patience" and not store.record().finished
