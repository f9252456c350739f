"""What is read from a run's store for its report."""

from __future__ import annotations

from pathlib import Path

import pytest

from raprune.results.run_results import read_run_results
from raprune.store.folder import Store
from raprune.store.record import RunRecord
from tests.factories import failed_trial, make_run


def test_results_of_a_run_follow_from_its_records(tmp_path: Path) -> None:
    """Of `make_run`: trials 40 to 43 are fine-tuned, at 30, 25, 20 and 15 % of the FLOPs."""
    results = read_run_results(make_run(tmp_path))
    assert len(results.rows) == 44
    assert results.chosen is not None and results.chosen.trial_id == "finetune-00040"
    assert results.hours == pytest.approx(44 * 0.4 / 3600) and not results.on_gpus
    assert results.ended_at == pytest.approx(1_800_000_000 + 0.5 * 43 + 0.4)
    assert not results.progress.finished and results.errors == {}


def test_spread_of_a_front_is_the_chosen_one_the_smallest_and_one_between(tmp_path: Path) -> None:
    results = read_run_results(make_run(tmp_path))
    assert results.chosen is not None
    shown = [row.flops for row in results.spread]
    known = [row.flops for row in results.front]
    assert shown == sorted(shown, reverse=True) and len(shown) == 3
    assert shown[0] == results.chosen.flops and shown[2] == min(known) and min(known) < shown[1] < max(known)


def test_failed_trials_are_counted_by_their_error(tmp_path: Path) -> None:
    store = make_run(tmp_path)
    store.append([failed_trial(store, 90 + place, text) for place, text in enumerate(["a\nb", "a\nc", "d", None])])
    assert read_run_results(store).errors == {"a": 2, "d": 1, "no message": 1}


def test_results_of_a_run_that_has_just_begun_are_empty(tmp_path: Path) -> None:
    Store(tmp_path).create(RunRecord.model_validate({"state": "searching"}))
    results = read_run_results(Store(tmp_path))
    assert (results.chosen, results.spread, results.front, results.groups, results.ended_at) == (
        None,
        [],
        [],
        {},
        0.0,
    )
    assert results.error(1.0) == 0.01 and results.error(0.25) == 75


def test_error_of_a_perfect_network_is_that_of_half_an_image(tmp_path: Path) -> None:
    results = read_run_results(make_run(tmp_path))
    assert results.error(1.0) == pytest.approx(50 / 288)
