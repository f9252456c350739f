"""Measured times of networks: read, told, and what they say of fewer FLOPs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from raprune.results.rows import CandidateRow, MeasuredSpeed
from raprune.results.timings import LATENCY_FILE, Times, Timing, measured_at, read_times, slow, times_from, with_times
from raprune.store.folder import Store
from tests.factories import candidate_row


def timing(batch_size: int, dense_ms: float, **candidates: float) -> Timing:
    return Timing(
        device="AMD EPYC",
        threads=2,
        precision="float32",
        batch_size=batch_size,
        dense_ms=dense_ms,
        candidates=candidates,
    )


def rows(times: Times, **flops: float) -> list[CandidateRow]:
    return with_times([candidate_row(candidate=name, flops_fraction=share) for name, share in flops.items()], times)


def test_times_stored_and_read_are_the_same(tmp_path: Path) -> None:
    times = Times(conditions=(timing(1, 4.0, a=2.0), timing(64, 90.0, a=30.0)), budget=timing(1, 5.0, a=4.0))
    store = Store(tmp_path)
    assert read_times(store, []) == Times()
    store.write_json(LATENCY_FILE, times.to_json())
    assert read_times(store, []) == times
    assert times_from(Times(conditions=times.conditions).to_json()).budget is None


def test_times_of_an_earlier_version_are_read_as_one_condition() -> None:
    old = {"device": "AMD EPYC, 1 thread", "batch_size": 1, "precision": "float32", "dense_ms": 4.0}
    times = times_from(old | {"candidates": {"a": 2.0}})
    assert times.batch is times.single is times.conditions[0] and times.budget is None
    (row,) = rows(times, a=0.3)
    assert row.measured == MeasuredSpeed(
        measured_batch_size=1, measured_ms=2.0, speedup=2.0, measured_batch1_ms=2.0, speedup_batch1=2.0
    )
    assert measured_at(times.conditions) == "a batch of 1 (4 ms for the dense network), float32 on AMD EPYC, 1 thread"


def test_row_of_a_measured_network_has_its_times_under_all_conditions() -> None:
    times = Times(conditions=(timing(1, 4.0, a=2.0), timing(64, 90.0, a=30.0)), budget=timing(1, 5.0, a=4.0))
    measured, other = rows(times, a=0.3, b=0.3)
    assert measured.measured == MeasuredSpeed(
        measured_batch_size=64,
        measured_ms=30.0,
        speedup=3.0,
        measured_batch1_ms=2.0,
        speedup_batch1=2.0,
        measured_latency_ms=4.0,
        measured_latency_fraction=0.8,
    )
    assert other.measured == MeasuredSpeed(measured_batch_size=64)
    assert measured_at(times.conditions) == (
        "a batch of 1 (4 ms for the dense network) and one of 64 (90 ms for the dense network), float32 on AMD EPYC, "
        "2 threads"
    )
    (unmeasured,) = rows(Times(), a=0.3)
    assert unmeasured.speedup is None and slow([unmeasured], Times()) == measured_at(()) == ""


@pytest.mark.parametrize(
    ("flops", "time_ms", "said"),
    [
        (0.3, 65.6, ""),  # what an earlier version called not faster
        (0.3, 78.0, "1 of 1 networks is hardly faster"),  # 22 % of the time for 70 % of the FLOPs
        (0.3, 76.0, ""),
        (0.3, 95.1, "1 of 1 networks is not faster"),
        (0.3, 120.0, "1 of 1 networks is not faster"),
        (0.8, 94.9, "1 of 1 networks is hardly faster"),
        (0.8, 93.0, ""),
        (0.95, 99.0, ""),
    ],
)
def test_network_above_95_percent_of_the_time_is_not_faster(flops: float, time_ms: float, said: str) -> None:
    times = Times(conditions=(timing(1, 4.0, a=4.0), timing(64, 100.0, a=time_ms)))
    remark = slow(rows(times, a=flops), times)
    assert remark.startswith(said) and bool(remark) == bool(said)


@pytest.mark.parametrize(("waited", "is_disturbed"), [(None, False), (0.05, False), (0.1, True), (0.48, True)])
def test_times_that_other_work_disturbed_are_told_to_say_little(waited: float | None, is_disturbed: bool) -> None:
    times = Times(conditions=(replace(timing(64, 100.0, a=99.0), waited=waited),))
    remark = slow(rows(times, a=0.3), times)
    assert remark.startswith("Other work of the machine had the CPUs for") is is_disturbed
    assert ("is not faster than the dense network" in remark) is not is_disturbed
    assert times_from(times.to_json()) == times


def test_networks_that_are_not_and_hardly_faster_are_counted_and_the_worst_is_named() -> None:
    times = Times(conditions=(timing(64, 100.0, a=97.0, b=99.0, c=85.0, d=40.0),))
    remark = slow(rows(times, a=0.5, b=0.3, c=0.3, d=0.3, e=0.3), times)
    assert remark.startswith("2 of 4 networks are not faster and 1 of 4 networks is hardly faster than the dense")
    assert "at batch 64, because narrow layers" in remark
    assert "b has 30.0% of the FLOPs and takes 99.0% of the time. A search with --budget-latency" in remark
