"""A worker of the search sends the record of a trial and goes to its next task, two records ahead at most."""

from __future__ import annotations

from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest

from raprune.errors import StoreError
from raprune.orchestration.tasks import CandidateTask
from raprune.orchestration.workers import trials
from raprune.orchestration.workers.trials import RECORDS_AHEAD, CandidateTrial
from raprune.records import Proposal
from raprune.spec.budget import Budget
from tests.factories import live_trial


class Records:
    """A coordinator that has received records, and the order in which a worker waited for them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sent: list[str] = []
        self.waited: list[str] = []
        self.refused: set[str] = set()
        monkeypatch.setattr(trials, "ask", self._ask)

    def remote(self, recorded: Any, session: str) -> str:
        assert session == "session"
        self.sent.append(recorded[-1].trial_id)
        return self.sent[-1]

    def _ask(self, reference: str) -> None:
        self.waited.append(reference)
        if reference in self.refused:
            raise StoreError("no space left")


@pytest.fixture
def records(monkeypatch: pytest.MonkeyPatch) -> Records:
    return Records(monkeypatch)


def worker(records: Records, *, rungs: tuple[float, ...] = (0.0,)) -> CandidateTrial:
    made = CandidateTrial.__new__(CandidateTrial)
    made._sent = deque()
    made._shared = SimpleNamespace(  # type: ignore[assignment]
        coordinator=SimpleNamespace(record=records),
        session="session",
        spec=SimpleNamespace(search=SimpleNamespace(rungs=rungs)),
    )
    return made


def task(number: int, parent: Proposal | None = None) -> CandidateTask:
    return CandidateTask(live_trial(number).proposal, parent)


def test_worker_waits_for_a_record_once_two_others_are_on_their_way(records: Records) -> None:
    one = worker(records)
    for number in range(5):
        one._record(task(number), [live_trial(number)])
        assert len(records.sent) - len(records.waited) == min(number + 1, RECORDS_AHEAD)
    assert records.waited == records.sent[:3], "the oldest first"
    one._wait_for_records(left=0)
    assert records.waited == records.sent


@pytest.mark.parametrize(
    ("rungs", "parent"),
    [((0.0, 1.0), None), ((0.0,), Proposal(number=0, method="l2", allocation="uniform", target=Budget(flops=0.2)))],
)
def test_record_of_a_trial_that_others_continue_is_waited_for(
    records: Records, rungs: tuple[float, ...], parent: Proposal | None
) -> None:
    one = worker(records, rungs=rungs)
    one._record(task(1, parent), [live_trial(1)])
    assert records.waited == records.sent == ["search-00001"]


def test_record_that_fails_is_an_error_of_a_later_one(records: Records) -> None:
    one = worker(records)
    records.refused = {"search-00000"}
    one._record(task(0), [live_trial(0)])
    one._record(task(1), [live_trial(1)])
    with pytest.raises(StoreError, match="no space left"):
        one._record(task(2), [live_trial(2)])
