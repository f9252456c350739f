from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from raprune.data.split import stratified


@given(st.lists(st.integers(0, 5), min_size=1, max_size=200), st.floats(0, 1), st.integers(0, 3))
def test_stratified_parts_hold_the_same_fraction_of_each_class(labels: list[int], share: float, seed: int) -> None:
    array = np.array(labels, dtype=np.int64)
    count = round(share * len(array))
    first, second = stratified(array, count, seed=seed)
    assert len(first) == count
    assert sorted([*first, *second]) == list(range(len(array)))
    assert first.tolist() == sorted(first)
    assert second.tolist() == sorted(second)
    for label in set(labels):
        quota = (array == label).sum() * count / len(array)
        assert abs((array[first] == label).sum() - quota) < 1


def test_a_seed_draws_the_same_rows_again_and_another_seed_others() -> None:
    labels = np.repeat(np.arange(5), 20)
    draws = [stratified(labels, 30, seed=seed)[0].tolist() for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
