"""The contract of a task, checked on the job's own network and images."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from raprune.channels.evaluating import evaluating
from raprune.errors import ModelError
from raprune.pruning.workload import Workload
from raprune.training.tasks.task import in_float32

IMAGES = 6
"""Number of training images that a task is tried on."""
TOLERANCE = 1e-4
"""Largest difference, as a fraction, between figures of a batch and of its parts that rounding explains."""

_HINT = "raprune/training/tasks/task.py describes each part of a task; docs/tasks.md has an example."


def check_task(workload: Workload) -> None:
    """Try the job's task on a few images: loss, sums that add up, further figures too,
    and a value that repeats and is at most 1.

    Raises:
        ModelError: if the task behaves otherwise; the message says how.
    """
    name, task = workload.spec.task, workload.task
    images, targets = next(workload.sample(IMAGES, torch.Generator().manual_seed(workload.spec.seed)).batches(IMAGES))
    with evaluating(workload.model):
        loss = task.loss(in_float32(task.run(workload.model, images, targets)), targets)
        _require(isinstance(loss, Tensor) and loss.ndim == 0, name, "`loss` gives no single number")
        _require(math.isfinite(loss.item()), name, f"`loss` is {loss.item()} on {len(images)} training images")
        with torch.no_grad():
            whole = _sums(workload, images, targets)
            further = _further(workload, images, targets)
            again = _sums(workload, images, targets)
            parts: Tensor | None = None
            for part in torch.arange(len(images)).tensor_split(2):
                parts = task.added(parts, _sums(workload, images[part], targets[part]))
                for figure, sum_of_part in _further(workload, images[part], targets[part]).items():
                    further[figure] = further.get(figure, 0.0) - sum_of_part
    _require(whole.ndim == 1, name, f"`sums` has shape {tuple(whole.shape)}, not (S,)")
    _require(torch.equal(whole, again), name, "`sums` of the same images differ between two calls")
    assert parts is not None, "a batch has two parts"
    _require(parts.shape == whole.shape, name, "`sums` has another shape for fewer images")
    value, of_parts = (task.value(sums.double().cpu(), len(images)) for sums in (whole, parts))
    _require(isinstance(value, float), name, f"`value` gives {type(value).__name__}, not a float")
    close = math.isclose(value, of_parts, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    _require(close, name, f"`sums` do not add up: the value is {value:g} for a batch, {of_parts:g} for its two halves")
    _require(value <= 1 + TOLERANCE, name, f"`value` is {value:g}, and 1 is perfect")
    wrong = [figure for figure, rest in further.items() if abs(rest) > TOLERANCE * len(images)]
    _require(not wrong, name, f"`further` does not add up: {', '.join(wrong)}")


def _sums(workload: Workload, images: Tensor, targets: Tensor) -> Tensor:
    return workload.task.sums(in_float32(workload.task.run(workload.model, images, targets)), targets)


def _further(workload: Workload, images: Tensor, targets: Tensor) -> dict[str, float]:
    outputs = in_float32(workload.task.run(workload.model, images, targets))
    return {name: float(figure) for name, figure in workload.task.further(outputs, targets).items()}


def _require(holds: bool, name: str, problem: str) -> None:
    if not holds:
        raise ModelError(f"task (--task) {name!r}: {problem}.", hint=_HINT)
