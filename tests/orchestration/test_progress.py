"""News of a run under way: told now and then, written now and then, and harmless where they fail."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from raprune.orchestration.progress import TELL_S, Teller, published, watched
from raprune.results.stages import FILE, SEARCH, Stages, Work, read_stages
from raprune.store.folder import RUN_FILE, Store
from raprune.store.record import RunRecord

WAIT_S = 30.0


class Heard:
    """A coordinator that keeps what it is told."""

    def __init__(self) -> None:
        self.works: list[tuple[str, Work]] = []
        self.tell = self

    def remote(self, key: str, work: Work) -> None:
        self.works.append((key, work))


def epochs(done: int) -> Work:
    return Work(what="", done=done, total=20, unit="epochs")


def test_a_process_tells_of_its_work_not_too_often_and_always_of_its_end() -> None:
    heard: Any = Heard()
    now = 0.0
    tell = Teller(heard, "finetune-00003", title="finetune-00003", clock=lambda: now)
    tell(epochs(1))
    tell(epochs(2))
    now = TELL_S
    tell(epochs(3))
    tell(epochs(20))
    assert [work.done for _, work in heard.works] == [1, 3, 20]
    key, first = heard.works[0]
    assert key == "finetune-00003" and str(first) == "finetune-00003: epoch 1 of 20"


def test_a_look_that_fails_is_followed_by_others() -> None:
    looks, enough = 0, threading.Event()

    def look() -> None:
        nonlocal looks
        looks += 1
        if looks == 3:
            enough.set()
        raise OSError("the coordinator comes up again")

    with watched(look, every_s=0.001):
        assert enough.wait(WAIT_S)


def test_stages_are_beside_the_run_while_it_lasts_and_gone_when_it_ended_well(tmp_path: Path) -> None:
    store, stages = Store(tmp_path / "run"), Stages()
    store.create(RunRecord.model_validate({"state": "searching"}))
    stages.begin(SEARCH, total=3, unit="trials")
    with published(stages, store):
        wait_for(store)
        found = read_stages(store, store.record())
    assert found is not None and found.current is not None and found.current.name == SEARCH
    assert not store.exists(FILE)


def test_stages_of_a_run_that_was_interrupted_stay(tmp_path: Path) -> None:
    store, stages = Store(tmp_path / "run"), Stages()
    store.create(RunRecord.model_validate({"state": "searching"}))
    try:
        with published(stages, store):
            wait_for(store)
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert store.exists(FILE)


def test_a_run_whose_folder_is_away_is_not_begun_anew_by_its_news(tmp_path: Path) -> None:
    store, stages = Store(tmp_path / "run"), Stages()
    store.create(RunRecord.model_validate({"state": "searching"}))
    with published(stages, store):
        wait_for(store)
        Path(store.uri).rename(tmp_path / "away")
    assert not Path(store.uri).exists()
    assert (tmp_path / "away" / RUN_FILE).exists()


def wait_for(store: Store) -> None:
    """Until the stages were written once."""
    pause = threading.Event()
    for _ in range(int(WAIT_S / 0.02)):
        if store.exists(FILE):
            return
        pause.wait(0.02)
    raise AssertionError("no stages were written")
