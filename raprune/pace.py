"""How fast the dense network runs and trains here: a second of measuring, for the forecast of a search."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch.nn import functional

from raprune.evaluate import LARGEST_ON_CPU, evaluate
from raprune.forecast import Pace
from raprune.surgery import rebuild
from raprune.workload import Workload

_AIM_S = 0.5
"""Time that each of the two measurements is sized for."""
_FEWEST = 8
"""Images that are measured at least: one alone is mostly the overhead of calls."""


def measure_pace(workload: Workload, *, batch_size: int) -> Pace:
    """Seconds an image of the workload's network, evaluated and trained; the network is left as it is."""
    split, model = workload.validation, workload.model
    few = split.take(min(_FEWEST, len(split)), torch.Generator())
    evaluate(model, few, batch_size=batch_size)
    first_s = _timed(lambda: evaluate(model, few, batch_size=batch_size)) / len(few)
    most = split.take(max(len(few), min(len(split), int(_AIM_S / first_s))), torch.Generator())
    forward_s = _timed(lambda: evaluate(model, most, batch_size=batch_size)) / len(most)
    # Forward and backward passes take about three times a forward pass.
    images = max(len(few), min(LARGEST_ON_CPU, len(split), int(_AIM_S / (3 * forward_s))))
    x, y = next(iter(split.take(images, torch.Generator()).batches(images)))
    trained = rebuild(model, lambda name, tensor: tensor.clone()).train()

    def step() -> None:
        loss = functional.cross_entropy(trained(x).float(), y)
        loss.backward()
        loss.item()

    step()
    return Pace(forward_s=forward_s, step_s=_timed(step) / images)


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
