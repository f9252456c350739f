"""Diagnosis of a dense network before a search: its accuracy on both splits, and under common normalisations."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from raprune.checks.symptoms import SAMPLE_IMAGES, Accuracy, cannot_classify
from raprune.data.dataset import Split
from raprune.data.host import ImageSplit
from raprune.data.normalisation import Normalisation, common, measure
from raprune.pruning.workload import Workload
from raprune.training.evaluate import Evaluation, evaluate

_SCREENED = 250
"""Number of validation images that select the promising normalisations, before the whole sample decides."""
_ERRORS = 2.0
"""Number of standard errors that a better accuracy must exceed."""
_SMALLEST = 0.01
"""Smallest gain of accuracy that is reported: one point."""


@dataclass(frozen=True, kw_only=True)
class BetterNormalisation:
    """A normalisation under which the dense network has a higher accuracy than under the job's normalisation."""

    figures: Normalisation
    accuracy: Accuracy
    present: Accuracy
    """Accuracy on the same images under the job's normalisation."""

    def __str__(self) -> str:
        gained = 100 * (self.accuracy.value - self.present.value)
        return (
            f"The dense network is more accurate with another normalisation, {self.figures}: "
            f"{self.accuracy.value:.1%} instead of {self.present.value:.1%} on {self.accuracy.images:,} validation "
            f"images, {gained:.1f} points more. To use this normalisation: {self.figures.assignments}"
        )


def accuracy_on_validation(workload: Workload) -> Accuracy:
    """Measure the dense network's accuracy on all validation images."""
    return _accuracy(workload, workload.validation)


def accuracy_on_training(workload: Workload) -> Accuracy:
    """Measure the dense network's accuracy on a sample of the training images, without augmentation."""
    train = workload.data.train
    rows = np.random.default_rng(workload.spec.seed).permutation(len(train))[:SAMPLE_IMAGES]
    # All training images may be too many for the device.
    return _accuracy(workload, workload.place(Split(train.images[rows], train.labels[rows])))


def examine(workload: Workload, validation: Evaluation) -> list[str]:
    """Return the warnings about a dense network that was evaluated on the validation split, before anything is cut."""
    if workload.data.chance is None:
        return []
    measured = Accuracy(validation.accuracy, len(workload.data.validation))
    doubt = cannot_classify(
        measured,
        accuracy_on_training(workload),
        chance=workload.data.chance,
        has_weights=workload.spec.weights is not None,
    )
    return [] if doubt is None else [doubt]


def better_normalisation(workload: Workload) -> BetterNormalisation | None:
    """Return the best common normalisation that raises the dense network's accuracy by a point, and significantly.

    A few validation images select the promising normalisations; up to `SAMPLE_IMAGES` images decide. None if no
    normalisation is better than the job's, and for float images, which no job normalises.
    """
    data, seed = workload.data, workload.spec.seed
    if data.has_floats:
        return None
    known = (*common(data.image_shape[0]), measure(data.train.images))
    others = [figures for figures in known if not _same(figures, data.normalisation)]

    def accuracies(chosen: list[Normalisation], count: int) -> tuple[Accuracy, list[Accuracy]]:
        sample = _sample(workload.validation, count, seed=seed)
        found = [_accuracy(workload, sample.normalised(figures.mean, figures.std)) for figures in chosen]
        return _accuracy(workload, sample), found

    present, screened = accuracies(others, _SCREENED)
    best = max(screened, key=lambda accuracy: accuracy.value)
    promising = [
        figures
        for figures, accuracy in zip(others, screened, strict=True)
        if accuracy.value > present.value and not best.exceeds(accuracy, by=0.0, errors=_ERRORS)
    ]
    if not promising:
        return None
    present, found = accuracies(promising, SAMPLE_IMAGES)
    better, figures = max(zip(found, promising, strict=True), key=lambda pair: pair[0].value)
    if not better.exceeds(present, by=_SMALLEST, errors=_ERRORS):
        return None
    return BetterNormalisation(figures=figures, accuracy=better, present=present)


def _accuracy(workload: Workload, split: ImageSplit) -> Accuracy:
    found = evaluate(workload.model, split, task=workload.task, batch_size=workload.spec.search.eval_batch_size)
    return Accuracy(found.accuracy, len(split))


def _sample(split: ImageSplit, count: int, *, seed: int) -> ImageSplit:
    return split.take(count, torch.Generator().manual_seed(seed))


def _same(one: Normalisation, other: Normalisation) -> bool:
    """True if the figures differ by at most 2 %, which does not matter to a network."""
    pairs = zip(one.mean + one.std, other.mean + other.std, strict=True)
    return all(abs(a - b) <= 0.02 * max(abs(a), abs(b)) for a, b in pairs)
