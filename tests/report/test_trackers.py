"""Trackers of a run: MLflow's file store, TensorBoard's event files, and a stand-in for Weights & Biases."""

from __future__ import annotations

import json
import struct
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from raprune.errors import UsageError
from raprune.records import Stage
from raprune.report.trackers import TRACKERS, begin_tracking, check_installed
from raprune.report.trackers.feed import TrackerFeed
from raprune.spec.job import SearchSpec
from raprune.spec.toml import load_spec
from raprune.store.folder import Store
from raprune.store.learning_curves import write_curve
from tests.factories import make_short_run
from tests.tools import require_module

EPOCHS = [{"epoch": number, "train_loss": 1.0 / number, "lr": 0.1} for number in (1, 2)]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A finished run; every fine-tuned network has a learning curve."""
    store = make_short_run(tmp_path / "run")
    for trial in store.trials():
        if trial.proposal.stage is Stage.FINETUNE:
            write_curve(store, trial.trial_id, EPOCHS)
    return store


def tell(store: Store, name: str, *, times: int = 1) -> list[str]:
    """Feed a tracker as a driver does, as often as it is started; the warnings."""
    said: list[str] = []
    for _ in range(times):
        feed = TrackerFeed(store, begin_tracking([name], store), say=said.append)
        feed.tell_new()
        feed.tell_new()
        feed.end()
    return said


def finalists(store: Store) -> set[str]:
    return {t.network for t in store.trials() if t.counts and t.proposal.stage is Stage.FINETUNE}


@pytest.mark.nightly
def test_mlflow_has_a_step_for_each_trial_and_a_run_below_it_for_each_finalist(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    # MLflow says that its file store is in maintenance, and asks for this.
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    client_of = require_module("mlflow").MlflowClient
    # The second driver finds the run of the first, and writes no row twice.
    assert tell(store, "mlflow", times=2) == []
    client = client_of((tmp_path / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("raprune")
    assert experiment is not None
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"run", *finalists(store)} and len(finalists(store)) >= 1
    search = runs.pop("run")
    history = client.get_metric_history(search.info.run_id, "seconds")
    assert [metric.step for metric in history] == list(range(len(store.trials())))
    assert "best_val_accuracy" in search.data.metrics and search.info.status == "FINISHED"
    artifact = Path(search.info.artifact_uri.removeprefix("file://")) / "trials.json"
    table = json.loads(artifact.read_text())
    assert len(table["data"]) == len(store.trials()) and "val_accuracy" in table["columns"]
    for run in runs.values():
        assert run.data.tags["mlflow.parentRunId"] == search.info.run_id
        curve = client.get_metric_history(run.info.run_id, "train_loss")
        assert [(metric.step, metric.value) for metric in curve] == [(1, 1.0), (2, 0.5)]
        assert "val_accuracy" in run.data.metrics and run.data.params["stage"] == "finetune"


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """Tag -> step -> value, from the event files of a folder, as TensorBoard reads them."""
    from tensorboardX.proto.event_pb2 import Event

    found: dict[str, dict[int, float]] = defaultdict(dict)
    for path in sorted(folder.glob("events.out.tfevents.*")):
        content, at = path.read_bytes(), 0
        while at < len(content):
            (size,) = struct.unpack_from("<Q", content, at)
            event = Event.FromString(content[at + 12 : at + 12 + size])
            at += 16 + size
            for value in event.summary.value:
                if value.WhichOneof("value") == "simple_value":
                    found[value.tag][event.step] = value.simple_value
    return found


@pytest.mark.nightly
def test_tensorboard_has_a_step_for_each_trial_and_a_folder_for_each_finalist(store: Store) -> None:
    assert tell(store, "tensorboard", times=2) == []
    folder = Path(store.uri) / "tensorboard"
    assert {path.name for path in folder.iterdir()} == {"search", *finalists(store)}
    search = scalars(folder / "search")
    assert sorted(search["trial/seconds"]) == list(range(len(store.trials())))
    accuracies = {i: t.metrics.accuracy for i, t in enumerate(store.trials()) if t.metrics is not None}
    assert search["trial/val_accuracy"] == pytest.approx(accuracies) and "run/best_val_accuracy" in search
    for name in finalists(store):
        found = scalars(folder / name)
        assert found["training/train_loss"] == {1: 1.0, 2: 0.5} and 0 in found["result/val_accuracy"]


def test_wandb_has_a_step_for_each_trial_and_a_run_of_the_group_for_each_finalist(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: dict[str, Any] = {}

    class Opened(SimpleNamespace):
        step: int

        def log(self, values: Any, step: int | None = None) -> None:
            self.rows.append((step, values))
            self.step = max(self.step, (step or 0) + 1)

        def finish(self) -> None:
            self.finished += 1

    def init(**asked: Any) -> Any:
        known = opened.setdefault(asked["name"], Opened(step=0, rows=[], summary={}, finished=0))
        vars(known).update(asked)
        return known

    module: Any = ModuleType("wandb")
    module.init, module.Table = init, lambda names, data: SimpleNamespace(names=names, data=data)
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.delitem(sys.modules, "raprune.report.trackers.wandb_runs", raising=False)
    assert tell(store, "wandb") == []
    assert set(opened) == {"run", *finalists(store)}
    search = opened.pop("run")
    told = [step for step, values in search.rows if step is not None]
    assert told == list(range(len(store.trials()))) and search.finished == 1 and search.project == "raprune"
    assert len(search.rows[-1][1]["trials"].data) == len(store.trials())
    for run in opened.values():
        assert run.group == "run" and [step for step, _ in run.rows] == [1, 2] and "val_accuracy" in run.summary


def test_tracker_that_fails_is_named_once_and_left_out(store: Store) -> None:
    class Broken:
        def __init__(self) -> None:
            self.calls = 0

        def begin(self, run: Any) -> None:
            pass

        def trial(self, trial: Any) -> None:
            self.calls += 1
            raise ConnectionError("the server is away\nand more")

        def finalist(self, finalist: Any) -> None:
            raise AssertionError("left out by then")

        def end(self, rows: Sequence[Any], summary: Any) -> None:
            raise AssertionError("left out by then")

    broken, said = Broken(), list[str]()
    feed = TrackerFeed(store, [("mlflow", lambda: broken)], say=said.append)
    feed.tell_new()
    feed.end()
    assert broken.calls == 1
    assert said == ["track: mlflow is left out from here on: ConnectionError: the server is away"]


def test_tracker_is_a_field_of_the_job_and_is_refused_where_it_is_not_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert load_spec(None, {"track": ["mlflow"]}).track == ("mlflow",) and SearchSpec().track == ()
    with pytest.raises(UsageError, match="must be a list of `mlflow`, `tensorboard` and `wandb`"):
        load_spec(None, {"track": ["excel"]})
    monkeypatch.setitem(TRACKERS, "wandb", ("no_such_module_anywhere", ""))
    with pytest.raises(UsageError, match="track: wandb is not installed") as told:
        check_installed(["wandb"])
    assert told.value.hint == "pip install 'raprune[wandb]'"
