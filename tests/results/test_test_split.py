"""Accuracies on the test split: stored and read the same, and put together from several workers."""

from __future__ import annotations

from pathlib import Path

import pytest

from raprune.results.test_split import TEST_FILE, UNTESTED, SplitAccuracies, read_test
from raprune.store.folder import Store

MEASURED = SplitAccuracies(dense=0.97, candidates={"a-ft": 0.95}, images=100)


def test_accuracies_stored_and_read_are_the_same(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert read_test(store, ()) == UNTESTED
    store.write_json(TEST_FILE, MEASURED.to_json())
    assert read_test(store, ()) == MEASURED


def test_accuracies_in_json_have_the_keys_of_earlier_versions_in_their_order() -> None:
    assert list(MEASURED.to_json().items()) == [
        ("names", 2),
        ("dense", 0.97),
        ("candidates", {"a-ft": 0.95}),
        ("images", 100),
    ]
    assert UNTESTED.to_json() == {}


def test_further_figures_are_stored_and_read_the_same_and_shown_in_the_rows(tmp_path: Path) -> None:
    dense = SplitAccuracies(dense=0.97, dense_further={"top-5 accuracy": 0.99})
    pruned = SplitAccuracies(candidates={"a": 0.9}, further={"a": {"top-5 accuracy": 0.98}})
    store = Store(tmp_path)
    store.write_json(TEST_FILE, (dense | pruned).to_json())
    read = read_test(store, ())
    assert read == dense | pruned == pruned | dense
    assert read.further["a"]["top-5 accuracy"] == 0.98 and read.dense_further["top-5 accuracy"] == 0.99


@pytest.mark.parametrize("measured", [SplitAccuracies(dense=0.97), SplitAccuracies(candidates={"a": 0.9})])
def test_accuracies_without_any_measurement_are_false(measured: SplitAccuracies) -> None:
    assert measured and not UNTESTED


def test_accuracies_of_two_workers_add_up() -> None:
    dense, pruned = SplitAccuracies(dense=0.97, candidates={"a": 0.9}), SplitAccuracies(candidates={"b": 0.8})
    assert dense | pruned == pruned | dense == SplitAccuracies(dense=0.97, candidates={"a": 0.9, "b": 0.8})
