"""Warnings about a dense network with implausible accuracies: one sentence each, with the usual causes and the remedy.

`raprune check`, `raprune search` and the report of a run show the same warnings.
"""

from __future__ import annotations

from dataclasses import dataclass

from raprune.results.front import standard_error
from raprune.results.test_split import UNTESTED, SplitAccuracies
from raprune.store.record import RunRecord

SAMPLE_IMAGES = 2_000
"""Number of images in a sample: the standard error of an accuracy of 90 % is then 0.7 points."""

_ERRORS = 3.0
"""Number of standard errors beyond which a difference is significant."""
_FAR_BELOW = 0.15
"""Gap between the accuracies on training and validation images that ordinary overfitting does not explain."""
_SMALLEST = 0.01
"""Smallest difference that gives a warning: one point."""

_GIVEN = (
    "images are normalised in another way than in its training (`raprune check` tries the common normalisations), "
    "labels or class names are in another order, or the weights belong to another task or checkpoint"
)
_TRAINED = (
    "too few epochs of training or too high a learning rate (dense.epochs, dense.lr), labels that do not belong to the "
    "images, or images that lost their content when they were resized (data.image_size)"
)


def symptoms(run: RunRecord, test: SplitAccuracies = UNTESTED) -> list[str]:
    """Return the warnings about the dense network from `run.json` and from the results on the test split."""
    dense, data = run.dense, run.data
    if dense is None or dense.val_accuracy is None or not dense.val_images:
        return []
    validation = Accuracy(dense.val_accuracy, dense.val_images)
    has_weights = bool(run.job.model.weights)
    found: list[str | None] = []
    # A run that was written before these were recorded has neither.
    if dense.train_accuracy is not None and dense.train_images is not None and data.chance is not None:
        training = Accuracy(dense.train_accuracy, dense.train_images)
        found.append(cannot_classify(validation, training, chance=data.chance, has_weights=has_weights))
    if test.dense is not None and test.images and has_weights:
        found.append(above_test(validation, Accuracy(test.dense, test.images)))
    return [sentence for sentence in found if sentence is not None]


@dataclass(frozen=True)
class Accuracy:
    """A top-1 accuracy, and the number of images that it was measured on."""

    value: float
    images: int

    @property
    def error(self) -> float:
        """Standard error of the accuracy."""
        return standard_error(self.value, self.images)

    def exceeds(self, other: Accuracy, *, by: float, errors: float = _ERRORS) -> bool:
        """True if the accuracy exceeds `other` by more than `by`, and by more than `errors` standard errors."""
        return self.value - other.value > max(by, errors * (self.error**2 + other.error**2) ** 0.5)


def cannot_classify(validation: Accuracy, training: Accuracy, *, chance: float, has_weights: bool) -> str | None:
    """Return a warning if the validation accuracy is near chance, or far below the accuracy on training images.

    `has_weights` is True if the network was given with weights, False if it was trained for the run.
    """
    return far_below_training(validation, training) or near_chance(validation, chance, has_weights=has_weights)


def near_chance(validation: Accuracy, chance: float, *, has_weights: bool) -> str | None:
    """Return a warning if the validation accuracy does not significantly exceed `chance`, that of a constant guess.

    Return None if there are too few images for any accuracy to exceed `chance` significantly.
    """
    bound = chance + _ERRORS * Accuracy(chance, validation.images).error
    if validation.value > bound or bound >= 1.0:
        return None
    return (
        f"The dense network scores {validation.value:.1%} on {validation.images:,} validation images, where a constant "
        f"guess scores {chance:.1%}: the network does not separate these classes. Usual causes: "
        f"{_GIVEN if has_weights else _TRAINED}."
    )


def far_below_training(validation: Accuracy, training: Accuracy) -> str | None:
    """Return a warning if the validation accuracy is far below the accuracy on a sample of the training images."""
    if not training.exceeds(validation, by=_FAR_BELOW):
        return None
    return (
        f"The dense network scores {validation.value:.1%} on the validation images and {training.value:.1%} on the "
        "training images. Usual causes: the network memorised the training images, the validation images are of "
        "another kind, or their labels are in another order. The search compares networks on the validation images."
    )


def above_test(validation: Accuracy, test: Accuracy) -> str | None:
    """Return a warning if given weights score significantly better on validation images than on test images."""
    if not validation.exceeds(test, by=_SMALLEST):
        return None
    return (
        f"The dense network scores {validation.value:.1%} on validation and {test.value:.1%} on test: it was "
        "probably trained on the validation images, so validation accuracies are too high and rank the networks less "
        "reliably; test accuracies are right. To use validation images that its training never saw: --validation FILE."
    )
