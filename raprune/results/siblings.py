"""Smaller dense networks beside a front: a front that one of them beats must show it. `report/siblings.json`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

from raprune.results.rows import CandidateRow
from raprune.store.folder import Store

SIBLINGS_FILE = "report/siblings.json"


@dataclass(frozen=True, kw_only=True)
class Sibling:
    """A smaller network of the dense network's family, trained by the user, on the data of the run."""

    name: str
    """Name of the network, as `model.name`."""
    weights: str
    """Name of the file of its weights, without its folder."""
    weights_hash: str
    flops: int
    """FLOPs of one image, a multiply-add as 2."""
    params: int
    val_accuracy: float
    """On the validation split, in [0, 1]."""
    test_accuracy: float | None
    """On the test split, in [0, 1]; None where the run has not evaluated it."""


@dataclass(frozen=True)
class SiblingComparison:
    """A smaller dense network against the best network of the front that costs no more."""

    sibling: Sibling
    rival: CandidateRow | None
    """The most accurate network of the front with at most its FLOPs; None if the front has none so small."""

    @property
    def split(self) -> str:
        """The split of the accuracies: test where both networks were evaluated on it."""
        tested = self.rival is not None and self.rival.test_accuracy is not None
        return "test" if tested and self.sibling.test_accuracy is not None else "validation"

    @property
    def accuracies(self) -> tuple[float, float | None]:
        """Accuracy of the sibling and of its rival on `split`."""
        sibling, rival = self.sibling, self.rival
        if self.split == "test" and sibling.test_accuracy is not None and rival is not None:
            return sibling.test_accuracy, rival.test_accuracy
        return sibling.val_accuracy, None if rival is None else rival.val_accuracy

    @property
    def lead(self) -> float | None:
        """Accuracy of the front's network minus the sibling's, in [-1, 1]; None without a rival."""
        own, rival = self.accuracies
        return None if rival is None else rival - own

    @property
    def is_beaten(self) -> bool:
        """True if the smaller dense network is the more accurate one."""
        return self.lead is not None and self.lead < 0


def compare_siblings(siblings: Sequence[Sibling], front: Sequence[CandidateRow]) -> list[SiblingComparison]:
    """Each sibling against the most accurate row of `front`, by its validation accuracy, that has no more FLOPs."""
    found = []
    for sibling in siblings:
        within = [row for row in front if row.flops <= sibling.flops]
        found.append(SiblingComparison(sibling, max(within, key=lambda row: row.val_accuracy, default=None)))
    return found


def read_siblings(store: Store) -> tuple[Sibling, ...]:
    """The smaller dense networks that the run was compared with, by ascending FLOPs."""
    if not store.exists(SIBLINGS_FILE):
        return ()
    names = {field.name for field in fields(Sibling)}
    rows = store.read_json(SIBLINGS_FILE)["siblings"]
    # Another version may have written more.
    return tuple(Sibling(**{name: value for name, value in row.items() if name in names}) for row in rows)


def with_siblings(known: Sequence[Sibling], more: Sequence[Sibling]) -> tuple[Sibling, ...]:
    """All of them by ascending FLOPs; one of the same weights replaces the one before."""
    by_weights = {(sibling.name, sibling.weights_hash): sibling for sibling in [*known, *more]}
    return tuple(sorted(by_weights.values(), key=lambda sibling: sibling.flops))


def keep_siblings(store: Store, siblings: Sequence[Sibling]) -> None:
    """Write them into the run, for its later reports.

    Raises:
        StoreError: if the run cannot be written.
    """
    store.write_json(SIBLINGS_FILE, {"siblings": [asdict(sibling) for sibling in siblings]})
