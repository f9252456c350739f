"""Attempts at the tasks of a search: lost workers, nodes that lose many, trials without progress."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from raprune.orchestration.cluster.failures import Action, Failure, FailureDecision, decide, is_left_out
from raprune.orchestration.cluster.time_limit import TimeLimit
from raprune.orchestration.seats import Seated


@dataclass
class Losses:
    """Numbers of lost workers since a task lost its first one."""

    attempts: int = 0
    """Workers that this task lost."""
    elsewhere: int = 0
    """Workers that other tasks lost."""


class Attempts:
    """Counts the losses of tasks and of nodes, and finds trials without progress.

    `seat_of` gives the seat that had a task last; `nodes` gives Ray's ids of the living nodes that a worker fits on;
    `say` tells the user of a node that is left out.
    """

    def __init__(
        self,
        limit: TimeLimit,
        *,
        seat_of: Callable[[str], Seated | None],
        nodes: Callable[[], Sequence[str]],
        say: Callable[[str], None],
    ) -> None:
        self.limit = limit
        self.left_out: set[str] = set()
        """Ids of the nodes that are given no further workers."""
        self.told: list[str] = []
        """A sentence for each node that was left out."""
        self._seat_of = seat_of
        self._nodes = nodes
        self._say = say
        self._losses: dict[str, Losses] = {}
        self._trials_lost: dict[str, set[str]] = {}
        """Node -> trials that lost a worker there, without those that lost all of theirs."""
        self._ended: dict[str, str] = {}
        """Trial -> why its worker was ended: it made no progress."""

    def finished(self, trial_id: str) -> None:
        """Forget the losses of a task that has ended."""
        self._losses.pop(trial_id, None)
        self._ended.pop(trial_id, None)

    def seated(self, trial_ids: Sequence[str]) -> int:
        """Index of the task that a worker with several had last; 0 if it told of none."""
        if len(trial_ids) > 1:
            for index, trial_id in enumerate(trial_ids):
                if self._seat_of(trial_id) is not None:
                    return index
        return 0

    def lost(self, trial_id: str) -> FailureDecision:
        """The decision about a task whose worker was lost."""
        if trial_id in self._ended:
            return FailureDecision(Action.RECORD, self._ended[trial_id])
        losses = self._losses.setdefault(trial_id, Losses())
        for other, its in self._losses.items():
            if other == trial_id:
                its.attempts += 1
            else:
                its.elsewhere += 1
        seated = self._seat_of(trial_id)
        decision = decide(Failure.LOST, attempts=losses.attempts, elsewhere=losses.elsewhere)
        if decision.action is not Action.RETRY:
            # Its nodes are not the cause.
            for trials in self._trials_lost.values():
                trials.discard(trial_id)
        elif seated is not None:
            self._count(seated, trial_id)
        if seated is None or seated.fault is None:
            return decision
        return FailureDecision(decision.action, f"{decision.reason}, the last time with {seated.fault}")

    def overdue(self, seats: Sequence[Seated], running: Sequence[tuple[str, bool]]) -> list[str]:
        """Workers that are to be ended, because their trial makes no progress. `running`: trials, and if they train."""
        trains = dict(running)
        workers: list[str] = []
        for seated in seats:
            if seated.trial_id not in trains or seated.silent_s is None:
                continue
            if seated.silent_s > self.limit.limit_s(trains=trains[seated.trial_id]):
                self._ended[seated.trial_id] = self.limit.reason(seated.silent_s)
                workers.append(seated.worker)
        return workers

    def _count(self, seated: Seated, trial_id: str) -> None:
        trials = self._trials_lost.setdefault(seated.node, set())
        trials.add(trial_id)
        others = [node for node in self._nodes() if node != seated.node and node not in self.left_out]
        if seated.node in self.left_out or not is_left_out(len(trials), others=len(others)):
            return
        self.left_out.add(seated.node)
        cause = f", the last one with {seated.fault}" if seated.fault else ""
        text = f"Node {seated.host} is given no further workers: {len(trials)} trials lost theirs there{cause}."
        self.told.append(text)
        self._say(text)
