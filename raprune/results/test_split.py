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
    """Values of the task's metric on the test split, at most 1; without any until the split was evaluated."""

    dense: float | None = None
    candidates: Mapping[str, float] = field(default_factory=dict)
    """Network (`Trial.network`) -> accuracy."""
    images: int | None = None
    """Images of the split; None where nobody wrote their number."""
    dense_further: Mapping[str, float] = field(default_factory=dict)
    """Further figures of the dense network by name, in [0, 1], such as its top-5 accuracy."""
    further: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Network -> its further figures by name."""

    def __bool__(self) -> bool:
        return self.dense is not None or bool(self.candidates)

    def __or__(self, other: Self) -> Self:
        """Both sets of accuracies; a value of `other` replaces a value of this one."""
        return type(self)(
            dense=self.dense if other.dense is None else other.dense,
            candidates={**self.candidates, **other.candidates},
            images=self.images if other.images is None else other.images,
            dense_further={**self.dense_further, **other.dense_further},
            further={**self.further, **other.further},
        )

    # A JSON edge: the content of `report/test.json`.
    def to_json(self) -> dict[str, Any]:
        """Plain data: `{"names", "dense", "candidates", "images"}` and, where a task has further figures,
        `{"dense_further", "further"}`; an empty object without accuracies."""
        if not self:
            return {}
        found: dict[str, Any] = NAMES | {
            "dense": self.dense,
            "candidates": dict(self.candidates),
            "images": self.images,
        }
        if self.dense_further or self.further:
            networks = {name: dict(figures) for name, figures in self.further.items()}
            found |= {"dense_further": dict(self.dense_further), "further": networks}
        return found


UNTESTED = SplitAccuracies()
"""Accuracies of a run that has not evaluated the test split."""


def read_test(store: Store, trials: Sequence[Trial]) -> SplitAccuracies:
    """The accuracies on the test split; `UNTESTED` until the split was evaluated.

    `trials` are those of the run. They tell which network a name stood for in a run of an earlier version.
    """
    if not store.exists(TEST_FILE):
        return UNTESTED
    content = named_as_today(store.read_json(TEST_FILE), trials)
    known = ("dense", "candidates", "images", "dense_further", "further")
    return SplitAccuracies(**{name: content[name] for name in known if name in content})
