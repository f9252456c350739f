"""Tasks on the resources of a placement, and the answer of a task or an actor.

An answer is a value, or an error as itself instead of wrapped in Ray's.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import ray

from raprune.errors import RapruneError
from raprune.orchestration.cluster.failures import RETRIES_AFTER_LOSS
from raprune.orchestration.cluster.placement import Placement, nodes_but


def task_on(
    placement: Placement,
    work: Any,
    *,
    max_retries: int = RETRIES_AFTER_LOSS,
    left_out: Collection[str] = (),
    **options: Any,
) -> Any:
    """The remote function `work` with the CPUs and GPUs of a trial of `placement`; `options` as for `ray.remote`.

    `left_out`: ids of nodes on which it never runs.

    A process that has used a GPU runs no second task: CUDA ignores the CUDA_VISIBLE_DEVICES of the second one, and the
    memory that the first one took is given back at the end of the process alone. Ray ends such a process by itself, but
    only if the GPUs are passed to `ray.remote`; it does not see GPUs that are passed to `.options`. Processes of tasks
    without GPUs are used again, because a new one imports torch for seconds.

    A task whose GPU fails is retried, in another process, `max_retries` times.
    """
    if placement.gpus > 0:
        # The coordinator imports this module too, and goes without torch: 3 s and 500 MB.
        import torch

        options |= {"max_calls": 1, "retry_exceptions": [torch.AcceleratorError]}
    if left_out:
        options["label_selector"] = nodes_but(left_out)
    remote: Any = ray.remote(num_cpus=placement.cpus, num_gpus=placement.gpus, max_retries=max_retries, **options)
    return remote(work)


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
