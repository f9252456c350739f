"""Decide what to do about a failure. Pure: facts in, a decision with its reason out."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from raprune.records import TrialState

RETRIES_AFTER_LOSS = 2
"""Number of retries of a task whose workers died while no other task lost its worker."""

MOST_ATTEMPTS = 20
"""Maximum number of attempts at a task, however many other tasks lost their workers."""

FAILURES_IN_A_ROW = 8
"""Number of failed trials that end the search if no trial is complete: the cause is not the candidate."""

LOSSES_OF_A_NODE = 3
"""Number of trials that lose their worker on a node until the node is given no further workers."""

_LINE = 300

_STICKY = re.compile(
    r"device-side assert|illegal memory access|illegal instruction|illegal address|unspecified launch failure"
    r"|misaligned address|hardware stack error|invalid program counter|\bECC\b|fallen off the bus|GPU is lost",
    re.IGNORECASE,
)
"""CUDA errors after which every further call of the process fails (CUDA Runtime API, `cudaError`: "the process must be
terminated and relaunched")."""

_INSTALLATION = re.compile("no kernel image is available|driver version is insufficient", re.IGNORECASE)

_NO_MEMORY = re.compile(r"(CUDA|HIP|GPU)\b.*out of memory|out of memory.*\b(CUDA|HIP|GPU)", re.IGNORECASE | re.DOTALL)


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


class DeviceError(StrEnum):
    """Kinds of errors, by what they say about the device on which they were raised."""

    STICKY = "sticky"
    """The process cannot use its GPU any more."""
    NO_MEMORY = "no memory"
    """An allocation did not fit into the memory of the GPU."""
    INSTALLATION = "installation"
    """No GPU of this kind can be used by what is installed: so it is for every candidate."""
    OTHER = "other"
    """Nothing: the error may be the candidate's own."""


class DeviceAction(StrEnum):
    """Answers to an error of a candidate on a worker's device."""

    RECORD = "record"
    """The candidate failed."""
    SMALLER = "smaller"
    """Try the candidate once more, with smaller batches."""
    END = "end"
    """End the process, so that the candidate is tried by another one."""


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


def device_error(error: BaseException) -> DeviceError:
    """The kind of an error, from its type and message and those of the errors behind it."""
    for one in _chain(error):
        types, text = {kind.__name__ for kind in type(one).__mro__}, str(one)
        if "OutOfMemoryError" in types or _NO_MEMORY.search(text):
            return DeviceError.NO_MEMORY
        # An assertion of the user's own may use the same words.
        is_runtime = "AcceleratorError" in types or "RuntimeError" in types
        if is_runtime and _INSTALLATION.search(text):
            return DeviceError.INSTALLATION
        if is_runtime and _STICKY.search(text):
            return DeviceError.STICKY
    return DeviceError.OTHER


def decide_on_device(error: DeviceError, *, works: bool, is_smaller: bool) -> DeviceAction:
    """The answer to an error of a candidate.

    `works`: the device still computes, with its cache emptied. `is_smaller`: the candidate had smaller batches already.
    """
    if error is DeviceError.INSTALLATION:
        return DeviceAction.RECORD
    if error is DeviceError.STICKY or not works:
        return DeviceAction.END
    if error is DeviceError.NO_MEMORY and not is_smaller:
        return DeviceAction.SMALLER
    return DeviceAction.RECORD


def is_left_out(losses: int, *, others: int) -> bool:
    """True if a node is to be given no further workers.

    `losses`: number of trials that lost their worker there. `others`: number of nodes that then remain.
    """
    return losses >= LOSSES_OF_A_NODE and others > 0


def hopeless(states: Sequence[TrialState]) -> bool:
    """True if all finished trials failed, and enough of them to stop. `states`: finished trials, in any order."""
    return len(states) >= FAILURES_IN_A_ROW and all(state is TrialState.FAILED for state in states)


def error_text(error: BaseException) -> str:
    """The type of an error with the first and the last line of its message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line[:_LINE] for line in dict.fromkeys([*lines[:1], *lines[-1:]])]
    return ": ".join([type(error).__name__, " ... ".join(told)]) if told else type(error).__name__


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error, its cause, the cause of that, and so on."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        yield error
        seen.append(error)
        error = error.__cause__ or error.__context__
