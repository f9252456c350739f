"""Errors carry a hint and a code, and cross process borders."""

from __future__ import annotations

import pickle

import pytest

from raprune import errors
from raprune.errors import BudgetError, RapruneError, StoreError, UsageError

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, RapruneError)]


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_pickles_with_its_hint(kind: type[RapruneError]) -> None:
    error = pickle.loads(pickle.dumps(kind("what", hint="do")))
    assert type(error) is kind
    assert (error.message, error.hint, str(error)) == ("what", "do", "what\ndo")


def test_without_a_hint_the_text_is_the_message() -> None:
    assert str(RapruneError("what")) == "what"


def test_a_wrong_request_exits_with_2_and_a_failure_with_1() -> None:
    assert UsageError("").exit_code == BudgetError("").exit_code == 2
    assert RapruneError("").exit_code == StoreError("").exit_code == 1
