"""Speed of the dense network on this machine, measured for a second or two, for the forecast of a search."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch

from raprune.channels.cut import rebuild
from raprune.pruning.workload import Workload
from raprune.results.forecast import Pace
from raprune.spec.job import SearchSpec
from raprune.training.evaluate import evaluate
from raprune.training.loop import train

_AIM_S = 0.2
"""Seconds that each of the two measurements should take."""
_FEWEST = 8
"""Minimum number of images of a measurement: with one image, the overhead of calls dominates."""
_TRAINING = 4.0
"""Time of training on an image in units of a forward pass: forward and backward pass, and the teacher's pass."""


def measure_pace(workload: Workload, spec: SearchSpec) -> Pace:
    """Seconds per image of evaluating and of fine-tuning the network as the job says; the network is not changed."""
    model, search = workload.model, spec.search
    judged = partial(
        evaluate,
        model,
        task=workload.task,
        batch_size=search.eval_batch_size,
        precision=search.eval_precision,
    )
    few = workload.validation.take(_FEWEST, torch.Generator())
    judged(few)
    first_s = _timed(lambda: judged(few)) / len(few)
    many = workload.validation.take(max(_FEWEST, int(_AIM_S / first_s)), torch.Generator())
    forward_s = _timed(lambda: judged(many)) / len(many)
    # Without feature maps, which need a map of channels: they cost little beside the teacher's pass.
    once = spec.finalists.train.decided(epochs=1.0).model_copy(update={"features": 0.0})
    teacher = workload.teacher if once.distillation > 0 else None
    trained = rebuild(model, lambda name, tensor: tensor.clone())

    def train_on(count: int) -> float:
        split = workload.sample(count, torch.Generator())
        fit = _timed(
            lambda: train(
                trained, split, once, augment=workload.augment, seed=spec.seed, task=workload.task, teacher=teacher
            )
        )
        return fit / len(split)

    train_on(_FEWEST)
    return Pace(forward_s=forward_s, step_s=train_on(max(_FEWEST, int(_AIM_S / (_TRAINING * forward_s)))))


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
