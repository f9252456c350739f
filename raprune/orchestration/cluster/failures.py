"""What to do when something fails. Pure: facts in, a decision with its reason out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from raprune.records import TrialState

RETRIES_AFTER_LOSS = 2
"""How often a task is tried again after its worker died under it alone."""

MOST_ATTEMPTS = 20
"""At a task, whoever else lost workers."""

FAILURES_IN_A_ROW = 8
"""So many failed trials, with none complete before them, end the search: the cause is not the candidate."""

_LINE = 300


class Failure(StrEnum):
    """What failed."""

    CANDIDATE = "candidate"
    """The candidate raised: the same again on any worker."""
    SETUP = "setup"
    """A worker could not build the workload: the same for every candidate."""
    LOST = "lost"
    """The worker died: killed, out of memory, or its node went away."""


class Action(StrEnum):
    """What is done about it."""

    RETRY = "retry"
    RECORD = "record"
    ABORT = "abort"


@dataclass(frozen=True)
class FailureDecision:
    """An action, and the reason that goes into the record."""

    action: Action
    reason: str


def decide(failure: Failure, *, attempts: int = 1, elsewhere: int = 0) -> FailureDecision:
    """What to do after the `attempts`-th attempt at one task ended in `failure`.

    `elsewhere`: how many workers were lost under other tasks since the first attempt. As many of the task's own losses
    are laid to the cluster (nodes that are taken away, a machine out of memory) and not to the candidate.
    """
    if failure is Failure.SETUP:
        return FailureDecision(
            Action.ABORT,
            "a worker could not build the workload, so no candidate can run",
        )
    if failure is Failure.CANDIDATE:
        return FailureDecision(Action.RECORD, "the candidate itself failed, and would again")
    allowed = min(RETRIES_AFTER_LOSS + 1 + elsewhere, MOST_ATTEMPTS)
    if attempts < allowed:
        return FailureDecision(Action.RETRY, f"the worker was lost on attempt {attempts} of {allowed}")
    return FailureDecision(Action.RECORD, f"the worker was lost on each of {attempts} attempts")


def hopeless(states: Sequence[TrialState]) -> bool:
    """Whether trials have only failed so far, and often enough to stop. `states`: finished trials, in any order."""
    return len(states) >= FAILURES_IN_A_ROW and all(state is TrialState.FAILED for state in states)


def error_text(error: BaseException) -> str:
    """The type of an error with the first and the last line of its message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line[:_LINE] for line in dict.fromkeys([*lines[:1], *lines[-1:]])]
    return ": ".join([type(error).__name__, " ... ".join(told)]) if told else type(error).__name__
