"""A candidate is its content: frozen, comparable, with one id on every machine."""

from __future__ import annotations

import pickle
from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from raprune.records import Candidate

CANDIDATE = Candidate("l2", {"conv1": (0, 2, 5), "conv2": (1,)}, {"power": 2})


def test_the_id_depends_on_the_content_alone() -> None:
    same = Candidate("l2", {"conv2": [1], "conv1": [0, 2, 5]}, {"power": 2})  # type: ignore[dict-item]  # lists are taken
    assert same == CANDIDATE and hash(CANDIDATE) == hash(same)
    assert CANDIDATE.id == same.id == "c66ff0c8c045"


@pytest.mark.parametrize(
    "other",
    [
        Candidate("l1", {"conv1": (0, 2, 5), "conv2": (1,)}, {"power": 2}),
        Candidate("l2", {"conv1": (0, 2, 6), "conv2": (1,)}, {"power": 2}),
        Candidate("l2", {"conv1": (0, 2, 5), "conv2": (1,)}, {"power": 3}),
        Candidate("l2", {"conv1": (0, 2, 5)}, {"power": 2}),
    ],
)
def test_another_content_has_another_id(other: Candidate) -> None:
    assert other != CANDIDATE and other.id != CANDIDATE.id


def test_it_pickles_and_keeps_its_id() -> None:
    again = pickle.loads(pickle.dumps(CANDIDATE))
    assert again == CANDIDATE and again.id == CANDIDATE.id


def test_it_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        CANDIDATE.method = "l1"  # type: ignore[misc]  # the point of the test
    kept: Any = CANDIDATE.kept
    with pytest.raises(TypeError):
        kept["conv1"] = (0,)
    given: dict[str, tuple[int, ...]] = {"conv1": (0, 1)}
    candidate = Candidate("l2", given)
    given["conv1"] = (0,)
    assert candidate.widths == {"conv1": 2}


def test_widths_count_what_stays() -> None:
    assert CANDIDATE.widths == {"conv1": 3, "conv2": 1}
