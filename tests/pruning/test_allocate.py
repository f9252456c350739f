"""Widths meet the target, come close to it, and respect their limits."""

from __future__ import annotations

from functools import cache
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torchvision import models

from raprune.channels.trace import trace
from raprune.cost.flops import CostModel
from raprune.errors import BudgetError
from raprune.models.cifar_resnet import CifarResNet
from raprune.pruning.allocate import ALLOCATIONS, allocate, check_reachable, select
from raprune.pruning.target import Target
from raprune.spec.budget import Budget
from tests.channels.networks import image
from tests.channels.proved import proved

CLOSE = 0.005
"""How far below the target a width vector may end on a network of fine channels."""


@cache
def cost_of(name: str) -> CostModel:
    torch.manual_seed(0)
    if name == "cifar-resnet56":
        return CostModel(trace(CifarResNet(56, num_classes=10, in_channels=3), image((1, 3, 32, 32))))
    if name in ("resnet50", "densenet121"):
        return CostModel(trace(models.get_model(name, weights=None), image((1, 3, 64, 64))))
    return CostModel(proved(name)[1])


def random_scores(cost: CostModel, seed: int) -> dict[str, np.ndarray]:
    """Scores of another scale and spread in each group."""
    rng = np.random.default_rng(seed)
    return {
        name: rng.lognormal(rng.normal(), rng.uniform(0.01, 2), int(n))
        for name, n in zip(cost.group_names, cost.num_channels, strict=True)
    }


def random_ratios(cost: CostModel, seed: int) -> dict[str, float]:
    rng = np.random.default_rng(seed)
    return {name: float(rng.uniform(0.05, 1.0)) for name in cost.group_names}


def fractions(cost: CostModel, widths: np.ndarray) -> tuple[float, float]:
    return int(cost.flops(widths)) / cost.dense_flops, int(cost.params(widths)) / cost.dense_params


@pytest.mark.parametrize("name", ALLOCATIONS)
@pytest.mark.parametrize("network", ["Residual", "DenseBlock", "Grouped", "FlattenLinear", "cifar-resnet56"])
@settings(max_examples=15, suppress_health_check=list(HealthCheck))
@given(
    flops=st.none() | st.floats(0.0, 1.0),
    params=st.none() | st.floats(0.0, 1.0),
    seed=st.integers(0, 1000),
    limits=st.sampled_from([(1, 1), (3, 1), (1, 4), (2, 3), (100, 1)]),
)
def test_never_above_the_target(
    name: str, network: str, flops: float | None, params: float | None, seed: int, limits: tuple[int, int]
) -> None:
    cost = cost_of(network)
    smallest = cost.smallest(min_channels=limits[0], multiple_of=limits[1])
    low_flops, low_params = fractions(cost, smallest)
    budget = Budget(
        flops=None if flops is None else min(1.0, low_flops + flops * (1 - low_flops)),
        params=None if params is None else min(1.0, low_params + params * (1 - low_params)),
    )
    target = Target(budget=budget, min_channels=limits[0], multiple_of=limits[1])
    try:
        check_reachable(cost, budget, min_channels=limits[0], multiple_of=limits[1])
    except BudgetError:
        return  # rounding put the target a hair below the narrowest network
    widths = allocate(name, cost, target, scores=random_scores(cost, seed), keep_ratios=random_ratios(cost, seed))
    came_flops, came_params = fractions(cost, widths)
    assert budget.admits(flops_fraction=came_flops, params_fraction=came_params)
    assert (widths >= smallest).all()
    assert (widths <= cost.num_channels).all()
    assert ((widths % limits[1] == 0) | (widths == cost.num_channels)).all()


@pytest.mark.parametrize("name", ALLOCATIONS)
@pytest.mark.parametrize("network", ["cifar-resnet56", "resnet50"])
@pytest.mark.parametrize("flops", [0.1, 0.3, 0.5, 0.77, 0.95])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_close_to_the_target(name: str, network: str, flops: float, seed: int) -> None:
    cost = cost_of(network)
    target = Target(budget=Budget(flops=flops))
    widths = allocate(name, cost, target, scores=random_scores(cost, seed), keep_ratios=random_ratios(cost, seed))
    came, _ = fractions(cost, widths)
    assert flops * (1 - CLOSE) <= came <= flops


@pytest.mark.parametrize("name", ALLOCATIONS)
def test_close_to_a_target_of_parameters(name: str) -> None:
    cost = cost_of("cifar-resnet56")
    target = Target(budget=Budget(params=0.4))
    widths = allocate(name, cost, target, scores=random_scores(cost, 0), keep_ratios=random_ratios(cost, 0))
    assert 0.4 * (1 - CLOSE) <= fractions(cost, widths)[1] <= 0.4


@pytest.mark.parametrize("name", ALLOCATIONS)
def test_a_budget_of_one_keeps_all(name: str) -> None:
    cost = cost_of("cifar-resnet56")
    widths = allocate(name, cost, Target(budget=Budget(flops=1.0)), scores=random_scores(cost, 0), keep_ratios={})
    assert widths.tolist() == cost.num_channels.tolist()


@pytest.mark.parametrize("name", ALLOCATIONS)
def test_a_larger_target_gives_no_fewer_flops(name: str) -> None:
    cost = cost_of("cifar-resnet56")
    scores, ratios = random_scores(cost, 1), random_ratios(cost, 1)
    flops = [
        int(cost.flops(allocate(name, cost, Target(budget=Budget(flops=float(f))), scores=scores, keep_ratios=ratios)))
        for f in np.linspace(0.05, 1.0, 20)
    ]
    assert flops == sorted(flops)


@pytest.mark.parametrize("name", ALLOCATIONS)
def test_the_same_request_gives_the_same_widths(name: str) -> None:
    cost = cost_of("cifar-resnet56")
    one, other = (
        allocate(
            name,
            cost,
            Target(budget=Budget(flops=0.3), multiple_of=4),
            scores=random_scores(cost, 1),
            keep_ratios=random_ratios(cost, 1),
        )
        for _ in range(2)
    )
    assert one.tolist() == other.tolist()


def test_ratios_keep_their_proportions() -> None:
    """A group that is asked for half of another's share gets about half of it, wherever the scale ends."""
    cost = cost_of("cifar-resnet56")
    names = cost.group_names
    asked = {name: 0.8 if number % 2 else 0.4 for number, name in enumerate(names)}
    widths = allocate("ratios", cost, Target(budget=Budget(flops=0.2)), scores={}, keep_ratios=asked)
    share = widths / cost.num_channels
    assert abs(share[1::2].mean() / share[::2].mean() - 2.0) < 0.2


def test_uniform_is_uniform() -> None:
    cost = cost_of("resnet50")
    widths = allocate("uniform", cost, Target(budget=Budget(flops=0.25)), scores={}, keep_ratios={"anything": 0.1})
    share = widths / cost.num_channels
    assert share.max() - share.min() <= 1.5 / cost.num_channels.min()


def test_global_rank_keeps_the_best_of_all() -> None:
    """By hand: three classes of scores over two groups of 8 and 6 channels, of the same mean."""
    cost = cost_of("Residual")
    assert cost.group_names == ("stem", "conv1")
    flat, steep = np.full(8, 1.0), np.array([2.0, 2.0, 2.0, 0.0, 0.0, 0.0])
    want = np.array([1, 3])
    target = Target(budget=Budget(flops=int(cost.flops(want)) / cost.dense_flops))
    widths = allocate("global_rank", cost, target, scores={"stem": flat, "conv1": steep}, keep_ratios={})
    assert widths.tolist() == want.tolist()


def test_global_rank_does_not_ask_for_the_scale_of_a_group() -> None:
    cost = cost_of("cifar-resnet56")
    scores = random_scores(cost, 3)
    scaled = {name: values * 10.0**number for number, (name, values) in enumerate(scores.items())}
    target = Target(budget=Budget(flops=0.4))
    one, other = (allocate("global_rank", cost, target, scores=s, keep_ratios={}) for s in (scores, scaled))
    assert np.abs(one - other).max() <= 1


def test_isomorphic_keeps_the_same_fraction_of_every_kind_and_the_best_within_it() -> None:
    """Bottlenecks of ResNet-50: filters of 1x1, filters of 3x3, and streams, each with scores of another size."""
    cost = cost_of("resnet50")
    names, kinds = cost.group_names, cost.kinds
    inner = [kind for kind in np.unique(kinds) if (kinds == kind).sum() == 16]
    assert len(inner) == 2, "the two layers inside of each of the 16 blocks"
    rng = np.random.default_rng(0)
    scores = {
        name: rng.random(int(n)) * 10.0 ** int(k) for name, n, k in zip(names, cost.num_channels, kinds, strict=True)
    }
    widths = allocate(
        "isomorphic", cost, Target(budget=Budget(flops=0.4)), scores=scores, keep_ratios={}, comparable=True
    )
    for kind in inner:
        ours = kinds == kind
        joined = np.concatenate([scores[name] for name, own in zip(names, ours, strict=True) if own])
        threshold = np.sort(joined)[::-1][int(widths[ours].sum()) - 1]
        best = [int((scores[name] >= threshold).sum()) for name, own in zip(names, ours, strict=True) if own]
        assert np.abs(widths[ours] - best).max() <= 1
    shares = [float(widths[kinds == kind].sum() / cost.num_channels[kinds == kind].sum()) for kind in inner]
    assert abs(shares[0] - shares[1]) < 0.01


def test_scores_that_are_all_zero_still_allocate() -> None:
    cost = cost_of("Residual")
    scores = {name: np.zeros(int(n)) for name, n in zip(cost.group_names, cost.num_channels, strict=True)}
    widths = allocate("global_rank", cost, Target(budget=Budget(flops=0.5)), scores=scores, keep_ratios={})
    assert int(cost.flops(widths)) <= 0.5 * cost.dense_flops


def test_select_keeps_the_best_scores() -> None:
    cost = cost_of("Residual")
    scores = {"stem": np.array([3.0, 1, 2, 9, 0, 0, 5, 4]), "conv1": np.array([1.0, 1, 1, 0, 1, 1])}
    candidate = select(scores, cost, np.array([3, 2]), method="l1", settings={"p": 2})
    # Of equal scores the lower index stays.
    assert dict(candidate.kept) == {"stem": (3, 6, 7), "conv1": (0, 1)}
    assert (candidate.method, dict(candidate.settings)) == ("l1", {"p": 2})


@pytest.mark.parametrize("name", ALLOCATIONS)
def test_widths_within_a_budget_of_memory_keep_all_that_its_peak_leaves_alone(name: str) -> None:
    cost = cost_of("cifar-resnet56")
    widths = allocate(
        name,
        cost,
        Target(budget=Budget(memory=0.5)),
        scores=random_scores(cost, 0),
        keep_ratios=random_ratios(cost, 0),
    )
    assert 0.4 * cost.dense_memory < int(cost.memory_bytes(widths)) <= 0.5 * cost.dense_memory


@pytest.mark.parametrize("kind", ["flops", "params"])
def test_a_budget_out_of_reach_is_refused(kind: str) -> None:
    cost = cost_of("cifar-resnet56")
    narrowest = cost.smallest(min_channels=4, multiple_of=1)
    lowest = fractions(cost, narrowest)[0 if kind == "flops" else 1]
    with pytest.raises(BudgetError) as caught:
        check_reachable(cost, Budget(**{kind: lowest * 0.9}), min_channels=4, multiple_of=1)
    message = str(caught.value)
    assert f"--budget-{kind}" in message
    assert f"{lowest:.4f}" in message
    assert "4 channel(s)" in message
    assert "conv" in caught.value.hint
    check_reachable(cost, Budget(**{kind: lowest}), min_channels=4, multiple_of=1)


def test_the_budget_that_the_hint_names_can_be_met() -> None:
    cost = cost_of("cifar-resnet56")
    with pytest.raises(BudgetError) as caught:
        check_reachable(cost, Budget(flops=0.001))
    advised = float(caught.value.hint.rsplit("budget of ", 1)[1].split(" ")[0])
    check_reachable(cost, Budget(flops=advised))


def test_the_layers_that_bind_a_parameter_budget_are_those_of_parameters() -> None:
    cost = cost_of("FlattenLinear")
    with pytest.raises(BudgetError) as caught:
        check_reachable(cost, Budget(params=0.01))
    assert "conv (28 parameters), head (10 parameters), hidden (5 parameters)" in caught.value.hint


def curves(cost: CostModel, seed: int) -> dict[str, np.ndarray]:
    """Curves of damage of another steepness and scale in each group, some of them not convex."""
    rng = np.random.default_rng(seed)
    return {
        name: np.r_[0.0, np.cumsum(np.sort(rng.lognormal(rng.normal(), rng.uniform(0.1, 2), int(n))))]
        if rng.random() < 0.7
        else np.r_[0.0, np.cumsum(rng.lognormal(rng.normal(), 1.0, int(n)))]
        for name, n in zip(cost.group_names, cost.num_channels, strict=True)
    }


def summed(cost: CostModel, damage: dict[str, np.ndarray], widths: np.ndarray) -> float:
    return sum(
        float(damage[name][n - w]) for name, n, w in zip(cost.group_names, cost.num_channels, widths, strict=True)
    )


@pytest.mark.parametrize("network", ["cifar-resnet56", "resnet50"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_least_damage_does_less_than_equal_shares(network: str, seed: int) -> None:
    cost = cost_of(network)
    damage, target = curves(cost, seed), Target(budget=Budget(flops=0.4))
    ours, equal = (
        allocate(name, cost, target, scores={}, keep_ratios={}, damage=damage) for name in ("least_damage", "uniform")
    )
    assert summed(cost, damage, ours) < 0.9 * summed(cost, damage, equal)


@pytest.mark.parametrize("network", ["Residual", "DenseBlock", "Grouped"])
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("flops", [0.3, 0.6])
def test_least_damage_is_near_the_least_of_all_widths(network: str, seed: int, flops: float) -> None:
    cost = cost_of(network)
    damage, target = curves(cost, seed), Target(budget=Budget(flops=flops))
    every = np.array(list(product(*(range(1, int(n) + 1) for n in cost.num_channels))))
    every = every[cost.flops(every) <= flops * cost.dense_flops]
    least = min(summed(cost, damage, widths) for widths in every)
    widths = allocate("least_damage", cost, target, scores={}, keep_ratios={}, damage=damage)
    assert least - 1e-9 <= summed(cost, damage, widths) <= 1.02 * least + 1e-9


def test_least_damage_by_hand() -> None:
    """Groups of 8 and 6 channels: the second one's cost nothing but the last, the first one's all the same."""
    cost = cost_of("Residual")
    damage = {"stem": np.arange(9.0), "conv1": np.array([0.0, 0, 0, 0, 0, 0, 50])}
    want = np.array([8, 1])
    target = Target(budget=Budget(flops=int(cost.flops(want)) / cost.dense_flops))
    assert allocate("least_damage", cost, target, scores={}, keep_ratios={}, damage=damage).tolist() == want.tolist()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("wrong", ["scores", "damage"])
def test_allocations_of_values_that_are_not_finite_end_with_the_group(wrong: str, value: float) -> None:
    """A predicted damage that is no number once kept `least_damage` busy for ever."""
    cost = cost_of("Residual")
    scores, damage = random_scores(cost, 0), curves(cost, 0)
    group = cost.group_names[-1]
    (scores if wrong == "scores" else damage)[group][-1] = value
    target = Target(budget=Budget(flops=0.5))
    for name in ALLOCATIONS:
        with pytest.raises(FloatingPointError, match=f"Group {group}: the .*{wrong} are not all finite"):
            allocate(name, cost, target, scores=scores, keep_ratios={}, damage=damage)


def test_a_budget_of_memory_out_of_reach_names_the_groups_that_live_at_the_peak() -> None:
    cost = cost_of("cifar-resnet56")
    with pytest.raises(BudgetError, match=r"--budget-memory 0\.001: out of reach") as caught:
        check_reachable(cost, Budget(memory=0.001))
    assert "bytes at the peak" in caught.value.hint
    advised = float(caught.value.hint.rsplit("budget of ", 1)[1].split(" ")[0])
    check_reachable(cost, Budget(memory=advised))
