"""Forecast of the duration of a search before it begins, from measured speeds and the size of the job. Pure.

The aim is a factor of two. `run.json` has the measured and the forecast seconds of each stage under "stages".
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from raprune.results.stages import FINETUNE, LATENCY, PHASES, REPORT, SCORES, SEARCH, TEST

WORKERS_START_S = 6.0
"""Seconds until the search's workers have imported PyTorch and hold network and data."""
GROUP_START_S = 20.0
"""Seconds until a group of Ray Train has started."""
REPORT_S = 4.0
"""Seconds for figures and tables, most of them for the import of Matplotlib."""
LATENCY_S = 1.5
"""Maximum seconds to measure one whole network."""
FILLING_S = 0.5
"""Maximum seconds of the dense network for a batch that fills the device."""
FILLING_IMAGES = 64
"""Images of that batch."""
FIXED = 0.25
"""Fraction of the dense network's time that does not shrink with the FLOPs: calls, memory, augmentation."""
TRIAL_S = 0.05
"""Seconds of a trial besides running networks: proposing, choosing widths, surgery, recording."""

REESTIMATION = 1.0
"""Forward passes of the cut network over the calibration images that re-estimating batch norms takes."""
REFIT = 3.0
"""A least-squares repair, in forward passes of both networks over the images: sampling patches, solving."""
SCORING = 3.0
"""Scoring one method, in forward passes over the calibration images: a backward pass, or moments and solving."""


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Measured speed of the dense network on the device of the workers, in seconds an image."""

    forward_s: float
    step_s: float
    """Fine-tuned once, with the dense network as teacher where the job asks for one."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Size of a job: the numbers of the remaining work."""

    workers: int
    train_images: int
    validation_images: int
    test_images: int
    calibration_images: int
    trials: int
    fraction: float
    """Mean fraction of the dense FLOPs that a trial's network keeps."""
    refits: float
    """Fraction of the trials that are repaired by least squares."""
    trial_epochs: float = 0.0
    """Mean epochs of training in a trial: of rungs, and of methods that train while they cut."""
    limit_s: float | None = None
    """Time limit of the search."""
    phase_epochs: float = 0.0
    """Epochs of training before methods score."""
    scored: int = 0
    """Methods that are scored on images."""
    rescored: int = 0
    """Methods that are scored again in a trial, because the sampler proposes other settings of them."""
    finetunings: int = 0
    finetuning_epochs: float = 0.0
    teacher: bool = True
    """True if fine-tuning runs the dense network too."""
    latency_repeats: int = 20
    """Number of timings of each network of the front."""
    grouped: bool = False
    """True if a group of Ray Train fine-tunes, one network after another on all workers."""


def forecast(pace: Pace, plan: Plan) -> dict[str, float]:
    """Seconds of each stage from the scores on, in their order; stages without work are left out."""
    side_by_side = max(1, plan.workers)
    smaller = FIXED + (1 - FIXED) * plan.fraction
    cut_s, refit_s = smaller * pace.forward_s, REFIT * (1 + smaller) * pace.forward_s
    teacher_s = min(pace.forward_s, pace.step_s) if plan.teacher else 0.0
    epoch_s = plan.train_images * (teacher_s + smaller * (pace.step_s - teacher_s))
    repair_s = plan.calibration_images * (plan.refits * refit_s + (1 - plan.refits) * REESTIMATION * cut_s)
    trial_s = TRIAL_S + repair_s + plan.validation_images * cut_s + plan.trial_epochs * epoch_s
    one_s = plan.calibration_images * SCORING * pace.forward_s
    search_s = _shared(plan.trials, side_by_side) * trial_s
    if plan.trials:
        # Not side by side: the others wait for its result.
        search_s += plan.rescored * one_s
    if plan.limit_s is not None:
        search_s = min(search_s, plan.limit_s)
    finetuning_s = plan.finetunings * plan.finetuning_epochs * epoch_s
    if plan.grouped:
        tuning_s = GROUP_START_S + finetuning_s / side_by_side
    else:
        tuning_s = _shared(plan.finetunings, side_by_side) * plan.finetuning_epochs * epoch_s
    score_s = plan.scored * one_s
    batch_s = smaller * min(FILLING_S, FILLING_IMAGES * pace.forward_s)
    seconds = {
        PHASES: plan.phase_epochs * plan.train_images * pace.step_s,
        SCORES: (WORKERS_START_S + score_s / side_by_side) if plan.scored else 0.0,
        SEARCH: WORKERS_START_S + search_s if plan.trials else 0.0,
        FINETUNE: tuning_s if plan.finetunings else 0.0,
        TEST: _shared(plan.finetunings + 1, side_by_side) * plan.test_images * cut_s,
        LATENCY: WORKERS_START_S + (plan.finetunings + 1) * min(LATENCY_S, plan.latency_repeats * batch_s),
        REPORT: REPORT_S,
    }
    return {name: value for name, value in seconds.items() if value > 0}


def _shared(count: int, workers: int) -> int:
    """Rounds in which `workers` do `count` pieces of work side by side."""
    return math.ceil(count / workers)
