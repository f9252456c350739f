from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raprune.data import Dataset, load_data
from raprune.data.arrays import LabelArray
from raprune.data.parquet import ParquetFiles
from raprune.data.source import EncodedRows
from raprune.data.torchvision_sets import ImageFiles
from raprune.spec.job import DataSpec
from raprune.store.folder import Store
from raprune.store.scores import Statistics
from tests.streams import digits, write_images, write_parts


class Read:
    """Counter of the rows that are read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, kind: type[ImageFiles] | type[ParquetFiles]) -> None:
        self.rows = 0
        own = kind.read

        def counting(files: Any, rows: LabelArray) -> Iterator[EncodedRows]:
            self.rows += len(rows)
            yield from own(files, rows)

        monkeypatch.setattr(kind, "read", counting)


def load(kind: str, train: str, folder: Path, *, seed: int = 0, **fields: object) -> Dataset:
    spec = {"name": kind, "train": train, "stream": True, "resident_images": 100, **fields}
    return load_data(DataSpec.model_validate(spec), seed=seed, statistics=Statistics(Store(str(folder))))


@pytest.mark.parametrize("kind", ["parquet", "imagefolder"])
def test_known_division_reads_only_what_stays_in_memory_and_gives_the_same_data(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = write_parts if kind == "parquet" else write_images
    train = write(tmp_path / "train", digits())
    read = Read(monkeypatch, ParquetFiles if kind == "parquet" else ImageFiles)
    first = load(kind, train, tmp_path / "statistics")
    rows, read.rows = read.rows, 0
    again = load(kind, train, tmp_path / "statistics")
    assert rows == len(digits())
    assert read.rows == len(again.train) + len(again.validation) < rows / 2
    for one, other in ((first.train, again.train), (first.validation, again.validation)):
        assert np.array_equal(one.images, other.images) and np.array_equal(one.labels, other.labels)
    assert again.fingerprint == first.fingerprint
    assert again.num_train == first.num_train


@pytest.mark.parametrize("kind", ["parquet", "imagefolder"])
def test_division_of_changed_files_or_by_another_job_is_made_anew(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = write_parts if kind == "parquet" else write_images
    train = write(tmp_path / "train", digits())
    read = Read(monkeypatch, ParquetFiles if kind == "parquet" else ImageFiles)
    load(kind, train, tmp_path / "statistics")
    for change in ({"seed": 1}, {"max_images": 900}, {"resident_images": 50}, {"validation_fraction": 0.3}):
        read.rows = 0
        load(kind, train, tmp_path / "statistics", **change)
        assert read.rows == len(digits())
    file = next(path for path in sorted(Path(train).rglob("*")) if path.is_file())
    os.utime(file, ns=(0, 1_000_000_000))
    read.rows = 0
    load(kind, train, tmp_path / "statistics")
    assert read.rows == len(digits())


def test_damaged_division_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = write_images(tmp_path / "train", digits())
    first = load("imagefolder", train, tmp_path / "statistics")
    [file] = (tmp_path / "statistics").glob("division-*")
    file.write_bytes(b"cut off")
    assert load("imagefolder", train, tmp_path / "statistics").fingerprint == first.fingerprint


def test_data_without_test_travels_with_the_fingerprint_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    data = load_data(DataSpec(name="digits"), seed=0)
    travelled = pickle.dumps(data.without_test())
    monkeypatch.setattr("raprune.data.dataset.hashlib", None)
    lean = pickle.loads(travelled)
    assert lean.test is None
    assert lean.fingerprint == data.fingerprint
