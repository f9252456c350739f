"""The virtual clock: events, the driver's thread, and the thread that makes proposals beside it."""

from __future__ import annotations

import heapq
import itertools
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from raprune.records import Proposal
from raprune.sampling.ahead import ProposalsAhead
from raprune.sampling.proposals import Proposals


class Clock:
    """Virtual seconds. They pass while the driver computes, by its CPU time, and while it waits.

    The driver and `maker`, the thread beside it, share the interpreter: while both compute, each takes half of the
    time. That is more than they take in fact, as NumPy lets go of the interpreter.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.parts: dict[str, float] = defaultdict(float)
        """Part -> real seconds that were charged for it."""
        self.maker: Maker | None = None
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._part = "Tune"
        self._due = 0.0
        """CPU seconds of the driver that have not passed on the clock."""
        self._mark = 0.0
        """CPU time of this process's thread up to which the driver was charged."""

    def at(self, when: float, action: Callable[[], None]) -> None:
        """Call `action` at a time of the virtual clock."""
        heapq.heappush(self._events, (when, next(self._numbers), action))

    # The driver

    def resume(self) -> None:
        """Charge the driver from now on."""
        self._mark = time.thread_time()

    @contextmanager
    def charged(self, part: str) -> Iterator[None]:
        """Charge the CPU time of the block, which is the driver's, to a part."""
        self._account()
        before, self._part = self._part, part
        yield
        self._account()
        self._part = before

    def charge(self, part: str = "", seconds: float = 0.0) -> None:
        """Let pass on the clock what the driver has computed, and `seconds` of a part. Call `resume` afterwards."""
        self._account()
        self.parts[part] += seconds
        due, self._due = self._due + seconds, 0.0
        self._compute(due)

    def wait(self, is_over: Callable[[], bool], *, until: float = float("inf")) -> None:
        """Let the driver wait until something has happened, or until a time."""
        while not is_over() and self.now < until:
            maker_left = float("inf") if self.maker is None else self.maker.left
            step = min(self._until_event(), until - self.now, maker_left)
            assert step < float("inf"), "the driver waits, and nothing is under way"
            self._step(step, for_maker=step)

    def _account(self) -> None:
        spent = time.thread_time() - self._mark
        self.parts[self._part] += spent
        self._due += spent
        self._mark += spent

    def _compute(self, seconds: float) -> None:
        while seconds > 0:
            maker_left = 0.0 if self.maker is None or self.maker.left == float("inf") else self.maker.left
            sharing = 2.0 if maker_left > 0 else 1.0
            step = min(sharing * seconds, self._until_event(), sharing * maker_left or float("inf"))
            seconds -= step / sharing
            self._step(step, for_maker=step / sharing)

    def _until_event(self) -> float:
        return max(0.0, self._events[0][0] - self.now) if self._events else float("inf")

    def _step(self, seconds: float, *, for_maker: float) -> None:
        """Let so many seconds pass, in which nothing happens but at their end."""
        due = bool(self._events) and seconds >= self._until_event()
        self.now += seconds
        if self.maker is not None:
            self.maker.compute(for_maker)
        if due:
            when, _, action = heapq.heappop(self._events)
            self.now = max(self.now, when)
            action()


class Maker:
    """Stands for the thread of `ahead`: a proposal is made when the thread begins with it, and there once it ends."""

    def __init__(self, clock: Clock, ahead: VirtualAhead) -> None:
        self.left = float("inf")
        """CPU seconds until the proposal is made; infinite while there is nothing to make."""
        self._clock, self._ahead = clock, ahead
        self._making: tuple[Proposal | None, int] = (None, 0)

    def look(self) -> None:
        """Begin with the next proposal, if there is room for it and none is being made."""
        if self.left < float("inf") or not self._ahead.has_room:
            return
        began = time.thread_time()
        self._making = self._ahead.make()
        self.left = time.thread_time() - began
        self._clock.parts["proposals"] += self.left

    def compute(self, seconds: float) -> None:
        """Let the thread compute for so many seconds."""
        if self.left == float("inf"):
            return
        self.left -= seconds
        if self.left <= 1e-12:
            self.left = float("inf")
            self._ahead.deliver(*self._making)


class VirtualAhead(ProposalsAhead):
    """The queue of proposals ahead, on the virtual clock."""

    def __init__(self, clock: Clock, proposals: Proposals, *, depth: int) -> None:
        super().__init__(proposals, depth=depth)
        self._changed = Changes(clock)  # type: ignore[assignment]
        clock.maker = Maker(clock, self)

    def make(self) -> tuple[Proposal | None, int]:
        """What the thread makes."""
        return self._make()

    def deliver(self, proposal: Proposal | None, told: int) -> None:
        """What the thread does with it."""
        self._deliver(proposal, told)

    def _begin(self) -> None:
        """Start no thread: the maker looks for itself."""

    @property
    def has_room(self) -> bool:
        """True if the thread would make another proposal now."""
        return not self._is_stuck and self._num_made < self._depth


class Changes:
    """Stands for the condition on which the driver and the thread wait for each other."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._count = 0

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: Any) -> None:
        pass

    def notify_all(self) -> None:
        self._count += 1
        maker = self._clock.maker
        if maker is not None:
            self._clock.at(self._clock.now, maker.look)

    def wait(self) -> None:
        """Only the driver waits."""
        clock, before = self._clock, self._count
        clock.charge()
        if clock.maker is not None:
            clock.maker.look()
        clock.wait(lambda: self._count > before)
        clock.resume()
