"""Accuracies on the test split, as the run keeps them: `report/test.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from raprune.records import Trial
from raprune.store.folder import Store
from raprune.store.networks import NAMES, named_as_today

TEST_FILE = "report/test.json"


@dataclass(frozen=True, kw_only=True)
class SplitAccuracies:
    """Top-1 accuracies on the test split, in [0, 1]; without any until the split was evaluated."""

    dense: float | None = None
    candidates: Mapping[str, float] = field(default_factory=dict)
    """Network (`Trial.network`) -> accuracy."""
    images: int | None = None
    """Images of the split; None where nobody wrote their number."""

    def __bool__(self) -> bool:
        return self.dense is not None or bool(self.candidates)

    def __or__(self, other: Self) -> Self:
        """Both sets of accuracies; a value of `other` replaces a value of this one."""
        return type(self)(
            dense=self.dense if other.dense is None else other.dense,
            candidates={**self.candidates, **other.candidates},
            images=self.images if other.images is None else other.images,
        )

    # A JSON edge: the content of `report/test.json`.
    def to_json(self) -> dict[str, Any]:
        """Plain data: `{"names", "dense", "candidates", "images"}`; an empty object without accuracies."""
        if not self:
            return {}
        return NAMES | {"dense": self.dense, "candidates": dict(self.candidates), "images": self.images}


UNTESTED = SplitAccuracies()
"""Accuracies of a run that has not evaluated the test split."""


def read_test(store: Store, trials: Sequence[Trial]) -> SplitAccuracies:
    """The accuracies on the test split; `UNTESTED` until the split was evaluated.

    `trials` are those of the run. They tell which network a name stood for in a run of an earlier version.
    """
    if not store.exists(TEST_FILE):
        return UNTESTED
    content = named_as_today(store.read_json(TEST_FILE), trials)
    return SplitAccuracies(
        dense=content.get("dense"), candidates=content.get("candidates", {}), images=content.get("images")
    )
