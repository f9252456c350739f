from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from raprune.orchestration.promotion import Outcome
from raprune.orchestration.proposals import RATIOS, Proposals, SearchSpace
from raprune.orchestration.refinement import LOWEST, Seen, child_of, parent_of
from raprune.pareto import hypervolume
from raprune.spec import SamplerSpec
from raprune.trial import Proposal, TrialState

NAMES = tuple("abcdefgh")


def seen(cost: float, error: float, **changes: float) -> Seen:
    return Seen(method="l1", settings={}, ratios=dict.fromkeys(NAMES, 0.5) | changes, cost=cost, error=error)


def test_the_parent_is_of_the_front_and_nearest_to_the_target() -> None:
    front, beaten = [seen(0.4, 0.1), seen(0.2, 0.2), seen(0.1, 0.4)], [seen(0.3, 0.3), seen(0.2, 0.5)]
    assert parent_of([*beaten, *front], 0.31) == front[0], "0.2 is farther off as a ratio"
    assert parent_of([*beaten, *front], 0.21) == front[1]
    assert parent_of([*beaten, *front], 0.01) == front[2]
    assert parent_of([], 0.3) is None


def test_a_child_differs_from_its_parent_in_a_few_groups_by_little() -> None:
    parent = seen(0.3, 0.2, a=1.0, b=LOWEST)
    children = [child_of(parent, [], generator=np.random.default_rng(i)) for i in range(200)]
    assert all(LOWEST <= ratio <= 1.0 for child in children for ratio in child.values())
    assert all(tuple(child) == NAMES for child in children)
    changed = [sum(child[name] != parent.ratios[name] for name in NAMES) for child in children]
    assert 2.5 < np.mean(changed) < 4.5
    factors = [math.log(child["c"] / 0.5) for child in children if child["c"] != 0.5]
    assert abs(np.mean(factors)) < 0.15 and 0.2 < np.std(factors) < 0.4
    again = child_of(parent, [], generator=np.random.default_rng(3))
    assert again == children[3] and children[3] != children[4]


def test_results_tell_which_child_is_worth_a_trial() -> None:
    """Errors fall with the width of `c` and rise with that of `f`, at any cost: children follow."""
    generator = np.random.default_rng(0)
    results = []
    for _ in range(40):
        ratios = dict(zip(NAMES, np.exp(generator.uniform(-1.5, 0, len(NAMES))).tolist(), strict=True))
        cost = float(generator.uniform(0.1, 0.5))
        error = 0.1 / cost * math.exp(0.1 * generator.normal()) * ratios["f"] / ratios["c"] / 10
        results.append(Seen(method="l1", settings={}, ratios=ratios, cost=cost, error=min(1.0, error)))
    other = [Seen(method="l2", settings={}, ratios=one.ratios, cost=one.cost, error=1 - one.error) for one in results]
    parent = seen(0.3, 0.2)
    children = [child_of(parent, [*results, *other], generator=np.random.default_rng(i)) for i in range(50)]
    assert np.mean([child["c"] for child in children]) > 0.55
    assert np.mean([child["f"] for child in children]) < 0.45
    assert 0.45 < np.mean([child["a"] for child in children]) < 0.55


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


def truth(proposal: Proposal) -> Outcome:
    """Ratios brought to the target as their mean; the error grows with their distance from `BEST`, and with the cut."""
    asked = np.array([proposal.keep_ratios.get(name, 1.0) for name in NAMES])
    ratios = np.minimum(1.0, asked * proposal.target_flops / asked.mean())
    apart = np.log(ratios / ratios.mean()) - np.log([BEST[name] for name in NAMES])
    error = min(1.0, 0.05 / proposal.target_flops + 0.05 * float((apart**2).sum()))
    return Outcome(
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
    return hypervolume([outcome.point() for outcome in proposals.outcomes], (1.0, 0.5))


def test_changes_of_the_best_find_more_than_a_sampler_alone() -> None:
    mixed, tpe, random = (
        sum(searched(seed, **spec) for seed in range(3))
        for spec in ({}, {"sampler": "tpe"}, {"sampler": "random", "warm_starts": False})
    )
    assert mixed > tpe > random


def test_a_job_without_ratios_is_given_none() -> None:
    space = replace(SPACE, allocations=("uniform",))
    proposals = Proposals(space, SamplerSpec(trials=20, lookahead=1), seed=0)
    while (proposal := proposals.next()) is not None:
        assert proposal.allocation == "uniform"
        proposals.tell(proposal.number, truth(proposal))
