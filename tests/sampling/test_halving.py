"""Successive halving without a cluster: who goes on, whoever finishes first."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raprune.pareto import Fronts
from raprune.records import Proposal, TrialState
from raprune.sampling.halving import RungDecision, SuccessiveHalving
from raprune.sampling.point import Point
from raprune.sampling.promotion import is_promoted
from raprune.sampling.proposals import Proposals
from raprune.spec.job import SamplerSpec
from tests.factories import SPACE, promoted_by_definition


def outcome(number: int, rung: int, accuracy: float, flops: float, state: TrialState) -> Point:
    return Point(
        trial_id=f"search-{number:05d}", state=state, rung=rung, accuracy=accuracy, flops_fraction=flops, candidate="c"
    )


def last_is_promoted(points: Sequence[tuple[float, float]], keep: float) -> bool:
    """True if the last of the candidates that came to a rung goes on, by adding one after another."""
    fronts = Fronts()
    return [is_promoted(fronts, point, keep) for point in points][-1]


@pytest.mark.parametrize(
    ("points", "keep", "expected"),
    [
        ([(0.5, 0.5)], 0.1, True),  # at least one goes on
        ([(0.2, 0.2), (0.5, 0.5)], 0.5, False),  # dominated
        ([(0.5, 0.5), (0.2, 0.2)], 0.5, True),
        ([(0.1, 0.9), (0.9, 0.1), (0.5, 0.5)], 0.5, False),  # the ends of a front are lonelier, and two of three go on
        ([(0.1, 0.9), (0.9, 0.1), (0.5, 0.5)], 1.0, True),
        ([(0.1, 0.9), (0.5, 0.5), (0.51, 0.49), (0.9, 0.1)], 0.5, True),
        ([(0.5, 0.5), (0.5, 0.5), (0.5, 0.5)], 1 / 3, False),  # of equals the first came first
        ([(0.6, 0.6), (0.5, 0.7), (0.4, 0.4)], 1 / 3, True),
    ],
)
def test_best_fraction_by_front_rank_and_crowding_is_promoted(
    points: list[tuple[float, float]], keep: float, expected: bool
) -> None:
    assert last_is_promoted(points, keep) is expected


coordinates = st.one_of(st.integers(0, 6).map(lambda i: i / 4), st.floats(0.0, 2.0, width=32), st.just(math.nan))


@given(st.lists(st.tuples(coordinates, coordinates), min_size=1, max_size=40), st.sampled_from([0.1, 1 / 3, 0.5, 0.9]))
def test_decisions_one_by_one_are_those_of_the_definition(points: list[tuple[float, float]], keep: float) -> None:
    fronts = Fronts()
    found = [is_promoted(fronts, point, keep) for point in points]
    assert found == [promoted_by_definition(points[: n + 1], keep) for n in range(len(points))]


def climb(count: int, keep: float, order: random.Random, *, failing: int = -1) -> dict[int, int]:
    """Number -> the rung where it ended, of 20 candidates whose results come in a random order."""
    truth = random.Random(5)
    points = [(truth.random(), truth.random()) for _ in range(20)]
    rungs, ended = SuccessiveHalving(count, keep), dict[int, int]()
    due = [(number, 0) for number in range(20)]
    while due:
        number, rung = due.pop(order.randrange(len(due)))
        state = TrialState.FAILED if number == failing and rung == 0 else TrialState.STOPPED
        for decision in rungs.tell(number, outcome(number, rung, 1 - points[number][0], points[number][1], state)):
            assert decision.point.trial_id == f"search-{decision.number:05d}"
            if decision.next_rung is None:
                ended[decision.number] = decision.point.rung
            else:
                assert decision.next_rung == decision.point.rung + 1
                due.append((decision.number, decision.next_rung))
    return ended


def test_the_order_of_completion_does_not_matter() -> None:
    truth = random.Random(5)
    points = [(truth.random(), truth.random()) for _ in range(20)]
    one_by_one, members = dict.fromkeys(range(20), 0), list(range(20))
    for rung in (1, 2):
        members = [n for i, n in enumerate(members) if last_is_promoted([points[m] for m in members[: i + 1]], 0.4)]
        one_by_one |= dict.fromkeys(members, rung)
    expected = climb(3, 0.4, random.Random(0))
    assert expected == one_by_one and set(expected.values()) == {0, 1, 2}
    for seed in range(1, 20):
        assert climb(3, 0.4, random.Random(seed)) == expected


def test_the_last_rung_waits_for_nobody() -> None:
    rungs = SuccessiveHalving(1, 0.5)
    late = outcome(7, 0, 0.5, 0.5, TrialState.COMPLETE)
    assert rungs.tell(7, late) == [RungDecision(7, late, None)]


def test_a_decision_waits_for_those_before_it_and_no_others() -> None:
    rungs = SuccessiveHalving(2, 0.5)
    first, second = (outcome(n, 0, 0.5 + 0.1 * n, 0.5, TrialState.STOPPED) for n in range(2))
    assert rungs.tell(1, second) == []
    decisions = rungs.tell(0, first)
    assert [(d.number, d.next_rung) for d in decisions] == [(0, 1), (1, 1)]


def test_a_failed_candidate_ends_and_holds_up_nobody() -> None:
    assert climb(2, 0.5, random.Random(0), failing=4)[4] == 0


def test_a_search_with_rungs_proposes_the_same_whatever_the_workers() -> None:
    spec = SamplerSpec(trials=24, lookahead=4, rungs=(0, 1, 3), keep=0.5)
    alone, four = (run(spec, workers, random.Random(workers)) for workers in (1, 4))
    assert alone == four
    by_rung = [sorted(p.number for p in alone if p.rung == rung) for rung in range(3)]
    assert by_rung[0] == list(range(24)) and set(by_rung[2]) < set(by_rung[1]) < set(by_rung[0])
    for proposal in alone:
        if proposal.rung:
            before = f"search-{proposal.number:05d}" + (f"-r{proposal.rung - 1}" if proposal.rung > 1 else "")
            assert proposal.parent == before and proposal.trial_id == f"search-{proposal.number:05d}-r{proposal.rung}"


def run(spec: SamplerSpec, workers: int, order: random.Random) -> list[Proposal]:
    proposals, running, done = Proposals(SPACE, spec, seed=3), list[Proposal](), list[Proposal]()
    while not proposals.over:
        while len(running) < workers and (proposal := proposals.next()) is not None:
            running.append(proposal)
        ended = running.pop(order.randrange(len(running)))
        last = ended.rung == len(spec.rungs) - 1
        state = TrialState.COMPLETE if last else TrialState.STOPPED
        truth = random.Random(ended.number)
        assert ended.target.flops is not None
        proposals.tell(
            ended.number,
            Point(
                trial_id=ended.trial_id,
                state=state,
                rung=ended.rung,
                accuracy=truth.random() + 0.1 * ended.rung,
                flops_fraction=ended.target.flops,
                candidate=f"c{ended.number}",
            ),
        )
        done.append(ended)
    assert all(o.state is TrialState.COMPLETE for o in proposals.points if o.rung == len(spec.rungs) - 1)
    return sorted(done, key=lambda p: p.trial_id)
