"""Symptoms of a dense network that is not what its owner takes it for: a sentence each, with the causes and the remedy.

`raprune check`, `raprune search` and the report of a run say the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from raprune.results.front import standard_error

SAMPLE_IMAGES = 2_000
"""Images that are looked at, where a sample is enough: an accuracy of 90 % is then known to 0.7 points."""

_ERRORS = 3.0
"""Standard errors beyond which a difference is no chance."""
_FAR_BELOW = 0.15
"""Accuracy on validation that is lower than that on training images by so much is no ordinary overfitting."""
_SMALLEST = 0.01
"""Differences below one point are not worth a warning."""

_GIVEN = (
    "images are normalised in another way than in its training (`raprune check` tries the common ways), labels or "
    "class names are in another order, or the weights are of another task or checkpoint"
)
_TRAINED = (
    "too few epochs of training or too high a learning rate (dense.epochs, dense.lr), labels that do not belong to the "
    "images, or images that lost their content on the way (data.image_size)"
)


def symptoms(run: Mapping[str, Any], test: Mapping[str, Any]) -> list[str]:
    """The sentences for what is known of the dense network in `run.json` and in the results on the test split."""
    dense, data = run.get("dense") or {}, run.get("data") or {}
    if dense.get("val_accuracy") is None or not dense.get("val_images"):
        return []
    validation = Accuracy(dense["val_accuracy"], dense["val_images"])
    has_weights = bool(run.get("spec", {}).get("model", {}).get("weights"))
    found: list[str | None] = []
    # A run that was written before these were recorded has neither.
    if "train_accuracy" in dense:
        training = Accuracy(dense["train_accuracy"], dense["train_images"])
        found.append(cannot_classify(validation, training, chance=data["chance"], has_weights=has_weights))
    if test.get("dense") is not None and test.get("images") and has_weights:
        found.append(above_test(validation, Accuracy(test["dense"], test["images"])))
    return [sentence for sentence in found if sentence is not None]


@dataclass(frozen=True)
class Accuracy:
    """A top-1 accuracy, and the number of images that it was measured on."""

    value: float
    images: int

    @property
    def error(self) -> float:
        """Its standard error."""
        return standard_error(self.value, self.images)

    def exceeds(self, other: Accuracy, *, by: float, errors: float = _ERRORS) -> bool:
        """True if it is higher than another by more than `by`, and by more than so many standard errors."""
        return self.value - other.value > max(by, errors * (self.error**2 + other.error**2) ** 0.5)


def cannot_classify(validation: Accuracy, training: Accuracy, *, chance: float, has_weights: bool) -> str | None:
    """A warning if the accuracy on validation is near chance, or far below that on a sample of the training images.

    `has_weights`: the network was given with weights, else it was trained for the run.
    """
    return far_below_training(validation, training) or near_chance(validation, chance, has_weights=has_weights)


def near_chance(validation: Accuracy, chance: float, *, has_weights: bool) -> str | None:
    """A warning if the validation accuracy cannot be told from `chance`, that of the best blind guess.

    None where there are too few images to tell any accuracy from it.
    """
    bound = chance + _ERRORS * Accuracy(chance, validation.images).error
    if validation.value > bound or bound >= 1.0:
        return None
    return (
        f"The dense network scores {validation.value:.1%} on {validation.images:,} validation images, where a blind "
        f"guess scores {chance:.1%}: it does not tell these classes apart. Usual causes: "
        f"{_GIVEN if has_weights else _TRAINED}."
    )


def far_below_training(validation: Accuracy, training: Accuracy) -> str | None:
    """A warning if the validation accuracy is far below that on a sample of the training images."""
    if not training.exceeds(validation, by=_FAR_BELOW):
        return None
    return (
        f"The dense network scores {validation.value:.1%} on the validation images and {training.value:.1%} on the "
        "training images. Usual causes: it learned the training images by heart, the validation images are of another "
        "kind, or their labels are in another order. The search compares networks on the validation images."
    )


def above_test(validation: Accuracy, test: Accuracy) -> str | None:
    """A warning if weights that were given score far better on the validation images than on the test images."""
    if not validation.exceeds(test, by=_SMALLEST):
        return None
    return (
        f"The dense network scores {validation.value:.1%} on validation and {test.value:.1%} on test: it was "
        "probably trained on the validation images, so validation accuracies are too high and rank the networks less "
        "well; test accuracies are right. To choose by images that its training never saw: --validation FILE."
    )
