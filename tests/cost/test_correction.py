"""The correction of predicted latencies: what it carries over, and what it leaves."""

from __future__ import annotations

import numpy as np
import pytest

from raprune.cost.correction import Correction

TIMED = np.array([[8.0, 6.0], [4.0, 6.0], [2.0, 2.0]])


def test_one_factor_for_all_networks_is_the_factor_everywhere() -> None:
    correction = Correction(TIMED, np.full(3, 1.4))
    assert correction.at(np.array([[8.0, 6.0], [1.0, 1.0], [0.0, 3.0]])).tolist() == pytest.approx([1.4] * 3)


def test_timed_network_has_its_own_factor_and_a_far_one_the_mean() -> None:
    factors = np.array([1.0, 1.3, 1.6])
    correction = Correction(TIMED, factors)
    assert correction.at(TIMED) == pytest.approx(factors, rel=0.02)
    far = float(correction.at(np.array([[4000.0, 4000.0]]))[0])
    assert 1.2 < far < 1.4
    near = float(correction.at(np.array([[2.1, 2.0]]))[0])
    assert 1.5 < near <= 1.62


def test_same_network_timed_twice_has_the_mean_of_its_times() -> None:
    correction = Correction(TIMED[:1], np.array([1.2])).with_more(TIMED[:1], np.array([1.3]))
    assert float(correction.at(TIMED[:1])[0]) == pytest.approx(np.sqrt(1.2 * 1.3), rel=1e-6)
