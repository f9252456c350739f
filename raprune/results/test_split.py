"""Accuracies on the test split, as the run keeps them: `report/test.json`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from raprune.records import Trial
from raprune.store.folder import Store
from raprune.store.networks import named_as_today

TEST_FILE = "report/test.json"


# A JSON edge: the content of `report/test.json`.
def read_test(store: Store, trials: Sequence[Trial]) -> dict[str, Any]:
    """The accuracies on the test split: `{"dense", "candidates", "images"}`; empty until it was measured.

    `trials` are those of the run: they say which network a name of before stood for.
    """
    return named_as_today(store.read_json(TEST_FILE), trials) if store.exists(TEST_FILE) else {}
