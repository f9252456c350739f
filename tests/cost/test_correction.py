"""The correction of predicted latencies: what it carries over, and what it leaves."""

from __future__ import annotations

import numpy as np
import pytest

from raprune.cost.correction import Correction
from raprune.cost.latency import LatencyTable
from tests.cost.test_latency import HAND

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


def test_corrected_table_predicts_what_was_timed_and_is_stored_and_read() -> None:
    plain = HAND.predict(TIMED)
    once = HAND.corrected(TIMED[:2], 1.5 * plain[:2])
    table = once.corrected(TIMED[2:], 0.9 * plain[2:])
    assert once.predict(TIMED) == pytest.approx(1.5 * plain, rel=1e-6)
    assert table.predict(TIMED) == pytest.approx([1.5, 1.5, 0.9] * plain, rel=0.03)
    assert HAND.predict(TIMED).tolist() == plain.tolist(), "the table itself is left as it is"
    again = LatencyTable.from_arrays(table.to_arrays())
    assert np.array_equal(again.predict(TIMED), table.predict(TIMED)) and again.describe()["corrected_by"] == 3
    assert LatencyTable.from_arrays(HAND.to_arrays()).correction is None
    # A block that is gone takes its operations with it; the correction stays.
    assert once.without(["conv1"]).predict(TIMED) == pytest.approx(1.5 * HAND.without(["conv1"]).predict(TIMED))
