"""Pareto fronts: non-dominated points, their ranks, and the hypervolume that the points cover. Numbers only.

Every objective is minimised: pass accuracy as `1 - accuracy`. `points` has shape (N, M): N points, M objectives.
NaN counts as the worst value, infinity.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Points = npt.NDArray[np.float64] | Sequence[Sequence[float]]


def non_dominated(points: Points) -> list[int]:
    """Return the ascending indices of the points that no other point dominates; of equal points the first stays."""
    array = _as_array(points)
    front: list[int] = []
    # In lexicographic order no point is dominated by one after it, so that comparing with the front so far is enough.
    for index in _lexicographic(array):
        if not (array[front] <= array[index]).all(axis=1).any():
            front.append(int(index))
    return sorted(front)


def ranks(points: Points) -> npt.NDArray[np.int64]:
    """Return the number of the front of each point, shape (N,).

    Front 0 holds the non-dominated points, front 1 those that are non-dominated once front 0 is removed, and so on.

    Equal points share a rank. Non-dominated sorting of Deb et al., "NSGA-II" (2002), section III-A.
    """
    array = _as_array(points)
    order = _lexicographic(array)
    ordered = array[order]
    sorted_ranks = np.zeros(len(array), dtype=np.int64)
    for position in range(1, len(array)):
        before, point = ordered[:position], ordered[position]
        dominators = (before <= point).all(axis=1) & (before < point).any(axis=1)
        if dominators.any():
            sorted_ranks[position] = 1 + sorted_ranks[:position][dominators].max()
    result = np.empty_like(sorted_ranks)
    result[order] = sorted_ranks
    return result


def crowding(points: Points) -> npt.NDArray[np.float64]:
    """Return the crowding distance of each point of one front, shape (N,); the ends of the front have infinity.

    A larger distance means a less crowded point. Each objective is scaled by its range over the points; an objective
    without a range adds nothing. Deb et al., "NSGA-II" (2002), section III-B.
    """
    array = _as_array(points)
    distances = np.zeros(len(array))
    for values in array.T:
        order = np.argsort(values, kind="stable")
        ordered = values[order]
        with np.errstate(invalid="ignore"):
            extent = ordered[-1] - ordered[0] if len(ordered) else 0.0
        if extent > 0 and np.isfinite(extent):
            distances[order[1:-1]] += (ordered[2:] - ordered[:-2]) / extent
        distances[order[:1]] = distances[order[-1:]] = np.inf
    return distances


def hypervolume(points: Points, reference: Sequence[float]) -> float:
    """Return the exact volume between the points and `reference`, which has shape (M,) with M from 1 to 3.

    A point that is not better than the reference in every objective adds nothing. M = 3 sweeps the third objective
    and keeps the area of the first two: O(N^2 log N).
    """
    corner = np.asarray(reference, dtype=np.float64)
    assert 1 <= len(corner) <= 3, "hypervolume is exact for up to three objectives"
    array = _as_array(points, num_objectives=len(corner))
    array = array[(array < corner).all(axis=1)]
    if len(array) == 0:
        return 0.0
    array = array[non_dominated(array)]
    if len(corner) == 1:
        return float(corner[0] - array.min())
    if len(corner) == 2:
        return _area(array, corner)
    array = array[np.argsort(array[:, 2], kind="stable")]
    depths = np.diff(np.append(array[:, 2], corner[2]))
    return float(sum(depth * _area(array[: i + 1, :2], corner[:2]) for i, depth in enumerate(depths) if depth > 0))


def spread(points: Points, k: int) -> list[int]:
    """Return the indices of k points spread evenly over a front, its ends included, ascending in the first objective.

    The best point of each objective is chosen first, then repeatedly the point farthest from all chosen points, with
    each objective scaled by its range. k = 1 gives the best point of the first objective; k >= N gives all points.
    """
    array = _as_array(points)
    if len(array) == 0 or k <= 0:
        return []
    extent = np.ptp(array, axis=0)
    scaled = (array - array.min(axis=0)) / np.where(extent > 0, extent, 1.0)
    # The other objectives settle ties, so that an end of the front is never a dominated point.
    ends = [int(np.lexsort([*np.delete(scaled, m, axis=1).T, scaled[:, m]])[0]) for m in range(scaled.shape[1])]
    chosen = list(dict.fromkeys(ends))[:k]
    distance = np.min([np.linalg.norm(scaled - scaled[c], axis=1) for c in chosen], axis=0)
    distance[chosen] = -1.0
    while len(chosen) < min(k, len(array)):
        farthest = int(np.argmax(distance))
        chosen.append(farthest)
        distance = np.minimum(distance, np.linalg.norm(scaled - scaled[farthest], axis=1))
        distance[chosen] = -1.0
    return sorted(chosen, key=lambda i: (array[i, 0], i))


def _as_array(points: Points, *, num_objectives: int = 1) -> npt.NDArray[np.float64]:
    array = np.array(points, dtype=np.float64)
    if array.size == 0:
        return np.empty((0, num_objectives))
    assert array.ndim == 2, f"points have shape (N, M), not {array.shape}"
    return np.where(np.isnan(array), np.inf, array)


def _lexicographic(array: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Return the order by the first objective, ties by the second and so on; equal points keep their order."""
    return np.lexsort(array.T[::-1]).astype(np.int64)


def _area(array: npt.NDArray[np.float64], corner: npt.NDArray[np.float64]) -> float:
    """Return the area between points of shape (N, 2) and the corner; every point is better than the corner."""
    array = array[_lexicographic(array)]
    height = np.minimum.accumulate(array[:, 1])
    widths = np.diff(np.append(array[:, 0], corner[0]))
    return float(np.sum(widths * (corner[1] - height)))
