"""Pareto fronts: non-dominated points, their ranks, and the hypervolume that the points cover. Numbers only.

Every objective is minimised: pass accuracy as `1 - accuracy`. `points` has shape (N, M): N points, M objectives.
NaN counts as the worst value, infinity.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from operator import itemgetter

import numpy as np
import numpy.typing as npt

Points = npt.NDArray[np.float64] | Sequence[Sequence[float]]


def non_dominated(points: Points) -> list[int]:
    """Return the ascending indices of the points that no other point dominates; of equal points the first stays."""
    array = _as_array(points)
    order = _lexicographic(array)
    if array.shape[1] == 2 and len(array):
        # In two objectives a point stays if its second objective is below that of all points before it.
        second = array[order, 1]
        stays = np.append(True, second[1:] < np.minimum.accumulate(second)[:-1])
        return sorted(order[stays].tolist())
    front: list[int] = []
    # In lexicographic order no point is dominated by one after it, so that comparing with the front so far is enough.
    for index in order:
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
    sorted_ranks = np.array(_ranks_in_two(ordered.tolist()) if array.shape[1] == 2 else _ranks(ordered), dtype=np.int64)
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


class Front:
    """The non-dominated points in two objectives, kept while points are added one after another."""

    def __init__(self) -> None:
        self._points: list[tuple[float, float]] = []
        """Ascending in the first objective, descending in the second."""

    def add(self, point: tuple[float, float]) -> bool:
        """Add a point; True if no point so far dominates it or equals it. O(log N) and the points that it removes."""
        first, second = _ordered(point)
        end = bisect_right(self._points, first, key=itemgetter(0))
        if end and self._points[end - 1][1] <= second:
            return False
        begin = bisect_left(self._points, first, key=itemgetter(0))
        end = begin
        while end < len(self._points) and self._points[end][1] >= second:
            end += 1
        self._points[begin:end] = [(first, second)]
        return True

    def hypervolume(self, reference: tuple[float, float]) -> float:
        """The area between the points and `reference`, the same number that `hypervolume` gives for all points."""
        return hypervolume(self._points, reference)


class Fronts:
    """Points in two objectives sorted into fronts while they are added: the ranks of `ranks`, point by point.

    Source: Yakupov and Buzdalov, "Incremental non-dominated sorting with O(N) insertion for the two-dimensional case"
    (CEC 2015).
    """

    def __init__(self) -> None:
        self._fronts: list[list[tuple[float, float, int]]] = []
        """Points of each front with their numbers, ascending in the first objective, descending in the second."""
        self._count = 0

    def __len__(self) -> int:
        """Number of points."""
        return self._count

    def add(self, point: tuple[float, float]) -> int:
        """Add a point and return its rank."""
        first, second = _ordered(point)
        # A front that dominates the point lies behind fronts that do.
        rank = bisect_left(self._fronts, True, key=lambda front: not _dominates(front, first, second))
        moving = [(first, second, self._count)]
        self._count += 1
        for level in range(rank, len(self._fronts)):
            front = self._fronts[level]
            # The points that `moving` dominates are neighbours.
            begin = bisect_left(front, moving[0][0], key=itemgetter(0))
            end = bisect_right(front, -moving[-1][1], lo=begin, key=_descending)
            if begin < len(front) and front[begin][:2] == moving[0][:2]:
                # Equal points share a rank.
                end = begin
            front[begin:end], moving = moving, front[begin:end]
            if not moving:
                return rank
        self._fronts.append(moving)
        return rank

    def num_before(self, rank: int) -> int:
        """Number of points on the fronts before `rank`."""
        return sum(map(len, self._fronts[:rank]))

    def front(self, rank: int) -> list[tuple[float, float]]:
        """The points of a front, in the order in which they were added."""
        return [(first, second) for first, second, _ in sorted(self._fronts[rank], key=itemgetter(2))]


def _dominates(front: Sequence[tuple[float, float, int]], first: float, second: float) -> bool:
    """True if a point of a front of `Fronts` dominates the point `(first, second)`."""
    place = bisect_right(front, first, key=itemgetter(0)) - 1
    return place >= 0 and front[place][1] <= second and front[place][:2] != (first, second)


def _descending(point: tuple[float, float, int]) -> float:
    return -point[1]


def _ordered(point: tuple[float, float]) -> tuple[float, float]:
    """The point with infinity for NaN."""
    first, second = (math.inf if math.isnan(value) else float(value) for value in point)
    return first, second


def _ranks(ordered: npt.NDArray[np.float64]) -> list[int]:
    """The ranks of points in lexicographic order, in O(N^2)."""
    ranks = np.zeros(len(ordered), dtype=np.int64)
    for position in range(1, len(ordered)):
        before, point = ordered[:position], ordered[position]
        dominators = (before <= point).all(axis=1) & (before < point).any(axis=1)
        if dominators.any():
            ranks[position] = 1 + ranks[:position][dominators].max()
    return list(ranks.tolist())


def _ranks_in_two(ordered: Sequence[Sequence[float]]) -> list[int]:
    """The ranks of points in two objectives in lexicographic order, in O(N log N)."""
    lowest: list[float] = []
    """The least second objective of each front so far, ascending."""
    ranks: list[int] = []
    for position, (first, second) in enumerate(ordered):
        if position and ordered[position - 1] == [first, second]:
            ranks.append(ranks[-1])
            continue
        rank = bisect_right(lowest, second)
        lowest[rank : rank + 1] = [second]
        ranks.append(rank)
    return ranks


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
