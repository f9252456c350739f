"""The sentence on the chosen network at the end of a run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from raprune.report.summary import summary
from raprune.results.timings import Times, Timing, with_times
from raprune.store.record import RunRecord
from tests.factories import candidate_row

ROW = candidate_row(
    flops_fraction=0.2949,
    params_fraction=0.0417,
    val_accuracy=0.98,
    test_accuracy=0.9912,
    dense_test_accuracy=0.9921,
)
RUN: dict[str, Any] = {"spec": {"budget_flops": 0.3}, "dense": {"val_accuracy": 0.985}}


def said(
    *,
    dense_ms: float | None = 230.0,
    run: dict[str, Any] = RUN,
    threads: int | None = 2,
    waited: float | None = 0.02,
    **row: Any,
) -> str:
    timing = Timing(
        device="AMD EPYC" if threads else "NVIDIA H100",
        threads=threads,
        precision="float32",
        batch_size=64,
        dense_ms=dense_ms or 1.0,
        candidates={ROW.candidate: 100.0},
        waited=waited,
    )
    times = Times(conditions=(timing,)) if dense_ms else Times()
    (measured,) = with_times([replace(ROW, **row)], times)
    return summary(measured, RunRecord.model_validate(run), times)


def test_summary_of_the_chosen_network_is_one_sentence() -> None:
    assert said() == (
        "The chosen network, 0123456789ab by reconstruction, keeps 29 % of the FLOPs, is 2.3x faster at batch 64 on 2 "
        "CPU threads and has 99.1 % test accuracy against 99.2 % of the dense network."
    )


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"dense_ms": 104.0}, ", is not faster at batch 64 on 2 CPU threads (1.04x) and has"),
        ({"dense_ms": 106.0}, ", is 1.06x faster at batch 64"),
        ({"dense_ms": 80.0}, ", is not faster at batch 64 on 2 CPU threads (0.80x) and has"),
        ({"threads": 1}, "on 1 CPU thread and"),
        ({"threads": None}, "at batch 64 on NVIDIA H100 and"),
        ({"waited": 0.4}, "at batch 64 on 2 CPU threads of a busy machine and"),
        ({"waited": None}, "at batch 64 on 2 CPU threads and"),
        ({"dense_ms": None}, "keeps 29 % of the FLOPs and has 99.1 %"),
        ({"dense_ms": None, "latency_fraction": 0.5}, ", takes about 50 % of the latency, as predicted and has"),
        ({"test_accuracy": None}, "has 98.0 % validation accuracy against 98.5 % of the dense network."),
        ({"test_accuracy": None, "run": {}}, "has 98.0 % validation accuracy."),
        ({"run": {"spec": {"budget_params": 0.05}}}, "keeps 29 % of the FLOPs and 4.2 % of the parameters, is"),
        (
            {"run": {"spec": {"min_accuracy": 0.99}}},
            "the dense network. No network has the required accuracy, 99 % on the validation split.",
        ),
    ],
)
def test_summary_with_changed_values_states_them(changes: dict[str, Any], part: str) -> None:
    assert part in said(**changes)
