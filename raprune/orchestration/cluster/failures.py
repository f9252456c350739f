"""Decide what to do about a failure. Pure: facts in, a decision with its reason out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from raprune.records import TrialState

RETRIES_AFTER_LOSS = 2
"""Number of retries of a task whose workers died while no other task lost its worker."""

MOST_ATTEMPTS = 20
"""Maximum number of attempts at a task, however many other tasks lost their workers."""

FAILURES_IN_A_ROW = 8
"""Number of failed trials that end the search if no trial is complete: the cause is not the candidate."""

_LINE = 300


class Failure(StrEnum):
    """Kinds of failure."""

    CANDIDATE = "candidate"
    """The candidate raised: the same again on any worker."""
    SETUP = "setup"
    """A worker could not build the workload: the same for every candidate."""
    LOST = "lost"
    """The worker died: killed, out of memory, or its node went away."""


class Action(StrEnum):
    """Answers to a failure."""

    RETRY = "retry"
    RECORD = "record"
    ABORT = "abort"


@dataclass(frozen=True)
class FailureDecision:
    """An action, and the reason that goes into the record."""

    action: Action
    reason: str


def decide(failure: Failure, *, attempts: int = 1, elsewhere: int = 0) -> FailureDecision:
    """The decision after the `attempts`-th attempt at one task ended in `failure`.

    `elsewhere`: number of workers that other tasks lost since the first attempt. As many of the task's own losses are
    attributed to the cluster (nodes that are taken away, a machine out of memory) and not to the candidate.
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
    """True if all finished trials failed, and enough of them to stop. `states`: finished trials, in any order."""
    return len(states) >= FAILURES_IN_A_ROW and all(state is TrialState.FAILED for state in states)


def error_text(error: BaseException) -> str:
    """The type of an error with the first and the last line of its message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line[:_LINE] for line in dict.fromkeys([*lines[:1], *lines[-1:]])]
    return ": ".join([type(error).__name__, " ... ".join(told)]) if told else type(error).__name__
