"""What a budget admits, and which budgets there are."""

from __future__ import annotations

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
