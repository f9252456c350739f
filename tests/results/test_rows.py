"""The rows of candidates: what they hold, and the JSON that programs read."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError

import pytest

from raprune.records import Stage
from raprune.results.ablation import AblationRow
from raprune.results.progress import SpentRow
from raprune.results.rows import MeasuredSpeed
from raprune.spec.budget import Budget
from tests.factories import candidate_row

KEYS = [
    *("candidate", "parent", "method", "settings", "allocation", "stage", "epochs", "flops", "macs"),
    *("flops_fraction", "params", "params_fraction", "zeros", "nonzero_fraction", "latency_ms", "latency_fraction"),
    *("memory_bytes", "memory_fraction"),
    *("rung", "repeats", "cuts", "trials", "val_accuracy", "val_interval", "test_interval", "test_accuracy"),
    *(
        "dense_test_accuracy",
        "test_further",
        "accuracy_after_cut",
        "accuracy_after_repair",
        "widths",
        "identity",
        "trial_id",
    ),
    *("on_front", "starred"),
]
MEASURED = [
    *("measured_batch_size", "measured_ms", "speedup", "measured_batch1_ms", "speedup_batch1"),
    *("measured_latency_ms", "measured_latency_fraction"),
]


def test_row_in_json_has_the_keys_of_the_contract_in_their_order() -> None:
    row = candidate_row()
    assert list(row.to_json()) == KEYS
    timed = candidate_row(measured=MeasuredSpeed(speedup=2.0)).to_json()
    assert list(timed) == KEYS + MEASURED and timed["speedup"] == 2.0
    assert json.loads(json.dumps(timed)) == timed, "plain data: lists, dictionaries, strings"


def test_row_of_the_ablation_in_json_has_its_budget_beside_the_candidate() -> None:
    best = candidate_row()
    row = AblationRow(best=best, finetuning_epochs=5.0, share=0.5, budget=Budget(params=0.2)).to_json()
    assert list(row) == [
        *KEYS,
        "finetuning_epochs",
        "share",
        "budget_flops",
        "budget_params",
        "budget_latency",
        "budget_memory",
    ]
    assert (row["budget_flops"], row["budget_params"], row["share"]) == (None, 0.2, 0.5)


@pytest.mark.parametrize(
    ("budget", "cost", "limit"),
    [
        (Budget(flops=0.3, params=0.2), "flops", 0.3),
        (Budget(params=0.2, latency=0.5), "params", 0.2),
        (Budget(latency=0.5), "latency", 0.5),
    ],
)
def test_row_of_the_ablation_names_the_first_cost_that_its_budget_limits(
    budget: Budget, cost: str, limit: float
) -> None:
    row = AblationRow(best=candidate_row(), finetuning_epochs=0.0, share=1.0, budget=budget)
    assert (row.cost, row.limit) == (cost, limit)


def test_row_of_the_work_in_json_has_no_stage() -> None:
    row = SpentRow(
        trial_id="search-00000",
        gpu_hours=0.0,
        hours=0.1,
        hypervolume=0.2,
        val_accuracy=0.9,
        points=1,
        stage=Stage.SEARCH,
    )
    assert list(row.to_json()) == ["trial_id", "gpu_hours", "hours", "hypervolume", "val_accuracy", "points"]


def test_row_derives_macs_and_the_fraction_of_parameters_that_are_not_zero() -> None:
    row = candidate_row(flops=301, params=200, params_fraction=0.2, zeros=50)
    assert row.macs == 150 and row.nonzero_fraction == pytest.approx(0.15) and row.weights_pruned
    assert not candidate_row(params=200, zeros=2).weights_pruned, "a parameter here and there is zero in any network"


def test_row_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        candidate_row().starred = True  # type: ignore[misc]
