from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from raprune.pareto import hypervolume, non_dominated
from raprune.records import Proposal, Setting, TrialState
from raprune.sampling.gaussian_process import forward_solved
from raprune.sampling.mutation import (
    ENOUGH,
    LOWEST,
    PARENTS,
    PENDING,
    TARGETS,
    Litter,
    Mutator,
    _normal,
    expected_gains,
    nearest_to,
    targets_in,
)
from raprune.sampling.point import Point
from raprune.sampling.proposals import Proposals
from raprune.sampling.space import RATIOS, SearchSpace
from raprune.spec.job import SamplerSpec

NAMES = tuple("abcdefgh")


def seen(cost: float, error: float, **changes: float) -> Point:
    return result(method="l1", settings={}, ratios=dict.fromkeys(NAMES, 0.5) | changes, cost=cost, error=error)


def result(
    *, method: str, settings: Mapping[str, Setting], ratios: Mapping[str, float], cost: float, error: float
) -> Point:
    return Point(
        trial_id="",
        state=TrialState.COMPLETE,
        method=method,
        settings=settings,
        keep_ratios=ratios,
        flops_fraction=cost,
        accuracy=1 - error,
    )


def front(results: Sequence[Point], target: float) -> list[Point]:
    """The members of the front that children for a target are made of."""
    best = [results[index] for index in non_dominated([one.objectives() for one in results])]
    return [best[index] for index in nearest_to(np.array([one.flops_fraction for one in best]), target)]


def child(results: Sequence[Point], targets: list[float], seed: int = 0, *, pending: Sequence[Point] = ()) -> Point:
    mutator = Mutator(NAMES, cost="flops", highest=0.5)
    for one in results:
        mutator.learn(one)
    return mutator.child(mutator.litter(targets, generator=np.random.default_rng(seed), pending=pending))


def test_parents_are_the_members_of_the_front_nearest_to_the_target() -> None:
    costs = np.array([0.1, 0.2, 0.4])
    assert nearest_to(costs, 0.31).tolist() == [2, 1, 0], "0.2 is farther off as a ratio"
    assert nearest_to(costs, 0.21).tolist() == [1, 2, 0]
    assert nearest_to(costs, 0.01)[0] == 0
    assert len(nearest_to(np.linspace(0.1, 0.5, 9), 0.3)) == PARENTS
    best = [seen(0.4, 0.1), seen(0.2, 0.2), seen(0.1, 0.4)]
    beaten = [replace(seen(0.3, 0.3), method="l2"), replace(seen(0.2, 0.5), method="l2")]
    assert {child([*beaten, *best], [target], seed).method for seed in range(9) for target in (0.3, 0.2)} == {"l1"}


def test_targets_cover_the_range() -> None:
    targets = targets_in(0.05, 0.5, generator=np.random.default_rng(0))
    assert targets != sorted(targets) and all(0.05 <= target <= 0.5 for target in targets)
    places = np.floor(np.log(np.array(sorted(targets)) / 0.05) / math.log(10) * TARGETS)
    assert places.tolist() == list(range(TARGETS))


def test_a_child_differs_from_its_parent_in_a_few_groups_by_little() -> None:
    """Of few results: the first child of the member that is nearest to the first target."""
    parents = [seen(0.3, 0.2, a=1.0, b=LOWEST), seen(0.2, 0.3, a=0.9, b=0.9)]
    found = [child(parents, [0.31, 0.1], seed) for seed in range(200)]
    assert {one.flops_fraction for one in found} == {0.31}
    parent, children = parents[0], [one.keep_ratios for one in found]
    assert all(LOWEST <= ratio <= 1.0 for child in children for ratio in child.values())
    assert all(tuple(child) == NAMES for child in children)
    changed = [sum(child[name] != parent.keep_ratios[name] for name in NAMES) for child in children]
    assert 2.5 < np.mean(changed) < 4.5
    factors = [math.log(child["c"] / 0.5) for child in children if child["c"] != 0.5]
    assert abs(np.mean(factors)) < 0.15 and 0.2 < np.std(factors) < 0.4
    assert child(parents, [0.31, 0.1], 3) == found[3] and found[3] != found[4]


def made_up(count: int, error: Callable[[dict[str, float], dict[str, Setting], float], float]) -> list[Point]:
    """Results with random ratios, costs and settings; `error` is told those."""
    generator = np.random.default_rng(0)
    results = []
    for _ in range(count):
        ratios = dict(zip(NAMES, np.exp(generator.uniform(-1.5, 0, len(NAMES))).tolist(), strict=True))
        cost = float(generator.uniform(0.1, 0.5))
        settings: dict[str, Setting] = {"form": str(generator.choice(["a", "b"])), "share": float(generator.random())}
        value = error(ratios, settings, cost) * math.exp(0.05 * generator.normal())
        results.append(result(method="l1", settings=settings, ratios=ratios, cost=cost, error=min(1.0, value)))
    return results


def test_results_tell_which_child_is_worth_a_trial() -> None:
    """Errors fall with the width of `c` and rise with that of `f`, at any cost: children follow."""
    results = made_up(40, lambda ratios, _, cost: 0.1 / cost * ratios["f"] / ratios["c"] / 10)
    other = [
        replace(one, method="l2", settings={"ridge": 0.1}, accuracy=max(0.0, 2 * one.accuracy - 1)) for one in results
    ]
    parents = front([*results, *other], 0.3)
    children = [child([*results, *other], [0.3], seed) for seed in range(50)]
    assert {one.method for one in children} == {"l1"}

    def middle(ones: Sequence[Point], name: str) -> float:
        return float(np.mean([math.log(one.keep_ratios[name]) for one in ones]))

    assert middle(children, "c") > middle(parents, "c")
    assert middle(children, "f") < middle(parents, "f") - 0.3
    others = [name for name in NAMES if name not in "cf"]
    assert abs(np.mean([middle(children, name) - middle(parents, name) for name in others])) < 0.1


def test_the_model_sees_where_the_best_widths_lie_though_settings_matter_more() -> None:
    """Least error at `c` twice the others' width: no farther. A setting that ruins results hides none of it."""

    def error(ratios: dict[str, float], settings: dict[str, Setting], cost: float) -> float:
        apart = math.log(ratios["c"]) - np.mean([math.log(ratio) for ratio in ratios.values()]) - math.log(2)
        return 0.03 / cost * math.exp(0.5 * apart**2) * (2.0 if settings["form"] == "b" else 1.0)

    results = made_up(120, error)
    found = [child(results, [0.3], seed) for seed in range(50)]
    shapes = [
        math.log(one.keep_ratios["c"]) - np.mean([math.log(r) for r in one.keep_ratios.values()]) for one in found
    ]
    assert abs(np.median(shapes) - math.log(2)) < 0.3
    assert {one.settings["form"] for one in found} == {"a"}, "of several parents, one with the better setting"
    expected = [error(dict(one.keep_ratios), dict(one.settings), 0.3) for one in found]
    assert np.allclose([(1 - one.accuracy) for one in found], expected, rtol=0.3)


def test_gains_are_the_area_that_is_expected_to_be_added() -> None:
    front = np.array([[0.5, 0.1], [0.2, 0.3]])
    mean, deviation = np.log([0.3, 0.3, 0.1, 0.9, 0.6]), np.full(5, 1e-9)
    gains = expected_gains(front, np.array([0.2, 0.35, 0.4, 0.2, 0.05]), mean, deviation, highest=0.5)
    by_hand = [0.1 * 0.2, 0.0, 0.1 * 0.1, 0.0, 0.05 * 0.4]
    assert np.allclose(gains, by_hand, atol=1e-6)
    generator = np.random.default_rng(0)
    drawn = np.exp(math.log(0.3) + 0.4 * generator.normal(size=4000))
    reached = hypervolume([(0.5, 0.1), (0.2, 0.3)], (1.0, 0.5))
    simulated = [hypervolume([(0.5, 0.1), (0.2, 0.3), (e, 0.2)], (1.0, 0.5)) - reached for e in drawn]
    (expected,) = expected_gains(front, np.array([0.2]), np.log([0.3]), np.array([0.4]), highest=0.5)
    assert abs(expected - np.mean(simulated)) < 4 * np.std(simulated) / math.sqrt(len(simulated))


def test_a_child_is_made_for_the_cost_at_which_the_front_gains_most() -> None:
    """Errors as the cost says, but nothing was tried between 0.15 and 0.35: there the front has a step to fill."""
    results = [one for one in made_up(80, lambda _, __, cost: 0.05 / cost) if not 0.15 < one.flops_fraction < 0.35]
    targets = targets_in(0.1, 0.5, generator=np.random.default_rng(1))
    chosen = [child(results, targets, seed) for seed in range(20)]
    assert all(0.15 < one.flops_fraction < 0.35 for one in chosen)
    # Once one is under way there, the next one seeks elsewhere or at a distance.
    apart = [
        abs(math.log(child(results, targets, seed + 1, pending=[one]).flops_fraction / one.flops_fraction))
        for seed, one in enumerate(chosen)
    ]
    assert min(apart) > 0.1


def test_a_child_is_the_same_in_a_search_that_was_interrupted() -> None:
    """The model of a number of results is the same, whether others came before or after it was asked for."""
    results = made_up(90, lambda _, __, cost: 0.05 / cost)
    targets = targets_in(0.1, 0.5, generator=np.random.default_rng(0))
    pending = [child(results, targets, seed) for seed in range(3)]
    through, resumed = (Mutator(NAMES, cost="flops", highest=0.5) for _ in range(2))
    for number, one in enumerate(results):
        through.learn(one)
        resumed.learn(one)
        if number >= ENOUGH:
            through.child(through.litter(targets, generator=np.random.default_rng(number), count=number - 3))
    children = []
    for mutator in (through, resumed):
        litter = mutator.litter(
            targets, generator=np.random.default_rng(1), pending=pending, count=80, count_of_kernel=70
        )
        children.append(mutator.child(litter))
    assert children[0] == children[1] != child(results, targets, 1, pending=pending)


@pytest.mark.parametrize("results", [3, 60])
def test_children_of_one_litter_that_are_tried_in_a_row_are_different_and_spread(results: int) -> None:
    mutator = Mutator(NAMES, cost="flops", highest=0.5)
    for one in made_up(results, lambda _, __, cost: 0.05 / cost):
        mutator.learn(one)
    generator = np.random.default_rng(0)
    litter = mutator.litter(targets_in(0.1, 0.5, generator=generator), generator=generator)
    chosen: list[Point] = []
    for _ in range(16):
        chosen.append(mutator.child(litter, chosen=chosen))
    assert len({tuple(one.keep_ratios.values()) for one in chosen}) == 16
    if results > ENOUGH:
        assert len({one.flops_fraction for one in chosen}) > 4, "a child that is under way fills its gap"


def test_only_the_last_pending_proposals_count() -> None:
    results = made_up(60, lambda _, __, cost: 0.05 / cost)
    targets = targets_in(0.1, 0.5, generator=np.random.default_rng(0))
    first, last = child(results, targets), made_up(PENDING, lambda _, __, cost: 0.05 / cost)
    assert child(results, targets, pending=[first]) != first, "it would fill the same gap"
    assert child(results, targets, pending=[first, *last]) == child(results, targets, pending=last)


def test_proposals_under_way_count_alike_before_a_litter_and_within_it() -> None:
    """With or without their share in the model that the litter is predicted by, the same child is chosen."""
    results = made_up(60, lambda _, __, cost: 0.05 / cost)
    targets = targets_in(0.1, 0.5, generator=np.random.default_rng(0))
    mutator = Mutator(NAMES, cost="flops", highest=0.5)
    for one in results:
        mutator.learn(one)

    def litter(pending: Sequence[Point]) -> Litter:
        return mutator.litter(targets, generator=np.random.default_rng(1), pending=pending)

    alone = mutator.child(litter([]))
    under_way = [*made_up(4, lambda _, __, cost: 0.05 / cost), alone, *results[:4]]
    chosen = [mutator.child(litter(under_way[:n]), chosen=under_way[n:]) for n in (0, 4, 9)]
    assert chosen[0].keep_ratios == chosen[1].keep_ratios == chosen[2].keep_ratios != alone.keep_ratios
    assert np.ptp([one.accuracy for one in chosen]) < 1e-9


def test_normal_distribution_is_that_of_the_error_function() -> None:
    values = np.linspace(-12, 12, 3001)
    exact = np.array([math.erfc(-value / math.sqrt(2)) / 2 for value in values])
    assert np.abs(_normal(values) - exact).max() < 1e-12


def test_triangular_solve_is_that_of_numpy() -> None:
    generator = np.random.default_rng(0)
    lower = np.tril(generator.normal(size=(200, 200))) + 20 * np.eye(200)
    right = generator.normal(size=(200, 7))
    assert np.allclose(forward_solved(lower, right), np.linalg.solve(lower, right), rtol=1e-12, atol=1e-14)


def test_hyper_parameters_become_numbers() -> None:
    """What is new, constant, of another kind or of another method alone leaves the model able to choose."""
    results = made_up(30, lambda *_: 0.3)
    strange = [replace(one, settings={"form": "a", "on": i % 2 == 0, "share": 3}) for i, one in enumerate(results)]
    strange += [replace(one, method="l2", settings={}) for one in results]
    parent = replace(seen(0.05, 0.01), settings={"form": "new", "on": True, "share": 3})
    chosen = child([parent, *strange], [0.3])
    assert (chosen.method, chosen.settings) == ("l1", parent.settings)
    assert all(LOWEST <= ratio <= 1.0 for ratio in chosen.keep_ratios.values())


def test_a_front_that_nothing_can_gain_on_still_has_children_all_over() -> None:
    results = [seen(0.05, 0.0, a=0.1 * (i + 1)) for i in range(ENOUGH)]
    chosen = [child(results, targets_in(0.1, 0.5, generator=np.random.default_rng(i)), i) for i in range(20)]
    assert len({one.flops_fraction for one in chosen}) > 15
    assert all((1 - one.accuracy) < 0.01 for one in chosen)


SPACE = SearchSpace(
    methods=("l1",),
    allocations=(RATIOS, "uniform"),
    blocks=tuple((name,) for name in NAMES),
    channels=dict.fromkeys(NAMES, 64),
    lowest=0.1,
    highest=0.5,
)
BEST = {name: 2.0 ** ((i % 4) - 1.5) for i, name in enumerate(NAMES)}
"""Of the made-up truth: the widths that do least harm, as multiples of equal ones."""


def truth(proposal: Proposal) -> Point:
    """Ratios brought to the target as their mean; the error grows with their distance from `BEST`, and with the cut."""
    assert proposal.target.flops is not None
    asked = np.array([proposal.keep_ratios.get(name, 1.0) for name in NAMES])
    ratios = np.minimum(1.0, asked * proposal.target.flops / asked.mean())
    apart = np.log(ratios / ratios.mean()) - np.log([BEST[name] for name in NAMES])
    error = min(1.0, 0.05 / proposal.target.flops + 0.05 * float((apart**2).sum()))
    return Point(
        trial_id=proposal.trial_id,
        state=TrialState.COMPLETE,
        candidate=str(proposal.number),
        accuracy=1 - error,
        flops_fraction=float(ratios.mean()),
        method=proposal.method,
        widths={name: max(1, round(64 * ratio)) for name, ratio in zip(NAMES, ratios.tolist(), strict=True)},
    )


def searched(seed: int, **spec: Any) -> float:
    """The hypervolume of 60 trials."""
    proposals = Proposals(SPACE, SamplerSpec.model_validate({"trials": 60, "lookahead": 2, **spec}), seed=seed)
    while not proposals.over:
        proposal = proposals.next()
        assert proposal is not None
        proposals.tell(proposal.number, truth(proposal))
    return hypervolume([outcome.objectives() for outcome in proposals.points], (1.0, 0.5))


def test_changes_of_the_best_find_more_than_a_sampler_alone() -> None:
    mixed, tpe, random = (
        sum(searched(seed, **spec) for seed in range(3))
        for spec in ({}, {"sampler": "tpe"}, {"sampler": "random", "warm_starts": False})
    )
    assert mixed > tpe > random


def test_the_sampler_leaves_the_widths_to_the_changes() -> None:
    """Five of six proposals after the warm starts are changes; what the sampler draws between has no ratios."""
    proposals = Proposals(SPACE, SamplerSpec(trials=60, lookahead=1), seed=0)
    while (proposal := proposals.next()) is not None:
        proposals.tell(proposal.number, truth(proposal))
    allocations = [proposal.allocation for proposal in proposals.proposals.values()]
    turns = [set(allocations[20 + number :: 6]) for number in range(6)]
    assert sorted(turns, key=sorted) == [{RATIOS}] * 5 + [{"uniform"}]


def test_a_search_of_ratios_alone_has_them_of_the_sampler_too() -> None:
    space = replace(SPACE, allocations=(RATIOS,), baselines=("random",))
    proposals = Proposals(space, SamplerSpec(trials=20, lookahead=1), seed=0)
    methods = []
    while (proposal := proposals.next()) is not None:
        methods.append(proposal.method)
        if proposal.method == "random":
            assert proposal.allocation == "uniform", "a baseline draws nothing"
        else:
            assert proposal.allocation == RATIOS and set(proposal.keep_ratios) == set(NAMES)
        proposals.tell(proposal.number, truth(proposal))
    assert 1 <= methods.count("random") <= 5


def test_a_job_without_ratios_is_given_none() -> None:
    space = replace(SPACE, allocations=("uniform",))
    proposals = Proposals(space, SamplerSpec(trials=20, lookahead=1), seed=0)
    while (proposal := proposals.next()) is not None:
        assert proposal.allocation == "uniform"
        proposals.tell(proposal.number, truth(proposal))


def test_children_take_one_block_out_or_put_it_back_at_most() -> None:
    gates = ("x", "y", "z")
    mutator = Mutator(NAMES, gates=gates, cost="flops", highest=0.5)
    for one in (seen(0.3, 0.2, x=0.0, y=1.0, z=1.0), seen(0.1, 0.4, x=1.0, y=1.0, z=1.0)):
        mutator.learn(one)
    found = [mutator.child(mutator.litter([0.31], generator=np.random.default_rng(seed))) for seed in range(60)]
    now = [tuple(one.keep_ratios[gate] for gate in gates) for one in found]
    assert {state for state in now if state != (0.0, 1.0, 1.0)} == {(1.0, 1.0, 1.0), (0.0, 0.0, 1.0), (0.0, 1.0, 0.0)}
    assert 0.3 < sum(state == (0.0, 1.0, 1.0) for state in now) / len(now) < 0.7
    plain = child([seen(0.3, 0.2), seen(0.1, 0.4)], [0.31], 5)
    assert {name: found[5].keep_ratios[name] for name in NAMES} == dict(plain.keep_ratios)
