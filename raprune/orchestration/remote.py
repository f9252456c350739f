"""The answer of a task or an actor: its value, or its error as itself instead of wrapped in Ray's."""

from __future__ import annotations

from typing import Any

import ray

from raprune.errors import RapruneError


def answer(reference: Any, *, lost: str, hint: str) -> Any:
    """The value behind `reference`, once it is there.

    Raises:
        Exception: what the task or the actor raised, as itself.
        RapruneError: `lost` with Ray's reason, and `hint`, if whoever should have answered is gone.
    """
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, Exception):
            raise error.cause from None
        raise
    except ray.exceptions.RayError as error:
        raise RapruneError(f"{lost}: {_reason(error)}", hint=hint) from error


def trial_answer(reference: Any) -> Any:
    """The value of a task that has the size of a trial.

    Raises:
        RapruneError: as `answer`.
    """
    return answer(
        reference,
        lost="A worker was lost again and again",
        hint="It may have run out of memory; give it more, or use smaller batches.",
    )


def _reason(error: ray.exceptions.RayError) -> str:
    """One line. Ray says of an actor first that it died, and at the end why."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[-1 if isinstance(error, ray.exceptions.RayActorError) else 0]
