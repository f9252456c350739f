"""A source of proposals: what a search asks it, and what it is told."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import numpy as np

from raprune.records import Proposal, TrialState
from raprune.sampling.point import Point
from raprune.sampling.space import SearchSpace


@dataclass(frozen=True, kw_only=True)
class Turn:
    """A number of the search that a proposal is wanted for."""

    number: int
    rank: int
    """Place among the numbers that are no baseline's, from 0."""
    heard: int
    """Number of the results, from the first on, that the proposal may depend on."""


@dataclass(kw_only=True)
class Asked:
    """A number of the search: its proposal, the source of the proposal, and the result."""

    proposal: Proposal
    """The proposal on the first rung."""
    source: ProposalSource
    point: Point | None = None
    """Result on the candidate's last rung, with its recipe; None until the candidate has ended."""


class ProposalSource(ABC):
    """One way to propose candidates, and what it learns from results."""

    teaches: bool = True
    """True if the sampler may learn from the results of these proposals."""

    @abstractmethod
    def owns(self, turn: Turn) -> bool:
        """True if the proposal for this number is the source's, unless a source before it owns the number."""

    @abstractmethod
    def propose(self, turn: Turn) -> Proposal:
        """Return the proposal for a number that the source owns."""

    def recall(self, turn: Turn, proposal: Proposal) -> None:
        """Take the stored proposal for a number that the source owns, as if the source had just proposed it."""
        return  # Most sources do not depend on their own proposals.

    def learn(self, asked: Asked) -> None:
        """Take a result. Results come in the order of proposal, each before the first turn that may depend on it."""
        return  # The proposals of most sources are fixed in advance.


def pending_point(proposal: Proposal, space: SearchSpace) -> Point:
    """The point of a proposal whose trial has not ended."""
    point = Point(trial_id=proposal.trial_id, state=TrialState.WAITING, method=proposal.method)
    point = point.with_recipe(proposal, target=space.target_of(proposal))
    # A stored proposal has its ratios packed, and looks each one up.
    return replace(point, keep_ratios=dict(proposal.keep_ratios))


def trial_seed(seed: int, number: int) -> int:
    """A seed for each trial, in [0, 2**31)."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0] >> 1)
