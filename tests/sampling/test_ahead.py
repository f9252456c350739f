"""Proposals that a thread makes ahead: the same search, and nothing of the thread outlives it."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from raprune.records import Proposal
from raprune.sampling import sources
from raprune.sampling.ahead import ProposalsAhead, depth_for
from raprune.sampling.proposals import Proposals
from raprune.spec.job import SamplerSpec
from tests.factories import SPACE, outcome, trial_of

SPEC = SamplerSpec(trials=40, lookahead=20)


@contextmanager
def ahead_of(proposals: Proposals, *, depth: int) -> Iterator[ProposalsAhead]:
    ahead = ProposalsAhead(proposals, depth=depth)
    try:
        yield ahead
    finally:
        ahead.close()


def drive(ahead: ProposalsAhead, *, workers: int, order: int) -> list[Proposal]:
    """Run a search to its end with this many workers that finish in a random order; the proposals as they came."""
    draw = random.Random(order)
    given: list[Proposal] = []
    running: list[Proposal] = []
    while not ahead.of.over:
        while len(running) < workers and (proposal := ahead.next()) is not None:
            given.append(proposal)
            running.append(proposal)
        finished = running.pop(draw.randrange(len(running)))
        ahead.tell(finished.number, replace(outcome(finished), rung=finished.rung))
    return given


@pytest.mark.parametrize(("depth", "workers"), [(1, 1), (16, 1), (1, 5), (16, 5)])
def test_search_with_proposals_ahead_is_the_one_without_in_the_same_order(depth: int, workers: int) -> None:
    alone = Proposals(SPACE, SPEC, seed=0)
    expected: list[Proposal] = []
    while (proposal := alone.next()) is not None:
        expected.append(proposal)
        alone.tell(proposal.number, outcome(proposal))
    with ahead_of(Proposals(SPACE, SPEC, seed=0), depth=depth) as ahead:
        assert drive(ahead, workers=workers, order=workers) == expected


def test_search_with_rungs_tries_every_candidate_once_a_rung() -> None:
    spec = SamplerSpec.model_validate({"trials": 27, "lookahead": 20, "rungs": [0, 1, 2]})
    tried: list[set[str]] = []
    for depth, workers in ((1, 1), (4, 6)):
        with ahead_of(Proposals(SPACE, spec, seed=0), depth=depth) as ahead:
            given = [proposal.trial_id for proposal in drive(ahead, workers=workers, order=depth)]
        assert len(set(given)) == len(given)
        tried.append(set(given))
    assert tried[0] == tried[1] > {f"search-{number:05d}" for number in range(27)}


def test_proposals_ahead_are_no_more_than_the_depth_and_none_without_a_result() -> None:
    proposals = Proposals(SPACE, SPEC, seed=0)
    with ahead_of(proposals, depth=3) as ahead:
        first = ahead.next()
        assert first is not None
        while len(proposals.proposals) < 4:
            pass
        given = [first, *(proposal for proposal in iter(ahead.next, None) if proposal is not None)]
        assert len(given) == len(proposals.proposals) == SPEC.lookahead
        ahead.tell(1, outcome(given[1]))
        assert ahead.next() is None, "the first result is missing"
        ahead.tell(0, outcome(given[0]))
        assert [ahead.next() is not None for _ in range(3)] == [True, True, False]


@pytest.mark.parametrize(("trials", "lookahead", "done_before"), [(40, 6, 15), (90, 32, 55)])
def test_killed_search_loses_no_proposal_that_was_made_ahead(
    trials: int, lookahead: int, done_before: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 32 under way the search is killed while several proposals share a litter, as those of many workers do."""
    monkeypatch.setattr(sources, "_FOR_LITTER", 8)
    spec = SamplerSpec(trials=trials, lookahead=lookahead)
    with ahead_of(Proposals(SPACE, spec, seed=0), depth=1) as ahead:
        expected = drive(ahead, workers=1, order=0)
    with ahead_of(Proposals(SPACE, spec, seed=0), depth=5) as ahead:
        done = []
        for _ in range(done_before):
            proposal = ahead.next()
            assert proposal is not None
            ahead.tell(proposal.number, outcome(proposal))
            done.append(trial_of(proposal))
    with ahead_of(Proposals(SPACE, spec, seed=0, stored=done), depth=5) as ahead:
        assert [trial.proposal for trial in done] + drive(ahead, workers=1, order=0) == expected


def test_error_of_the_thread_is_raised_where_the_proposal_is_asked_for() -> None:
    class Broken:
        def hear(self, point: object) -> None:
            pass

        def __call__(self) -> bool:
            raise ValueError("the model is singular")

    with ahead_of(Proposals(SPACE, SPEC, seed=0, enough=Broken()), depth=2) as ahead:
        for _ in range(2):
            with pytest.raises(ValueError, match="the model is singular"):
                ahead.next()


def test_closed_queue_leaves_no_thread_and_gives_nothing_more() -> None:
    proposals = Proposals(SPACE, SPEC, seed=0)
    # Another test of this process may have left a queue open.
    before = set(threading.enumerate())
    with ahead_of(proposals, depth=2) as ahead:
        assert ahead.next() is not None
        assert [thread.name for thread in set(threading.enumerate()) - before] == ["raprune-proposals"]
    assert set(threading.enumerate()) <= before
    made = len(proposals.proposals)
    while ahead.next() is not None:
        pass
    assert len(proposals.proposals) == made


def test_proposal_that_is_not_made_is_not_waited_for() -> None:
    with ahead_of(Proposals(SPACE, SPEC, seed=0), depth=2) as ahead:
        assert ahead.made() is None, "nothing is made before the first question"
        first = ahead.next()
        second = ahead.next()
        assert first is not None and second is not None and second.number == first.number + 1


@pytest.mark.parametrize(
    ("workers", "lookahead", "depth"), [(1, 4, 2), (4, 8, 1), (8, 16, 2), (1000, 2000, 250), (2, 80, 20)]
)
def test_depth_is_a_quarter_of_the_workers_and_what_one_of_them_is_given(
    workers: int, lookahead: int, depth: int
) -> None:
    assert depth_for(workers, lookahead) == depth
