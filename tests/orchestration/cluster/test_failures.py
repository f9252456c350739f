from __future__ import annotations

import pytest

from raprune.orchestration.cluster.failures import MOST_ATTEMPTS, Action, Failure, decide, error_text, hopeless
from raprune.records import TrialState


@pytest.mark.parametrize(
    ("failure", "attempts", "action"),
    [
        (Failure.CANDIDATE, 1, Action.RECORD),
        (Failure.SETUP, 1, Action.ABORT),
        (Failure.LOST, 1, Action.RETRY),
        (Failure.LOST, 2, Action.RETRY),
        (Failure.LOST, 3, Action.RECORD),
    ],
)
def test_what_is_done(failure: Failure, attempts: int, action: Action) -> None:
    decision = decide(failure, attempts=attempts)
    assert decision.action is action and decision.reason


def test_losses_all_over_the_cluster_are_not_laid_to_one_candidate() -> None:
    assert decide(Failure.LOST, attempts=3, elsewhere=1).action is Action.RETRY
    assert decide(Failure.LOST, attempts=4, elsewhere=1).action is Action.RECORD
    assert decide(Failure.LOST, attempts=MOST_ATTEMPTS, elsewhere=99).action is Action.RECORD


def test_a_search_of_failures_alone_is_hopeless() -> None:
    assert hopeless([TrialState.FAILED] * 8)
    assert not hopeless([TrialState.FAILED] * 7)
    assert not hopeless([TrialState.FAILED] * 20 + [TrialState.COMPLETE])


def test_an_error_is_told_by_its_first_and_last_line() -> None:
    assert error_text(ValueError("first\n\nmiddle\nlast\n")) == "ValueError: first ... last"
    assert error_text(ValueError("only")) == "ValueError: only"
    assert error_text(MemoryError()) == "MemoryError"
    assert len(error_text(ValueError("x" * 5000))) < 700
