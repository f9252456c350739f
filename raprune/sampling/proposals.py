"""The search's proposals: ask and tell in a fixed order. Knows no Ray.

A stored proposal is the truth: a resumed search takes it as it is, tells it to the sources as if they had made it, and
asks them only for the numbers that are not stored. What a source proposes for a number is a function of the seed, the
number, the proposals before it and the results that it may use, so that a resumed search proposes what it would have
proposed without the interruption. On another kind of CPU the last digits of a number may differ, and the search then
continues with other proposals than it would have had there, from the same facts.

Proposal n is asked when exactly the results 0 to n - lookahead have been told, in that order, so that a seed and a
lookahead give the same search, for any number of workers and any order in which trials end.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from raprune.errors import StoreError
from raprune.records import Proposal, Stage, Trial
from raprune.sampling.halving import SuccessiveHalving
from raprune.sampling.point import Point
from raprune.sampling.source import Asked, Turn, trial_seed
from raprune.sampling.sources import make_sources
from raprune.sampling.space import SearchSpace
from raprune.sampling.warm_start import Earlier
from raprune.spec.budget import Budget
from raprune.spec.job import SamplerSpec


class StopRule(Protocol):
    """A rule that ends the search. It hears the results that a proposal may use, and is then asked."""

    def hear(self, point: Point) -> None:
        """Take the next result, in the order of proposal."""
        ...

    def __call__(self) -> bool:
        """True once nothing new should be proposed."""
        ...


class Proposals:
    """The search's proposals, one after another. A stored trial is told in its turn, and its proposal is not run again.

    Results of `earlier` runs come before everything except the baselines. `enough` is asked before each proposal that
    is not stored. One thread may call `next` while another one calls everything else.
    """

    def __init__(
        self,
        space: SearchSpace,
        spec: SamplerSpec,
        *,
        seed: int,
        stored: Sequence[Trial] = (),
        earlier: Earlier | None = None,
        enough: StopRule | None = None,
    ) -> None:
        self._enough = enough
        self._space = space
        # A run has decided on its lookahead; without a run there is one worker.
        self._lookahead = spec.lookahead_for(1)
        self._limit = spec.trials
        self._seed = seed
        searched = [trial for trial in stored if trial.proposal.stage is Stage.SEARCH and trial.proposal.step is None]
        self._stored = {trial.trial_id: trial for trial in searched}
        if any(trial.proposal.stage is Stage.FINETUNE for trial in stored):
            # The search had ended when the first finalist was chosen, perhaps by its time limit.
            self._limit = min(self._limit, len({trial.proposal.number for trial in searched}))
        earlier = (earlier if spec.warm_starts else None) or Earlier()
        self._baselines, self._sources = make_sources(space, spec, seed=seed, earlier=earlier)
        self._rungs = SuccessiveHalving(len(spec.rungs), spec.keep, cost=space.cost)
        self._asked: list[Asked] = []
        """One record for each number so far."""
        self._onward: deque[Proposal] = deque()
        """Proposals of the next rung, for candidates that go on to it."""
        self._learned = 0
        """Number of results, from the first on, that the sources have learned from."""
        self._ended = 0
        """Number of candidates that have ended: they go on to no further rung."""
        self._telling = threading.Lock()
        self.proposals: dict[str, Proposal] = {}
        """Trial id -> every proposal so far, stored ones included."""

    @property
    def points(self) -> list[Point]:
        """The last result of every candidate that has ended, in the order of proposal."""
        return [asked.point for asked in self._asked if asked.point is not None]

    @property
    def num_ended(self) -> int:
        """Number of `points`."""
        return self._ended

    @property
    def over(self) -> bool:
        """True if everything is proposed and every result is in."""
        return len(self._asked) >= self._limit and self._ended == len(self._asked)

    @property
    def total(self) -> int:
        """Number of proposals in all, on the first rung."""
        return self._limit

    def stop(self) -> None:
        """Propose nothing new from now on."""
        self._limit = min(self._limit, len(self._asked))

    def next(self) -> Proposal | None:
        """The next proposal to run; None while it waits for a result, or when there is none.

        Raises:
            StoreError: if a stored trial belongs to a search with another seed.
        """
        while (proposal := self._made_next()) is not None:
            self.proposals[proposal.trial_id] = proposal
            trial = self._stored.pop(proposal.trial_id, None)
            if trial is None:
                return proposal
            self.tell(proposal.number, Point.of(trial))
        return None

    def tell(self, number: int, point: Point) -> None:
        """Take the result of a proposal on its rung; the sources learn the last result of a candidate in its turn."""
        assert self._asked[number].point is None, f"proposal {number} was told twice"
        # `next` tells stored trials.
        with self._telling:
            for decision in self._rungs.tell(number, point):
                if decision.next_rung is None:
                    asked = self._asked[decision.number]
                    target = self._space.target_of(asked.proposal)
                    asked.point = decision.point.with_recipe(asked.proposal, target=target)
                    self._ended += 1
                else:
                    before = self.proposals[decision.point.trial_id]
                    self._onward.append(replace(before, rung=decision.next_rung, parent=before.trial_id))

    def _made_next(self) -> Proposal | None:
        # Higher rungs come first: new proposals wait for their results.
        if self._onward:
            return self._onward.popleft()
        number = len(self._asked)
        heard = max(0, number - self._lookahead + 1)
        if number >= self._limit or any(asked.point is None for asked in self._asked[self._learned : heard]):
            return None
        self._learn(heard)
        stored = self._stored.get(search_id(number))
        if stored is None and self._enough is not None and self._enough():
            self.stop()
            return None
        turn = Turn(number=number, rank=number - self._baselines.before(number), heard=heard)
        return self._ask(turn, None if stored is None else stored.proposal)

    def _learn(self, heard: int) -> None:
        """Tell the sources and the stop rule the results of the numbers below `heard`."""
        for asked in self._asked[self._learned : heard]:
            for source in self._sources:
                source.learn(asked)
            if self._enough is not None and asked.point is not None:
                self._enough.hear(asked.point)
        self._learned = max(self._learned, heard)

    def _ask(self, turn: Turn, stored: Proposal | None) -> Proposal:
        """The proposal of a number: the stored one, else one by the first source that owns the number."""
        # The sampler, the last source, owns every number.
        source = next(source for source in self._sources if source.owns(turn))
        if stored is None:
            proposal = source.propose(turn)
        else:
            _check_seed(stored, self._seed)
            proposal = stored
            source.recall(turn, stored)
        self._asked.append(Asked(proposal=proposal, source=source))
        return proposal


def search_id(number: int) -> str:
    """The trial id of proposal `number` on its first rung."""
    return Proposal(number=number, method="", allocation="", target=Budget()).trial_id


def _check_seed(stored: Proposal, seed: int) -> None:
    own = trial_seed(seed, stored.number)
    if stored.seed != own:
        raise StoreError(
            f"{stored.trial_id}: the run's store has seed {stored.seed}, and this search has seed {own} for it.",
            hint="The job's seed changed since the run began. Resume with the seed that run.json names, or begin a new "
            "run with another --output.",
        )
