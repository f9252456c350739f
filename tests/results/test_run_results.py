"""What is read from a run's store for its report."""

from __future__ import annotations

from pathlib import Path

import pytest

from raprune.results.run_results import read_findings
from raprune.store.folder import Store
from tests.factories import failed_trial, make_run


def test_a_run_is_read_at_once(tmp_path: Path) -> None:
    """Of `make_run`: trials 40 to 43 are fine-tuned, at 30, 25, 20 and 15 % of the FLOPs."""
    findings = read_findings(make_run(tmp_path))
    assert len(findings.rows) == 44
    assert findings.chosen is not None and findings.chosen.trial_id == "finetune-00040"
    assert findings.hours == pytest.approx(44 * 0.4 / 3600) and not findings.on_gpus
    assert findings.ended_at == pytest.approx(1_800_000_000 + 0.5 * 43 + 0.4)
    assert not findings.progress.finished and findings.errors == {}


def test_the_networks_to_be_shown_are_the_chosen_one_the_smallest_and_one_between(tmp_path: Path) -> None:
    findings = read_findings(make_run(tmp_path))
    assert findings.chosen is not None
    shown = [row.flops for row in findings.spread]
    known = [row.flops for row in findings.front]
    assert shown == sorted(shown, reverse=True) and len(shown) == 3
    assert shown[0] == findings.chosen.flops and shown[2] == min(known) and min(known) < shown[1] < max(known)


def test_failed_trials_are_counted_by_what_they_say(tmp_path: Path) -> None:
    store = make_run(tmp_path)
    store.append([failed_trial(store, 90 + place, text) for place, text in enumerate(["a\nb", "a\nc", "d", None])])
    assert read_findings(store).errors == {"a": 2, "d": 1, "no message": 1}


def test_nothing_is_known_of_a_run_that_has_just_begun(tmp_path: Path) -> None:
    Store(tmp_path).create({"state": "searching"})
    findings = read_findings(Store(tmp_path))
    assert (findings.chosen, findings.spread, findings.front, findings.groups, findings.ended_at) == (
        None,
        [],
        [],
        {},
        0.0,
    )
    assert findings.error(1.0) == 0.01 and findings.error(0.25) == 75


def test_an_error_is_at_least_that_of_half_an_image(tmp_path: Path) -> None:
    findings = read_findings(make_run(tmp_path))
    assert findings.error(1.0) == pytest.approx(50 / 288)
