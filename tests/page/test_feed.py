"""The known state of a run on its page while the run grows, is unreachable, or is replaced."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from raprune.page.feed import Feed, KnownRun
from raprune.records import CandidateOutline
from raprune.results.front import budget_of
from raprune.results.progress import progress, spent
from raprune.results.rows import candidates
from raprune.results.stages import FILE, SCORES, Stages
from raprune.store.folder import RUN_FILE, Store
from raprune.store.networks import NAMES
from raprune.store.record import RunRecord
from tests.factories import LIVE_RUN as RUN
from tests.factories import live_trial as trial
from tests.factories import make_live_run as make_run


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return make_run(tmp_path / "run")


def looked(feed: Feed) -> KnownRun:
    feed.look()
    assert feed.known is not None, feed.away
    return feed.known


def test_rows_without_channels_are_those_of_the_whole_trials(store: Store) -> None:
    known = looked(Feed(store, every_s=0.0))
    assert candidates(known.trials) == candidates(store.trials())
    assert [t.trial_id for t in known.trials] == [t.trial_id for t in store.trials()]
    first = known.trials[0].candidate
    assert isinstance(first, CandidateOutline) and first.widths == {"conv1": 1, "conv2": 1, "conv<b>3": 1}


def test_part_of_the_store_is_read_once(store: Store) -> None:
    feed = Feed(store, every_s=0.0)
    before = looked(feed)
    Path(store.uri, "trials", store.parts()[0].name).write_bytes(b"no longer Parquet")
    store.append([trial(77, accuracy=0.5)])
    after = looked(feed)
    assert feed.away is None
    assert [t.trial_id for t in after.trials] == [*(t.trial_id for t in before.trials), "search-00077"]
    assert after.trials[0] is before.trials[0]


def test_look_without_news_keeps_the_version(store: Store) -> None:
    feed = Feed(store, every_s=0.0)
    before = looked(feed)
    assert looked(feed) is before
    store.append([trial(77)])
    assert looked(feed).version > before.version


def test_look_before_it_is_due_reads_nothing(store: Store) -> None:
    feed = Feed(store, every_s=60.0)
    before = looked(feed)
    store.append([trial(77)])
    assert not feed.is_due and looked(feed) is before


def test_last_point_of_the_history_is_the_progress_of_the_run(store: Store) -> None:
    known = looked(Feed(store, every_s=0.0))
    run, trials, last = store.record(), store.trials(), known.history[-1]
    now = progress(run, trials)
    bought = spent(trials, budget_of(run))[-1].hypervolume
    assert last.hypervolume == pytest.approx(bought) and now.hypervolume == pytest.approx(bought)
    assert last.gpu_hours == pytest.approx(now.gpu_hours) and now.best is not None
    assert len(known.history) == len(trials)
    assert last.best == now.best.val_accuracy
    volumes = [point.hypervolume for point in known.history]
    assert volumes == sorted(volumes) and volumes[0] < volumes[-1]


def test_trial_over_the_budget_or_without_an_accuracy_enlarges_no_front(tmp_path: Path) -> None:
    store = Store(tmp_path / "run")
    store.create(RunRecord.model_validate(RUN))
    store.append([trial(0, fraction=0.2, accuracy=0.5), trial(1, fraction=0.4, accuracy=0.99)])
    store.append([trial(2, fraction=0.1, accuracy=float("nan"))])
    known = looked(Feed(store, every_s=0.0))
    assert len({(point.hypervolume, point.best) for point in known.history}) == 1
    assert known.history[-1].best == 0.5


def test_unreachable_store_is_noted_until_it_is_back(store: Store, tmp_path: Path) -> None:
    feed = Feed(store, every_s=0.0)
    before = looked(feed)
    Path(store.uri).rename(tmp_path / "elsewhere")
    assert looked(feed) is before
    assert feed.away is not None and "run.json" in feed.away.error and feed.away.hint
    since = feed.away.since
    feed.look()
    assert feed.away is not None and feed.away.since == since
    (tmp_path / "elsewhere").rename(store.uri)
    Store(store.uri).append([trial(78)])
    assert len(looked(feed).trials) == len(before.trials) + 1
    assert feed.away is None


def test_damaged_part_is_named_until_it_is_repaired(store: Store) -> None:
    part = Path(store.uri, "trials", "part-000099.parquet")
    part.write_bytes(b"half of it")
    feed = Feed(store, every_s=0.0)
    feed.look()
    assert feed.known is None
    assert feed.away is not None and "trials" in feed.away.error
    part.unlink()
    assert len(looked(feed).trials) == 8
    assert feed.away is None


def test_run_of_an_unknown_version_is_reported(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    feed = Feed(store, every_s=0.0)
    before = looked(feed)
    run = Path(store.uri, RUN_FILE)
    run.write_text(json.dumps(RUN | {"spec": "not a table"}))
    assert looked(feed) is before
    assert feed.away is not None and "is not understood" in feed.away.error
    capsys.readouterr()


def test_other_run_in_the_folder_has_another_generation(store: Store) -> None:
    feed = Feed(store, every_s=0.0)
    before = looked(feed)
    for part in store.parts():
        Path(store.uri, "trials", part.name).unlink()
    Path(store.uri, RUN_FILE).write_text(json.dumps(RUN | {"created_at": 1.9e9}))
    Store(store.uri).append([trial(3)])
    after = looked(feed)
    assert after.generation != before.generation
    assert [t.trial_id for t in after.trials] == ["search-00003"] and len(after.history) == 1


def test_removed_part_makes_the_feed_read_everything_again(store: Store) -> None:
    feed = Feed(store, every_s=0.0)
    before = looked(feed)
    Path(store.uri, "trials", store.parts()[-1].name).unlink()
    after = looked(feed)
    assert after.generation != before.generation
    assert len(after.trials) == len(after.history) == len(before.trials) - 1


def test_test_accuracies_are_read_when_the_run_ends(store: Store) -> None:
    feed = Feed(store, every_s=0.0)
    assert not looked(feed).test
    best = looked(feed).front[-1].candidate
    tested = {"dense": 0.97, "candidates": {best: 0.94, f"{best}-s1": 0.96}, "images": 100}
    store.write_json("report/test.json", NAMES | tested)
    store.write_json(RUN_FILE, store.run() | {"state": "finished", "finished_at": 1.8e9 + 100})
    after = looked(feed)
    assert after.test.dense == 0.97 and after.front[-1].test_accuracy == pytest.approx(0.95)
    assert not after.pulse.live and after.progress.finished


def test_run_without_new_trials_for_long_is_not_live(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    last = max(t.started_at + t.seconds for t in store.trials())
    monkeypatch.setattr("time.time", lambda: last + 60)
    assert looked(Feed(store, every_s=0.0)).pulse.live
    monkeypatch.setattr("time.time", lambda: last + 3600)
    assert not looked(Feed(store, every_s=0.0)).pulse.live


def test_run_with_fresh_stages_is_live(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores of a large network take longer than the silence after which a run is at rest."""
    last = max(t.started_at + t.seconds for t in store.trials())
    stages = Stages(wall_clock=lambda: last + 3590)
    stages.begin(SCORES, total=55, unit="groups")
    store.write_json(FILE, stages.now().to_json())
    monkeypatch.setattr("time.time", lambda: last + 3600)
    feed = Feed(store, every_s=0.0)
    assert looked(feed).pulse.live and feed.stages is not None and feed.stages.current is not None
    monkeypatch.setattr("time.time", lambda: last + 3700)
    assert not looked(Feed(store, every_s=0.0)).pulse.live


def test_change_of_stages_keeps_the_version(store: Store) -> None:
    """All answers would be made again every second."""
    feed, stages = Feed(store, every_s=0.0), Stages()
    before = looked(feed)
    stages.begin(SCORES)
    store.write_json(FILE, stages.now().to_json())
    assert looked(feed) is before and feed.stages is not None


def test_many_parts_are_published_while_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raprune.store.new_trials.BATCH", 2)
    store = make_run(tmp_path / "run")
    seen: list[tuple[int, bool]] = []

    class Watched(Feed):
        def _publish(self, *, complete: bool) -> None:
            super()._publish(complete=complete)
            assert self.known is not None
            seen.append((len(self.known.trials), self.known.complete))

    looked(Watched(store, every_s=0.0))
    assert seen == [(2, False), (4, False), (6, False), (8, True)]


def test_figures_of_an_older_run_are_those_of_its_fine_tuned_networks(store: Store) -> None:
    tuned = looked(Feed(store, every_s=0.0)).front[-1]
    assert tuned.candidate == f"{tuned.parent}-ft"
    assert tuned.parent is not None
    before = {tuned.parent: 0.94, f"{tuned.parent}-s1": 0.96}
    store.write_json("report/test.json", {"dense": 0.97, "candidates": before, "images": 100})
    known = looked(Feed(store, every_s=0.0))
    accuracies = {row.candidate: row.test_accuracy for row in known.rows}
    assert accuracies[tuned.candidate] == pytest.approx(0.95) and accuracies[tuned.parent] is None
