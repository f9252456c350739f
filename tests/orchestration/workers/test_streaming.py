from __future__ import annotations

import io
import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray
from rich.console import Console

from raprune.data import Dataset, load_data
from raprune.data.arrays import Split
from raprune.data.stream import StreamSource, ThreadReader
from raprune.errors import DataError
from raprune.orchestration.search import resume, search
from raprune.orchestration.workers.streaming import TASK_IMAGES, RayReader, _tasks
from raprune.records import TrialState
from raprune.spec.job import DataSpec, SearchSpec
from raprune.store.folder import Store
from tests.streams import digits, write_images, write_parts

pytestmark = pytest.mark.ray


def load(train: str, name: str = "parquet", **fields: Any) -> Dataset:
    given = {"name": name, "train": train, "stream": True, "resident_images": 100, **fields}
    return load_data(DataSpec.model_validate(given), seed=0)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> StreamSource:
    return stream_of(write_parts(tmp_path_factory.mktemp("digits"), digits()), "parquet")


def stream_of(train: str, name: str) -> StreamSource:
    stream = load(train, name).stream
    assert stream is not None
    return stream


def joined(blocks: Any) -> Split:
    read = list(blocks)
    return Split(np.concatenate([b.images for b in read]), np.concatenate([b.labels for b in read]))


@ray.remote(num_cpus=3)
class Greedy:
    """Holds all processors of the cluster."""

    def read(self, source: StreamSource, **order: int) -> Split:
        return joined(RayReader().blocks(source, **order))

    def begin_and_leave(self, source: StreamSource) -> float:
        blocks = RayReader().blocks(source, seed=0, rank=0, size=1)
        next(blocks)
        began = time.perf_counter()
        blocks.close()
        return time.perf_counter() - began


def call(greedy: Any, name: str, *arguments: Any, **order: int) -> Any:
    return ray.get(getattr(greedy, name).remote(*arguments, **order), timeout=120)


@pytest.mark.nightly
def test_who_holds_all_processors_is_given_what_threads_would_read(
    ray_cluster: None, source: StreamSource, tmp_path: Path
) -> None:
    remote: Any = Greedy
    greedy = remote.remote()
    images = stream_of(write_images(tmp_path / "images", digits()), "imagefolder")
    for read, order in ((source, {"seed": 0, "rank": 0, "size": 1}), (images, {"seed": 3, "rank": 1, "size": 2})):
        by_ray, by_threads = call(greedy, "read", read, **order), joined(ThreadReader().blocks(read, **order))
        assert np.array_equal(by_ray.images, by_threads.images) and by_ray.images.dtype == np.uint8
        assert np.array_equal(by_ray.labels, by_threads.labels) and by_ray.labels.dtype == np.int64
    assert call(greedy, "begin_and_leave", source) < 10
    ray.kill(greedy)


def test_read_error_of_a_task_reaches_the_user_unchanged(ray_cluster: None, tmp_path: Path) -> None:
    rows = digits().to_pylist()
    rows[500]["image"]["bytes"] = rows[500]["image"]["bytes"][:60]
    train = write_parts(tmp_path, pa.Table.from_pylist(rows, schema=digits().schema))
    stream = load(train, resident_images=1, validation_fraction=0.01).stream
    assert stream is not None
    with pytest.raises(DataError, match="row 500 cannot be decoded"):
        joined(RayReader().blocks(stream, seed=0, rank=0, size=1))


def test_a_task_reads_enough_pieces() -> None:
    pieces = [np.arange(number, number + 300) for number in range(0, 3000, 300)]
    tasks = _tasks(pieces)
    assert [len(task) for task in tasks] == [4, 4, 2] and TASK_IMAGES < 4 * 300
    assert np.array_equal(np.concatenate([piece for task in tasks for piece in task]), np.arange(3000))


def job(folder: Path) -> SearchSpec:
    data = {
        "name": "parquet",
        "train": write_parts(folder / "data" / "train", digits().slice(0, 700)),
        "test": write_parts(folder / "data" / "test", digits("test")),
        "stream": True,
        "resident_images": 100,
    }
    return SearchSpec.model_validate(
        {
            "model": {"name": "digits-net"},
            "data": data,
            "methods": ["l2", "l1", "random"],
            "dense": {"epochs": 6, "lr": 0.1, "batch_size": 32},
            "search": {"trials": 6, "lookahead": 4, "calibration_images": 64},
            "finalists": {"count": 1, "each_method": False, "train": {"epochs": 0.5}},
            "resources": {"workers": 2},
            "output": str(folder / "run"),
        }
    )


@pytest.mark.nightly
def test_search_that_trains_on_a_stream_resumes_after_it_was_cut_off(ray_cluster: None, tmp_path: Path) -> None:
    spec = job(tmp_path)
    search(spec, console=Console(file=io.StringIO()))
    store = Store(spec.output)
    trials, described = {t.trial_id: t for t in store.trials()}, store.run()
    assert described["state"] == "finished"
    assert described["data"]["train"] > 400, "what is trained on, not the sample"
    assert described["dense"]["val_accuracy"] > 0.5
    assert len(trials) == 7 and all(t.state is TrialState.COMPLETE for t in trials.values())
    shutil.rmtree(tmp_path / "run" / "report")
    for part in sorted((tmp_path / "run" / "trials").iterdir())[3:]:
        part.unlink()
    (tmp_path / "run" / "run.json").write_text(json.dumps(described | {"state": "searching"}))
    resume(spec.output, console=Console(file=io.StringIO()))
    again = {t.trial_id: t for t in Store(spec.output).trials()}
    assert {t: again[t].metrics for t in again} == {t: trials[t].metrics for t in trials}
