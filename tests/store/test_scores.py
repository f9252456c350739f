from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from raprune.store.folder import Store
from raprune.store.scores import Arrays, Statistics, key_of


class Work:
    """Something to compute, and how often it was."""

    def __init__(self) -> None:
        self.runs = 0

    def __call__(self) -> Arrays:
        self.runs += 1
        return {"conv1": np.array([1.5, -2.0, 1 / 3])}


def test_statistic_that_was_computed_is_read_by_all_who_open_the_folder(tmp_path: Path) -> None:
    work = Work()
    first = Statistics(Store(tmp_path / "statistics"))
    made = first.once("scores-a", work)
    again = first.once("scores-a", work)
    other = Statistics(Store(tmp_path / "statistics"))
    read = other.once("scores-a", work)
    assert work.runs == 1
    assert np.array_equal(made["conv1"], again["conv1"]) and np.array_equal(made["conv1"], read["conv1"])
    assert (first.computed, other.computed) == (["scores-a"], [])


def test_statistics_without_a_folder_stay_in_memory(tmp_path: Path) -> None:
    work, statistics = Work(), Statistics()
    statistics.once("a", work)
    statistics.once("a", work)
    assert work.runs == 1
    assert list(tmp_path.iterdir()) == []


def test_statistic_that_was_handed_over_is_not_read_from_the_folder(tmp_path: Path) -> None:
    known = {"a": {"x": np.zeros(1)}}
    assert Statistics(Store(tmp_path / "missing"), known).get("a") == known["a"]


def test_statistics_that_do_not_write_leave_the_folder_unchanged(tmp_path: Path) -> None:
    work = Work()
    Statistics(Store(tmp_path)).once("a", work)
    reader = Statistics(Store(tmp_path), writes=False)
    reader.once("a", work)
    reader.once("b", work)
    assert work.runs == 2
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_damaged_statistic_is_computed_again(tmp_path: Path) -> None:
    work = Work()
    Statistics(Store(tmp_path)).once("a", work)
    (tmp_path / "a.safetensors").write_bytes(b"\x08\x00\x00\x00")
    Statistics(Store(tmp_path)).once("a", work)
    Statistics(Store(tmp_path)).once("a", work)
    assert work.runs == 2


@pytest.mark.parametrize("change", [{"weights": "x"}, {"settings": {"ridge": 2.0}}, {"calibration": [3, 4]}])
def test_key_of_other_content_is_another_key(change: dict[str, object]) -> None:
    content: dict[str, object] = {"weights": "w", "settings": {"ridge": 1.0}, "calibration": [1, 2]}
    assert key_of("scores", content) == key_of("scores", dict(reversed(content.items())))
    assert key_of("scores", content) != key_of("scores", content | change)
    assert key_of("scores", content) != key_of("network", content)
