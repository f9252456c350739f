"""The Pareto mathematics against brute force, and the hypervolume against Optuna's."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna._hypervolume import compute_hypervolume

from raprune.pareto import Front, Fronts, crowding, hypervolume, non_dominated, ranks, spread

Array = npt.NDArray[np.float64]

# Few distinct values, so that ties and duplicates are common.
values = st.one_of(st.integers(0, 6).map(lambda i: i / 4), st.floats(0.0, 2.0, width=32))


def point_sets(num_objectives: int, min_size: int = 1) -> st.SearchStrategy[Array]:
    point = st.lists(values, min_size=num_objectives, max_size=num_objectives)
    return st.lists(point, min_size=min_size, max_size=14).map(np.array)


any_points = st.integers(1, 3).flatmap(point_sets)


def dominates(a: Array, b: Array) -> bool:
    return bool((a <= b).all() and (a < b).any())


@given(any_points)
def test_non_dominated_is_what_brute_force_finds(points: Array) -> None:
    expected = [
        i
        for i, p in enumerate(points)
        if not any(dominates(q, p) for q in points) and not any((q == p).all() for q in points[:i])
    ]
    assert non_dominated(points) == expected


@given(any_points)
def test_ranks_peel_one_front_after_another(points: Array) -> None:
    left, rank = set(range(len(points))), 0
    found = ranks(points)
    while left:
        front = {i for i in left if not any(dominates(points[j], points[i]) for j in left)}
        assert {i for i in left if found[i] == rank} == front
        left, rank = left - front, rank + 1


@settings(max_examples=200)
@given(st.integers(2, 3).flatmap(point_sets))
def test_hypervolume_is_that_of_optuna(points: Array) -> None:
    reference = np.full(points.shape[1], 1.3)
    inside = points[(points <= reference).all(axis=1)]  # Optuna refuses the others.
    expected = compute_hypervolume(inside, reference) if len(inside) else 0.0
    assert hypervolume(points, [*reference]) == pytest.approx(expected, abs=1e-12)


def test_hypervolume_by_hand() -> None:
    assert hypervolume([[0.2]], [1.0]) == pytest.approx(0.8)
    assert hypervolume([[0.1, 0.3], [0.5, 0.1]], [1.0, 0.4]) == pytest.approx(0.9 * 0.1 + 0.5 * 0.2)
    assert hypervolume([[0.0, 0.0, 0.0]], [1.0, 2.0, 3.0]) == pytest.approx(6.0)


def test_hypervolume_of_points_outside_the_reference_is_zero() -> None:
    assert hypervolume([], [1.0, 0.3]) == 0.0
    assert hypervolume([[0.1, 0.3], [1.0, 0.1], [float("nan"), 0.1]], [1.0, 0.3]) == 0.0


def test_nan_is_never_better_than_a_number() -> None:
    points = [[float("nan"), 0.1], [0.2, 0.1], [0.1, 0.3]]
    assert non_dominated(points) == [1, 2]
    assert list(ranks(points)) == [1, 0, 0]


def test_crowding_by_hand() -> None:
    distances = crowding([[0.0, 4.0], [1.0, 2.0], [3.0, 1.0], [4.0, 0.0]])
    np.testing.assert_allclose(distances, [np.inf, 3 / 4 + 3 / 4, 3 / 4 + 2 / 4, np.inf])


def test_crowding_of_one_two_and_no_points() -> None:
    assert list(crowding([])) == []
    assert list(crowding([[1.0, 1.0]])) == [np.inf]
    assert list(crowding([[1.0, 1.0], [1.0, 1.0]])) == [np.inf, np.inf]


@given(point_sets(2), st.integers(1, 8))
def test_spread_gives_k_different_points_with_both_ends(points: Array, k: int) -> None:
    front = points[non_dominated(points)]
    chosen = spread(front, k)
    assert len(chosen) == len(set(chosen)) == min(k, len(front))
    assert list(front[chosen, 0]) == sorted(front[chosen, 0])
    assert front[chosen, 0].min() == front[:, 0].min()
    if k > 1:
        assert front[chosen, 1].min() == front[:, 1].min()


def test_spread_takes_points_evenly() -> None:
    line = [[i / 8, 1 - i / 8] for i in range(9)]
    assert spread(line, 3) == [0, 4, 8]
    assert spread(line, 5) == [0, 2, 4, 6, 8]
    assert spread(line, 0) == [] and spread([], 3) == []


@given(point_sets(2))
def test_fronts_that_are_kept_point_by_point_are_those_of_the_ranks(points: Array) -> None:
    fronts = Fronts()
    for number, point in enumerate(points):
        rank = fronts.add((point[0], point[1]))
        expected = ranks(points[: number + 1])
        assert rank == expected[-1] and len(fronts) == number + 1
        for level in range(int(expected.max()) + 1):
            assert fronts.num_before(level) == (expected < level).sum()
            assert fronts.front(level) == [tuple(p) for p, r in zip(points, expected, strict=False) if r == level]


@given(point_sets(2))
def test_front_that_is_kept_point_by_point_has_the_same_hypervolume(points: Array) -> None:
    front = Front()
    for number, point in enumerate(points):
        assert front.add((point[0], point[1])) == (number in non_dominated(points[: number + 1]))
        assert front.hypervolume((1.0, 1.0)) == hypervolume(points[: number + 1], (1.0, 1.0))
