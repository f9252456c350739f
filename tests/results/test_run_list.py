"""The runs of a folder side by side: what they hold, and that no look reads more than has changed."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from raprune.errors import StoreError
from raprune.results.front import budget_of, front_of
from raprune.results.progress import progress
from raprune.results.rows import candidates
from raprune.results.run_list import ListedRun, RunList, list_runs, summarize
from raprune.results.stages import FILE, SEARCH, Stages
from raprune.store.folder import RUN_FILE, Store
from raprune.store.parts import TrialFile
from raprune.store.record import RunRecord
from raprune.store.rows import Row
from tests.factories import LIVE_RUN, live_trial, make_short_run


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "raprune" / "runs"


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The parts of trials that were read without their channels, one after another."""
    found: list[str] = []
    rows = Store.rows

    def noted(self: Store, columns: Sequence[str] | None = None, parts: Sequence[TrialFile] | None = None) -> list[Row]:
        if columns is not None and "kept" not in columns:
            found.extend(part.name for part in (self.parts() if parts is None else parts))
        return rows(self, columns, parts)

    monkeypatch.setattr(Store, "rows", noted)
    return found


def named(runs: list[ListedRun], name: str) -> ListedRun:
    return next(run for run in runs if run.name == name)


def began(folder: Path, at: float, **fields: object) -> Store:
    return make_short_run(folder, started_at=at, **fields)


def test_summary_of_a_run_is_that_of_its_own_commands(tmp_path: Path) -> None:
    store = make_short_run(tmp_path / "run")
    run, trials = store.record(), store.trials()
    (listed,) = list_runs(str(tmp_path))
    summary, now = listed.summary, progress(run, trials)
    assert summary is not None and now.best is not None and summary.best is not None
    assert (summary.searched, summary.trials, summary.finetuned) == (now.searched, now.trials, now.finetuned)
    assert summary.best.candidate == now.best.candidate and summary.best.val_accuracy == now.best.val_accuracy
    for cost in ("flops", "params"):
        wanted = front_of(candidates(trials), budget_of(run), cost=cost)
        assert [network.trial_id for network in summary.fronts[cost]] == [row.trial_id for row in wanted]
    assert "latency" not in summary.fronts


def test_list_is_newest_first_and_a_broken_run_is_last_with_its_reason(tmp_path: Path) -> None:
    began(tmp_path / "old", 1000.0)
    began(tmp_path / "new", 2000.0)
    for name, content in (("damaged", '{"spec": '), ("foreign", '{"spec": {"model": 3}}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / RUN_FILE).write_text(content)
    torn = began(tmp_path / "torn", 3000.0)
    (Path(torn.uri) / "trials/part-000000.parquet").write_bytes(b"torn")
    runs = list_runs(str(tmp_path))
    assert [run.name for run in runs] == ["new", "old", "damaged", "foreign", "torn"]
    assert [run.state for run in runs[2:]] == ["unreadable"] * 3
    assert "damaged" in (runs[2].error or "") and "not understood" in (runs[3].error or "")
    assert "part-000000" in (runs[4].error or "")


@pytest.mark.parametrize(
    ("fields", "wrote", "state"),
    [
        ({"state": "finished"}, True, "finished"),
        ({}, True, "searching"),
        ({"started_at": 1000.0}, False, "idle"),
    ],
)
def test_state_of_a_run_tells_if_something_works_on_it(
    tmp_path: Path, fields: dict[str, object], wrote: bool, state: str
) -> None:
    store = Store(tmp_path / "run")
    store.create(RunRecord.model_validate(LIVE_RUN | {"started_at": 1000.0} | fields))
    if wrote:
        stages = Stages()
        stages.begin(SEARCH)
        store.write_json(FILE, stages.now().to_json())
    (run,) = list_runs(str(tmp_path))
    assert run.state == state and run.live == (state == "searching")


def test_run_without_a_trial_has_no_best_and_no_front(tmp_path: Path) -> None:
    Store(tmp_path / "run").create(RunRecord.model_validate(LIVE_RUN))
    (run,) = list_runs(str(tmp_path))
    assert run.summary is not None and run.summary.best is None and run.summary.fronts == {}
    assert run.summary.searched == 0 and run.summary.trials == 10


def test_look_at_unchanged_runs_reads_no_trials(tmp_path: Path, read: list[str]) -> None:
    for name in ("a", "b"):
        make_short_run(tmp_path / "runs" / name)
    first = list_runs(str(tmp_path / "runs"))
    assert len(read) == 2
    again = RunList(Store(tmp_path / "runs"))
    read.clear()
    assert list_runs(str(tmp_path / "runs")) == first
    # Without a cache it is read once more, by this list; then no more.
    assert read == []
    assert again.look() == first
    read.clear()
    assert again.look() == first and read == []


def test_look_at_a_run_that_grows_reads_only_what_is_new(tmp_path: Path, read: list[str], cache: Path) -> None:
    make_short_run(tmp_path / "runs" / "still")
    store = make_short_run(tmp_path / "runs" / "grows")
    runs = RunList(Store(tmp_path / "runs"), cache=cache)
    before = named(runs.look(), "grows").summary
    store.append([live_trial(50, fraction=0.29, accuracy=0.999)])
    read.clear()
    after = named(runs.look(), "grows").summary
    assert read == [store.parts()[-1].name]
    assert before is not None and after is not None and after == summarize(store.record(), store.trials())
    assert after.best is not None and after.best.trial_id == "search-00050" and after.searched == before.searched + 1
    # Another process, which knows the run as it was when it was last kept.
    assert list_runs(str(tmp_path / "runs")) == runs.look()


def test_change_of_the_run_itself_is_seen(tmp_path: Path, cache: Path) -> None:
    store = make_short_run(tmp_path / "runs" / "run")
    runs = RunList(Store(tmp_path / "runs"), cache=cache)
    runs.look()
    store.note({"state": "finished", "finished_at": 1_800_000_500.0})
    for listed in (runs.look(), list_runs(str(tmp_path / "runs"))):
        assert [(run.state, run.summary and run.summary.finished_at) for run in listed] == [
            ("finished", 1_800_000_500.0)
        ]


def test_run_that_is_compacted_gives_the_same_summary(tmp_path: Path) -> None:
    store = make_short_run(tmp_path / "runs" / "run")
    runs = RunList(Store(tmp_path / "runs"))
    for number in (50, 51):
        store.append([live_trial(number)])
    before = runs.look()
    assert store.compact(above=1) == 2
    assert [run.summary for run in runs.look()] == [run.summary for run in before]


def test_other_run_in_the_same_folder_is_read_from_its_beginning(tmp_path: Path) -> None:
    store = make_short_run(tmp_path / "runs" / "run")
    runs = RunList(Store(tmp_path / "runs"))
    runs.look()
    shutil.rmtree(store.uri)
    store = Store(store.uri)
    store.create(RunRecord.model_validate(LIVE_RUN | {"created_at": 1_800_001_000.0}))
    store.append([live_trial(3, fraction=0.1, accuracy=0.7)])
    (run,) = runs.look()
    assert run.summary is not None and run.summary.searched == 1
    assert run.summary.best is not None and run.summary.best.val_accuracy == 0.7


def test_run_that_comes_and_a_run_that_goes_are_seen(tmp_path: Path) -> None:
    make_short_run(tmp_path / "runs" / "first")
    runs = RunList(Store(tmp_path / "runs"))
    assert [run.name for run in runs.look()] == ["first"]
    make_short_run(tmp_path / "runs" / "second")
    Path(tmp_path / "runs" / "first").rename(tmp_path / "gone")
    assert [run.name for run in runs.look()] == ["second"]


@pytest.mark.parametrize("content", ["", "{}", '{"digest": 1}', "\x00"])
def test_cache_that_is_damaged_is_written_anew(tmp_path: Path, cache: Path, content: str) -> None:
    make_short_run(tmp_path / "runs" / "run")
    first = list_runs(str(tmp_path / "runs"))
    (kept,) = cache.iterdir()
    kept.write_text(content)
    assert list_runs(str(tmp_path / "runs")) == first
    assert len(kept.read_bytes()) > 100


def test_cache_that_cannot_be_written_hides_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_short_run(tmp_path / "runs" / "run")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert [run.state != "unreadable" for run in list_runs(str(tmp_path / "runs"))] == [True]


def test_accuracy_that_is_none_is_kept(tmp_path: Path) -> None:
    store = Store(tmp_path / "runs" / "run")
    store.create(RunRecord.model_validate(LIVE_RUN))
    store.append([live_trial(0, accuracy=math.nan)])
    assert repr(list_runs(str(tmp_path / "runs"))) == repr(list_runs(str(tmp_path / "runs")))


def test_folder_without_a_run_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="holds no run") as told:
        list_runs(str(tmp_path))
    assert "raprune search" in told.value.hint
