"""Finalists that were made in several ways, at once and in steps: by how many cuts each is best."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from raprune.results.rows import CandidateRow


def best_by_cuts(rows: Sequence[CandidateRow]) -> dict[int, int]:
    """Return the numbers of cuts with the number of finalists that are the most accurate after so many cuts.

    They ascend. Finalists that were made in one way are left out; of equally accurate ways the fewest cuts win. The
    validation split judges.
    """
    ways: dict[str, list[CandidateRow]] = defaultdict(list)
    for row in rows:
        if row.parent is not None:
            ways[row.parent].append(row)
    compared = [of_one for of_one in ways.values() if len(of_one) > 1]
    won = Counter(min(of_one, key=lambda row: (-row.val_accuracy, row.cuts)).cuts for of_one in compared)
    return {cuts: won[cuts] for cuts in sorted({row.cuts for of_one in compared for row in of_one})}
