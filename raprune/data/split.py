"""The division of rows into training and validation: drawn by seed, with the same fraction of every class."""

from __future__ import annotations

import numpy as np

from raprune.data.arrays import LabelArray


def stratified(labels: LabelArray, count: int, *, seed: int) -> tuple[LabelArray, LabelArray]:
    """Return `count` positions of `labels`, and the remaining positions; both ascending.

    `count` is in [0, len(labels)]. Each class gives the same fraction of its positions, rounded by largest remainder,
    so that the first part has exactly `count` positions.
    """
    generator = np.random.default_rng(seed)
    classes, class_of, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    quota = sizes * (count / max(1, len(labels)))
    take = np.floor(quota).astype(np.int64)
    remainder = quota - take
    # Ties are broken at random; otherwise the first classes would win every tie.
    order = np.lexsort((generator.random(len(classes)), -remainder))
    take[order[: count - int(take.sum())]] += 1
    chosen = np.zeros(len(labels), dtype=bool)
    for number in range(len(classes)):
        members = np.flatnonzero(class_of == number)
        chosen[generator.permutation(members)[: take[number]]] = True
    return np.flatnonzero(chosen), np.flatnonzero(~chosen)
