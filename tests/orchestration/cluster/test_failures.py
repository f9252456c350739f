from __future__ import annotations

import pytest
import torch

from raprune.orchestration.cluster.failures import (
    MOST_ATTEMPTS,
    Action,
    DeviceAction,
    DeviceError,
    Failure,
    decide,
    decide_on_device,
    device_error,
    error_text,
    hopeless,
    is_left_out,
)
from raprune.records import TrialState


@pytest.mark.parametrize(
    ("failure", "attempts", "action"),
    [
        (Failure.CANDIDATE, 1, Action.RECORD),
        (Failure.SETUP, 1, Action.ABORT),
        (Failure.LOST, 1, Action.RETRY),
        (Failure.LOST, 2, Action.RETRY),
        (Failure.LOST, 3, Action.RECORD),
    ],
)
def test_failure_is_retried_recorded_or_ends_the_search(failure: Failure, attempts: int, action: Action) -> None:
    decision = decide(failure, attempts=attempts)
    assert decision.action is action and decision.reason


def test_losses_elsewhere_give_a_candidate_more_attempts() -> None:
    assert decide(Failure.LOST, attempts=3, elsewhere=1).action is Action.RETRY
    assert decide(Failure.LOST, attempts=4, elsewhere=1).action is Action.RECORD
    assert decide(Failure.LOST, attempts=MOST_ATTEMPTS, elsewhere=99).action is Action.RECORD


def test_search_of_failures_alone_is_hopeless() -> None:
    assert hopeless([TrialState.FAILED] * 8)
    assert not hopeless([TrialState.FAILED] * 7)
    assert not hopeless([TrialState.FAILED] * 20 + [TrialState.COMPLETE])


def test_text_of_an_error_is_its_first_and_last_line() -> None:
    assert error_text(ValueError("first\n\nmiddle\nlast\n")) == "ValueError: first ... last"
    assert error_text(ValueError("only")) == "ValueError: only"
    assert error_text(MemoryError()) == "MemoryError"
    assert len(error_text(ValueError("x" * 5000))) < 700


def caused_by(cause: Exception) -> Exception:
    """An error of a candidate behind which there is another one."""
    try:
        raise ValueError("no scores") from cause
    except ValueError as error:
        return error


LAUNCH = "CUDA error: unspecified launch failure\nCUDA kernel errors might be asynchronously reported"
ASSERT = "CUDA error: device-side assert triggered"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (torch.AcceleratorError(LAUNCH), DeviceError.STICKY),
        (RuntimeError(ASSERT), DeviceError.STICKY),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), DeviceError.STICKY),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), DeviceError.STICKY),
        (RuntimeError("GPU 0000:3b:00.0: GPU has fallen off the bus"), DeviceError.STICKY),
        (caused_by(RuntimeError(ASSERT)), DeviceError.STICKY),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), DeviceError.NO_MEMORY),
        (RuntimeError("CUDA error: out of memory"), DeviceError.NO_MEMORY),
        (caused_by(torch.OutOfMemoryError("CUDA out of memory")), DeviceError.NO_MEMORY),
        (RuntimeError("CUDA error: no kernel image is available for execution"), DeviceError.INSTALLATION),
        (torch.AcceleratorError("CUDA error: invalid argument"), DeviceError.OTHER),
        (ValueError("our device-side assert is a word of the user's"), DeviceError.OTHER),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), DeviceError.OTHER),
        (MemoryError(), DeviceError.OTHER),
    ],
)
def test_error_on_a_device_is_known_by_type_text_and_cause(error: Exception, kind: DeviceError) -> None:
    assert device_error(error) is kind


@pytest.mark.parametrize(
    ("kind", "works", "is_smaller", "action"),
    [
        (DeviceError.STICKY, True, False, DeviceAction.END),
        (DeviceError.STICKY, False, False, DeviceAction.END),
        (DeviceError.OTHER, True, False, DeviceAction.RECORD),
        (DeviceError.OTHER, False, False, DeviceAction.END),
        (DeviceError.NO_MEMORY, True, False, DeviceAction.SMALLER),
        (DeviceError.NO_MEMORY, True, True, DeviceAction.RECORD),
        (DeviceError.NO_MEMORY, False, False, DeviceAction.END),
        (DeviceError.NO_MEMORY, False, True, DeviceAction.END),
        (DeviceError.INSTALLATION, False, False, DeviceAction.RECORD),
    ],
)
def test_error_on_a_device_fails_the_candidate_only_if_the_device_works(
    kind: DeviceError, works: bool, is_smaller: bool, action: DeviceAction
) -> None:
    assert decide_on_device(kind, works=works, is_smaller=is_smaller) is action


def test_node_is_left_out_after_three_losses_unless_it_is_the_last_one() -> None:
    assert [is_left_out(losses, others=1) for losses in (1, 2, 3)] == [False, False, True]
    assert not is_left_out(99, others=0)
