"""The single writer: trials that wait together become one part, and each is durable when its record returns."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from raprune.errors import RapruneError, StoreError
from raprune.orchestration import recorder
from raprune.orchestration.recorder import Recorder
from raprune.records import Trial
from raprune.store.folder import Store
from raprune.store.record import RunRecord
from tests.factories import live_trial


class Gated(Store):
    """A store whose appends wait for `gate`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.gate = threading.Event()
        self.began = threading.Event()

    def append(self, trials: Any) -> None:
        self.began.set()
        assert self.gate.wait(30)
        super().append(trials)


@pytest.fixture
def store(tmp_path: Path) -> Gated:
    store = Gated(tmp_path / "run")
    store.create(RunRecord())
    return store


def in_threads(acts: list[Callable[[], None]], begin: Callable[[], None]) -> list[BaseException | None]:
    """The errors of the acts, each in a thread; `begin` is called once all have started."""
    with ThreadPoolExecutor(len(acts)) as threads:
        futures = [threads.submit(act) for act in acts]
        begin()
        return [future.exception() for future in futures]


def all_waiting(recorder: Recorder, trials: list[Trial]) -> Callable[[], None]:
    def wait() -> None:
        while recorder.missing([trial.trial_id for trial in trials]):
            time.sleep(0.001)

    return wait


def test_records_that_wait_together_become_one_part(store: Gated) -> None:
    writer = Recorder(store)
    first, *others = [live_trial(number) for number in range(12)]
    waiting = all_waiting(writer, others)

    def begin() -> None:
        waiting()
        assert not writer.is_recorded(others[0].trial_id) and writer.find(others[0].trial_id) == others[0]
        store.gate.set()

    with ThreadPoolExecutor(1) as thread:
        ahead = thread.submit(writer.record, [first])
        assert store.began.wait(30)
        errors = in_threads([lambda trial=trial: writer.record([trial]) for trial in others], begin)  # type: ignore[misc]
        ahead.result()
    assert errors == [None] * 11
    assert len(store.parts()) == 2, "the first alone, then all that waited meanwhile"
    assert {trial.trial_id for trial in Store(store.uri).trials()} == {trial.trial_id for trial in writer.trials}
    assert len(writer.trials) == 12 and writer.trials is writer.trials


def test_record_that_returned_is_read_by_another_process(store: Gated) -> None:
    store.gate.set()
    writer = Recorder(store)
    for number in range(3):
        writer.record([live_trial(number)])
        assert len(Store(store.uri).trials()) == number + 1
    again = Recorder(Store(store.uri))
    assert list(again.trials) == [live_trial(number) for number in range(3)]


def test_trial_that_is_sent_twice_is_recorded_once(store: Gated) -> None:
    store.gate.set()
    writer = Recorder(store)
    trial = live_trial(0)
    other = replace(trial, worker="another")
    writer.record([trial])
    writer.record([other])
    errors = in_threads([lambda: writer.record([live_trial(1)])] * 8, lambda: None)
    assert errors == [None] * 8
    assert Store(store.uri).trials() == [trial, live_trial(1)]


def test_session_that_is_refused_takes_no_other_record_with_it(store: Gated) -> None:
    def check(session: str | None) -> None:
        if session == "old":
            # Not before all wait: a refused record waits no longer.
            assert store.gate.wait(30)
            raise RapruneError("another driver took this run over")

    writer = Recorder(store, check=check)
    trials = [live_trial(number) for number in range(3)]

    def begin() -> None:
        all_waiting(writer, trials)()
        store.gate.set()

    sessions = ["new", "old", "new"]
    errors = in_threads(
        [lambda t=t, s=s: writer.record([t], s) for t, s in zip(trials, sessions, strict=True)],  # type: ignore[misc]
        begin,
    )
    assert [error is None for error in errors] == [True, False, True]
    assert writer.missing([trial.trial_id for trial in trials]) == [trials[1].trial_id]


def test_trial_that_cannot_be_written_takes_no_other_with_it(store: Gated) -> None:
    writer = Recorder(store)
    broken = replace(live_trial(1), error="\ud800")
    trials = [live_trial(0), broken, live_trial(2)]

    def begin() -> None:
        all_waiting(writer, trials)()
        store.gate.set()

    errors = in_threads([lambda t=t: writer.record([t]) for t in trials], begin)  # type: ignore[misc]
    assert [error is None for error in errors] == [True, False, True]
    assert {trial.proposal.number for trial in Store(store.uri).trials()} == {0, 2}


def test_store_that_cannot_be_written_is_told_to_every_sender(store: Gated) -> None:
    store.gate.set()
    writer = Recorder(store)
    writer.record([live_trial(0)])
    Store(store.uri).claim()
    for number in (1, 2):
        with pytest.raises(StoreError, match="another process writes this run"):
            writer.record([live_trial(number)])
    assert [trial.proposal.number for trial in writer.trials] == [0]


def test_many_parts_are_compacted_while_records_come(store: Gated, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "SMALL_PARTS", 8)
    compacted = threading.Event()
    compact = store.compact

    def watched() -> int:
        made = compact(above=8)
        compacted.set()
        return made

    monkeypatch.setattr(store, "compact", watched)
    store.gate.set()
    writer = Recorder(store)
    for number in range(20):
        writer.record([live_trial(number)])
    assert compacted.wait(30)
    assert Store(store.uri).trials() == [live_trial(number) for number in range(20)] == list(writer.trials)
    assert any(part.is_compact for part in store.parts())
