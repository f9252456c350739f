"""Smaller dense networks beside a front."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from raprune.report.summary import compared
from raprune.results.run_results import read_run_results
from raprune.results.siblings import Sibling, compare_siblings, keep_siblings, read_siblings, with_siblings
from raprune.store.folder import Store
from tests.factories import make_run

SMALL = Sibling(
    name="cifar-resnet20",
    weights="resnet20.safetensors",
    weights_hash="0123",
    flops=0,
    params=270_000,
    val_accuracy=0.9,
    test_accuracy=0.89,
)


def test_sibling_is_compared_with_the_most_accurate_network_that_costs_no_more(tmp_path: Path) -> None:
    results = read_run_results(make_run(tmp_path))
    for wanted in results.front:
        sibling = replace(SMALL, flops=wanted.flops)
        [comparison] = compare_siblings([sibling], results.front)
        within = [row for row in results.front if row.flops <= wanted.flops]
        assert comparison.rival is not None
        assert comparison.rival.val_accuracy == max(row.val_accuracy for row in within)


def test_sibling_smaller_than_the_whole_front_has_no_rival(tmp_path: Path) -> None:
    results = read_run_results(make_run(tmp_path))
    [comparison] = compare_siblings([replace(SMALL, flops=1)], results.front)
    assert comparison.rival is None and comparison.lead is None and not comparison.is_beaten
    assert compared(comparison, results.run).endswith("; the front has no network with so few.")


@pytest.mark.parametrize("accuracy", [0.5, 0.9999])
def test_front_that_a_sibling_beats_says_so(accuracy: float, tmp_path: Path) -> None:
    results = read_run_results(make_run(tmp_path))
    largest = max(row.flops for row in results.front)
    sibling = replace(SMALL, flops=largest, val_accuracy=accuracy, test_accuracy=accuracy)
    [comparison] = compare_siblings([sibling], results.front)
    assert comparison.split == "test", "both were evaluated on it"
    assert comparison.is_beaten == (accuracy > 0.99)
    assert ("the better choice" in compared(comparison, results.run)) == (accuracy > 0.99)


def test_sibling_that_was_not_tested_is_compared_on_the_validation_split(tmp_path: Path) -> None:
    results = read_run_results(make_run(tmp_path))
    row = results.front[-1]
    sibling = replace(SMALL, flops=row.flops, val_accuracy=row.val_accuracy - 0.01, test_accuracy=None)
    [comparison] = compare_siblings([sibling], [row])
    assert comparison.split == "validation"
    assert comparison.lead == pytest.approx(0.01)


def test_run_keeps_its_siblings_by_cost_and_a_new_measurement_replaces_the_old_one(tmp_path: Path) -> None:
    store = Store(tmp_path / "run")
    assert read_siblings(store) == ()
    larger = replace(SMALL, weights_hash="4567", flops=10)
    keep_siblings(store, with_siblings((), [larger, SMALL]))
    assert read_siblings(store) == (SMALL, larger)
    again = replace(larger, test_accuracy=0.5)
    assert with_siblings(read_siblings(store), [again]) == (SMALL, again)
