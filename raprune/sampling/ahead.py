"""Proposals that are made ahead, by a thread of their own, so that nobody who hands them out waits for a model.

A proposal depends on results in the order of proposal alone (`proposals.py`), so it is the same one whenever it is
made: a search finds the same with and without the thread.
"""

from __future__ import annotations

import threading
from collections import deque

from raprune.records import Proposal
from raprune.sampling.point import Point
from raprune.sampling.proposals import Proposals

_FOR_ONE = 4
"""Workers for each proposal that is made ahead. The first trials of all workers end within a fraction of their time, so
that proposals for many are wanted at once. If a time limit ends the search, those that are made are still tried."""


def depth_for(workers: int, lookahead: int) -> int:
    """Number of proposals that are made ahead for so many workers: at least what one of them is given at once."""
    return max(1, workers // _FOR_ONE, at_once(workers, lookahead))


def at_once(workers: int, lookahead: int) -> int:
    """Maximum number of candidates that a worker is given at once.

    With the lookahead for one at a time, twice the workers, nobody waits for the results of another worker.
    """
    return max(1, lookahead // (2 * workers))


class ProposalsAhead:
    """The proposals of a search, up to `depth` of them made before they are asked for.

    The thread begins with the first question; `close` ends it.
    """

    def __init__(self, proposals: Proposals, *, depth: int) -> None:
        self.of = proposals
        self._depth = depth
        self._changed = threading.Condition()
        self._made: deque[Proposal] = deque()
        self._onward: deque[Proposal] = deque()
        """Proposals of a higher rung, which come first: new proposals wait for their results."""
        self._told = 0
        """Number of results so far."""
        self._stuck_at: int | None = None
        """Number of results at which there was nothing to make."""
        self._error: BaseException | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._make_all, daemon=True, name="raprune-proposals")

    def next(self) -> Proposal | None:
        """The next proposal, once it is made; None while all wait for a result, or when there is none.

        Raises:
            Exception: the error that ended the thread.
        """
        with self._changed:
            self._begin()
            while not (self._num_made or self._error or self._closed or self._is_stuck):
                self._changed.wait()
            if self._num_made:
                self._changed.notify_all()
                return (self._onward or self._made).popleft()
            if self._error is not None:
                raise self._error
            return None

    def made(self) -> Proposal | None:
        """The next proposal if it is made already. Does not wait, and does not raise."""
        with self._changed:
            if not self._num_made:
                return None
            self._changed.notify_all()
            return (self._onward or self._made).popleft()

    def tell(self, number: int, point: Point) -> None:
        """Take the result of a proposal, as `Proposals.tell`."""
        self.of.tell(number, point)
        with self._changed:
            self._told += 1
            self._changed.notify_all()

    def close(self) -> None:
        """End the thread, and wait for the proposal that it is making."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join()

    def _begin(self) -> None:
        if self._thread.ident is None and not self._closed:
            self._thread.start()

    @property
    def _num_made(self) -> int:
        return len(self._onward) + len(self._made)

    @property
    def _is_stuck(self) -> bool:
        return self._stuck_at == self._told

    def _make_all(self) -> None:
        try:
            while self._waits_for_room():
                self._deliver(*self._make())
        except BaseException as error:
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _waits_for_room(self) -> bool:
        """Wait until another proposal may be made; False once the queue is closed."""
        with self._changed:
            while not self._closed and (self._is_stuck or self._num_made >= self._depth):
                self._changed.wait()
            return not self._closed

    def _make(self) -> tuple[Proposal | None, int]:
        """The next proposal, and the number of results before it was begun."""
        told = self._told
        return self.of.next(), told

    def _deliver(self, proposal: Proposal | None, told: int) -> None:
        with self._changed:
            if proposal is None:
                # Not if a result came meanwhile: it may have missed that one.
                self._stuck_at = told
            else:
                (self._onward if proposal.rung else self._made).append(proposal)
            self._changed.notify_all()
