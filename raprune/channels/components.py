"""Classes of coupled ids."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from raprune.channels.positions import IndexArray


def components(count: int, pairs: Sequence[tuple[IndexArray, IndexArray]]) -> IndexArray:
    """Return for each of `count` ids the smallest id that it is coupled with, by repeated hooking and pointer jumping.

    `pairs` are arrays of ids that are coupled, one by one.
    """
    labels = np.arange(count)
    if not pairs:
        return labels
    left = np.concatenate([a for a, _ in pairs])
    right = np.concatenate([b for _, b in pairs])
    while True:
        a, b = labels[left], labels[right]
        open_pairs = a != b
        if not open_pairs.any():
            return labels
        left, right, a, b = (left[open_pairs], right[open_pairs], a[open_pairs], b[open_pairs])
        np.minimum.at(labels, np.maximum(a, b), np.minimum(a, b))
        while True:
            jumped = labels[labels]
            if np.array_equal(jumped, labels):
                break
            labels = jumped
