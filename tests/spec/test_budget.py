"""What a budget admits, and which budgets there are."""

from __future__ import annotations

import pytest

from raprune.spec.budget import Budget, accuracy_floor


def test_equality_is_within() -> None:
    budget = Budget(flops=0.3, params=0.5)
    assert budget.admits(flops_fraction=0.3, params_fraction=0.5)
    assert not budget.admits(flops_fraction=0.3001, params_fraction=0.1)
    assert not budget.admits(flops_fraction=0.1, params_fraction=0.5001)


def test_budget_leaves_a_cost_that_is_not_named_free() -> None:
    assert Budget().admits(flops_fraction=1.0, params_fraction=1.0)
    assert Budget(params=0.2).admits(flops_fraction=1.0, params_fraction=0.2)


def test_the_floor_is_the_higher_of_what_is_asked() -> None:
    assert accuracy_floor(None, None, 0.9) is None
    assert accuracy_floor(0.8, None, 0.9) == 0.8
    assert accuracy_floor(0.8, 0.01, 0.9) == 0.9 - 0.01
    assert accuracy_floor(None, 0.01, None) is None


@pytest.mark.parametrize(
    ("written", "size"), [("64MiB", 64 * 2**20), ("1.5 kb", 1500), ("2GiB", 2 * 2**30), ("300B", 300), ("1mb", 10**6)]
)
def test_budget_of_memory_as_a_size_becomes_a_fraction_of_the_dense_peak(written: str, size: int) -> None:
    budget = Budget.model_validate({"memory": written})
    assert (budget.memory, budget.memory_bytes) == (None, size)
    assert budget.limits_memory
    assert not budget.is_free
    assert budget.traced(4 * size) == Budget(memory=0.25)
    assert budget.traced(size // 2) == Budget(memory=1.0), "a network that fits may stay whole"


@pytest.mark.parametrize("written", ["0MiB", "64", "-1MiB", "1.5", "MiB", "64 parsecs"])
def test_budget_of_memory_that_is_neither_fraction_nor_size_is_refused(written: str) -> None:
    with pytest.raises(ValueError, match="such as 64MiB"):
        Budget.model_validate({"memory": written})


def test_budget_of_memory_admits_only_networks_whose_memory_is_known() -> None:
    budget = Budget(memory=0.5)
    assert budget.admits(flops_fraction=1.0, params_fraction=1.0, memory_fraction=0.5)
    assert not budget.admits(flops_fraction=0.1, params_fraction=0.1, memory_fraction=0.51)
    assert not budget.admits(flops_fraction=0.1, params_fraction=0.1)
    assert budget.share(0.5) == Budget(memory=0.25)
