"""Runs are found in a folder and in its folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from raprune.errors import StoreError
from raprune.store.folder import RUN_FILE, Store
from raprune.store.run_folders import FoundRun, LostFolder, find_runs
from tests.store.s3_server import CREDENTIALS, SECRET, Bucket


def make(root: Path, *names: str) -> None:
    for name in names:
        (root / name).mkdir(parents=True)
        (root / name / RUN_FILE).write_text("{}")


def test_runs_of_a_folder_and_of_its_folders_are_found_by_name(tmp_path: Path) -> None:
    make(tmp_path, "b", "a", "project/c", "project/deep/er", ".trash/old", "b/copy")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes.txt").write_text("")
    found = find_runs(Store(tmp_path))
    assert [run.name for run in found] == ["a", "b", "project/c"]
    stores = [run.store for run in found if isinstance(run, FoundRun)]
    assert all(store.is_run() for store in stores)
    assert [store.name for store in stores] == [f"{tmp_path}/{name}" for name in ("a", "b", "project/c")]


def test_folder_of_one_run_is_that_run(tmp_path: Path) -> None:
    make(tmp_path, "only")
    (run,) = find_runs(Store(tmp_path / "only"))
    assert run.name == "only"


@pytest.mark.parametrize("folder", ["nowhere", "file.txt"])
def test_folder_that_does_not_exist_is_an_error_that_says_what_to_give(tmp_path: Path, folder: str) -> None:
    (tmp_path / "file.txt").write_text("")
    with pytest.raises(StoreError, match="no such folder") as told:
        find_runs(Store(tmp_path / folder))
    assert "--output" in told.value.hint


def test_folder_that_may_not_be_read_is_lost_and_hides_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, "a", "closed/b")
    is_run = Store.is_run

    def refused(self: Store) -> bool:
        if self.uri.endswith("closed"):
            raise StoreError(f"{self.name}: cannot read: Permission denied.", hint="")
        return is_run(self)

    monkeypatch.setattr(Store, "is_run", refused)
    run, lost = find_runs(Store(tmp_path))
    assert run.name == "a" and isinstance(lost, LostFolder) and "Permission denied" in lost.error.message


def test_runs_in_a_bucket_are_found_and_their_credentials_are_not_shown(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    for place in ("runs/a", "runs/project/b"):
        Store(bucket.uri(place)).write_json(RUN_FILE, {})
    found = find_runs(Store(bucket.uri("runs", user=f"key:{SECRET}@")))
    assert [run.name for run in found] == ["a", "project/b"]
    stores = [run.store for run in found if isinstance(run, FoundRun)]
    assert all(store.run() == {} for store in stores)
    assert [store.name for store in stores] == [f"s3://{bucket.name}/runs/{name}" for name in ("a", "project/b")]
    with pytest.raises(StoreError, match="no such folder"):
        find_runs(Store(bucket.uri("nowhere")))
