"""Finalists that were made in several ways."""

from __future__ import annotations

from raprune.records import Stage
from raprune.report.summary import ways_told
from raprune.results.cuts import best_by_cuts
from raprune.results.rows import CandidateRow
from tests.factories import candidate_row


def tuned(parent: str, cuts: int, accuracy: float) -> CandidateRow:
    return candidate_row(
        candidate=f"{parent}-ft-c{cuts}", parent=parent, stage=Stage.FINETUNE, cuts=cuts, val_accuracy=accuracy
    )


ROWS = [
    candidate_row(candidate="a", val_accuracy=0.99),
    *(tuned("a", 1, 0.9), tuned("a", 3, 0.8), tuned("a", 5, 0.85)),
    *(tuned("b", 3, 0.7), tuned("b", 1, 0.6), tuned("b", 5, 0.65)),
    *(tuned("c", 3, 0.7), tuned("c", 1, 0.7), tuned("c", 5, 0.6)),
    tuned("trained before", 1, 0.95),
]


def test_each_finalist_counts_for_its_best_number_of_cuts_and_for_the_fewest_at_a_tie() -> None:
    assert best_by_cuts(ROWS) == {1: 2, 3: 1, 5: 0}
    assert list(best_by_cuts(ROWS)) == [1, 3, 5]
    assert ways_told(best_by_cuts(ROWS)) == (
        "Best on the validation split, of 3 finalists: 2 in 1 cut, 1 in 3 cuts and 0 in 5 cuts."
    )


def test_finalists_that_were_made_in_one_way_are_told_nothing_of() -> None:
    assert best_by_cuts(ROWS[-1:]) == {} and ways_told({}) == ""
