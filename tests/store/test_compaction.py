"""Compaction: every trial is read once, at any point of it, by any reader, on a disk and on S3."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from raprune.errors import StoreError
from raprune.records import Trial
from raprune.store.folder import Store
from raprune.store.new_trials import TrialReader
from raprune.store.parts import counting, parts_of
from raprune.store.record import RunRecord
from tests.factories import live_trial
from tests.store.s3_server import SECRET, Bucket

TRIALS = 9


@pytest.fixture(params=["disk", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """A run of nine parts of one trial each, whose writer this is."""
    if request.param == "disk":
        yield written(Store(tmp_path / "run"))
    else:
        bucket = Bucket()
        yield written(Store(bucket.uri("run", user=f"key:{SECRET}@")))
        bucket.stop()


def written(store: Store) -> Store:
    store.create(RunRecord())
    for number in range(TRIALS):
        store.append([live_trial(number)])
    return store


def expected(count: int = TRIALS) -> list[Trial]:
    return [live_trial(number) for number in range(count)]


def test_compacted_run_has_every_trial_once_in_its_order(store: Store) -> None:
    assert store.compact(above=TRIALS) == 0 and len(store.names("trials")) == TRIALS
    assert store.compact(above=4) == TRIALS - 1
    assert [part.numbers for part in store.parts()] == [range(8), range(8, 9)]
    assert len(store.names("trials")) == 2
    assert store.trials() == Store(store.uri).trials() == expected()
    store.append([live_trial(TRIALS)])
    assert Store(store.uri).trials() == expected(TRIALS + 1)
    with pytest.raises(StoreError, match="recorded already"):
        Store(store.uri).append([live_trial(3)])


def test_next_writer_of_a_compacted_run_continues_its_numbers(store: Store) -> None:
    store.compact(above=4)
    after = Store(store.uri)
    assert after.claim() == expected()
    after.append([live_trial(TRIALS)])
    assert [part.numbers for part in after.parts()] == [range(8), range(8, 9), range(9, 10)]


class CutOffError(Exception):
    """The end of a process, as a filesystem sees it."""


class Stopping(Store):
    """A store whose process ends before its `step`-th change of the folder of trials."""

    step = 0
    changes = 0

    def _change(self) -> None:
        if self.changes == self.step:
            raise CutOffError
        self.changes += 1

    def write_bytes(self, rel: str, content: bytes) -> None:
        if rel.startswith("trials/"):
            self._change()
        super().write_bytes(rel, content)

    def _delete(self, parts: Any) -> None:
        for part in parts:
            self._change()
            super()._delete([part])


@pytest.mark.parametrize("step", range(TRIALS))
def test_compaction_cut_off_before_any_change_leaves_every_trial_once(tmp_path: Path, step: int) -> None:
    """The steps: the compact file is written, then eight parts are removed, one after another."""
    written(Store(tmp_path / "run"))
    store = Stopping(tmp_path / "run")
    store.claim()
    store.step = step
    with pytest.raises(CutOffError):
        store.compact(above=4)
    reader = Store(store.uri)
    assert reader.trials() == expected()
    assert [row["trial_id"] for row in reader.rows(["trial_id"])] == [trial.trial_id for trial in expected()]
    after = Store(store.uri)
    assert after.claim() == expected()
    after.append([live_trial(TRIALS)])
    after.compact(above=4)
    after.compact(above=4)
    assert Store(store.uri).trials() == expected(TRIALS + 1)
    assert parts_of(after.names("trials")) == after.parts(), "nothing that does not count stays"


@pytest.mark.parametrize("call", ["write", "os.replace", "unlink-third"])
def test_compaction_killed_at_a_system_call_leaves_every_trial_once(tmp_path: Path, call: str) -> None:
    """A real process that kills itself before the file has its name, after that, and while parts are removed."""
    store = written(Store(tmp_path / "run"))
    program = f"""
import os, signal, sys
from pathlib import Path
import pyarrow.fs as pafs
from raprune.store import folder
from raprune.store.folder import Store
call = {call!r}
def kill():
    os.kill(os.getpid(), signal.SIGKILL)
store = Store({store.uri!r})
store.claim()
if call == "write":
    os.fsync = lambda fd: kill()
if call == "os.replace":
    Path.replace = lambda self, target: (os.rename(self, target), kill())
left = {{"unlink-third": 2}}.get(call)
delete = Store._delete
def delete_some(self, parts):
    if left is not None and parts:
        delete(self, parts[:left])
        kill()
    delete(self, parts)
Store._delete = delete_some
store.compact(above=4)
print("not killed")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == -9, done.stderr
    assert Store(store.uri).trials() == expected()
    after = Store(store.uri)
    assert after.claim() == expected()
    after.compact(above=4)
    assert Store(store.uri).trials() == expected() and len(after.parts()) == 2


def test_reader_in_the_middle_of_a_compaction_reads_every_trial_once(store: Store) -> None:
    """The parts are listed, then compacted and removed, then read."""

    class Overtaken(Store):
        def _read_parts(self, parts: Any, wanted: Any) -> Any:
            store.compact(above=4)
            return super()._read_parts(parts, wanted)

    assert Overtaken(store.uri).trials() == expected()


def test_listing_in_the_middle_of_a_compaction_is_taken_again(tmp_path: Path) -> None:
    """A listing in pages may have neither the compact file nor the parts that were removed since its first page."""
    store = written(Store(tmp_path / "run"))

    class Paged(Store):
        pages = 0

        def names(self, rel: str) -> list[str]:
            if rel != "trials" or self.pages:
                return super().names(rel)
            self.pages += 1
            before = super().names(rel)
            store.compact(above=4)
            return [name for name in super().names(rel) if name in before]

    assert Paged(store.uri).trials() == expected()


def test_readers_beside_a_writer_that_compacts_miss_nothing(tmp_path: Path) -> None:
    store = written(Store(tmp_path / "run"))
    seen: list[list[str]] = []
    errors: list[BaseException] = []
    done = threading.Event()

    def read(whole: bool) -> None:
        reader = Store(store.uri)
        new = TrialReader(reader)
        try:
            while not done.is_set():
                if whole:
                    seen.append([row["trial_id"] for row in reader.rows(["trial_id"])])
                else:
                    parts = reader.parts()
                    assert new.covers(parts)
                    list(new.read_new(parts))
                    seen.append([trial.trial_id for trial in new.trials])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=read, args=(whole,)) for whole in (True, False)]
    for thread in threads:
        thread.start()
    for number in range(TRIALS, 60):
        store.append([live_trial(number)])
        store.compact(above=3)
    done.set()
    for thread in threads:
        thread.join()
    assert errors == [] and len(seen) > 2
    ids = [trial.trial_id for trial in expected(60)]
    assert all(found == ids[: len(found)] and len(found) >= TRIALS for found in seen)


def test_incremental_reader_reads_a_compacted_part_no_second_time(store: Store) -> None:
    reader = TrialReader(Store(store.uri))
    list(reader.read_new(store.parts()[:3]))
    assert len(reader.trials) == 3
    store.compact(above=4)
    parts = store.parts()
    assert reader.covers(parts)
    ((new, more), *rest) = list(reader.read_new(parts))
    assert [trial.proposal.number for trial in new] == list(range(3, TRIALS)) and not more and rest == []
    first = reader.trials[0]
    assert first.candidate is not None and first.candidate.id == live_trial(0).candidate.id  # type: ignore[union-attr]


def test_incremental_reader_whose_part_was_compacted_since_its_listing_reads_it(store: Store) -> None:
    reader, parts = TrialReader(Store(store.uri)), store.parts()
    store.compact(above=4)
    list(reader.read_new(parts))
    assert [trial.trial_id for trial in reader.trials] == [trial.trial_id for trial in expected()]


def test_writer_that_was_replaced_does_not_compact(tmp_path: Path) -> None:
    store = written(Store(tmp_path / "run"))
    after = Store(store.uri)
    after.claim()
    with pytest.raises(StoreError, match="another process writes this run"):
        store.compact(above=4)
    assert len(counting(parts_of(after.names("trials")))) == 2 and after.trials() == expected()


def test_trials_of_some_ids_or_without_channels_are_read(store: Store) -> None:
    some = {"search-00007", "search-00002", "none"}
    assert store.trials(some) == [live_trial(2), live_trial(7)]
    light = Store(store.uri).trials(channels=False)
    assert [(t.trial_id, t.candidate and t.candidate.widths) for t in light] == [
        (t.trial_id, t.candidate and t.candidate.widths) for t in expected()
    ]
    assert [replace(t, candidate=None) for t in light] == [replace(t, candidate=None) for t in expected()]


def test_part_on_s3_is_one_request_and_one_look_at_the_claim() -> None:
    bucket = Bucket()
    store = Store(bucket.uri("run", user=f"key:{SECRET}@"))
    store.create(RunRecord())
    store.append([live_trial(0)])
    asked: list[tuple[str, str]] = []
    filesystem, path = store.location

    class Counted:
        type_name = "s3"

        def __getattr__(self, name: str) -> Any:
            method = getattr(filesystem, name)

            def call(*args: Any, **kwargs: Any) -> Any:
                asked.append((name, str(args[0]).rpartition("/")[0].removeprefix(path)))
                return method(*args, **kwargs)

            return call

    store.__dict__["_opened"] = (Counted(), path)
    store.append([live_trial(1)])
    assert asked == [("open_output_stream", "/trials"), ("get_file_info", "/writers")]
    bucket.stop()
