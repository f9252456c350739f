"""Classification as a task: its figures are those of the plain formulas, and its sums add up."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from raprune.methods.method import loss_of
from raprune.training.tasks.classification import CLASSIFICATION
from raprune.training.tasks.task import Calibration, added

LOGITS = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0], [1.0, 0.0, 0.5], [float("nan"), 1.0, 0.0]])
LABELS = torch.tensor([0, 1, 2, 0])


def test_value_is_the_fraction_of_correct_images_and_a_nan_counts_as_wrong() -> None:
    assert CLASSIFICATION.value(CLASSIFICATION.sums(LOGITS, LABELS).double(), 4) == 0.5


def test_top_5_accuracy_counts_labels_among_the_five_largest_logits() -> None:
    logits = torch.arange(12.0).repeat(4, 1)
    logits[3, 0] = float("nan")
    labels = torch.tensor([11, 7, 6, 11])  # first, fifth, sixth, and a NaN
    assert CLASSIFICATION.further(logits, labels)["top-5 accuracy"] == 2
    assert CLASSIFICATION.further(logits[:, :10], labels.clamp(max=9)) == {}, "ten classes are too few"


def test_sums_of_two_parts_add_up_to_those_of_the_batch() -> None:
    total: Tensor | None = None
    for part in (slice(0, 1), slice(1, 4)):
        total = added(total, CLASSIFICATION.sums(LOGITS[part], LABELS[part]))
    assert total is not None and torch.equal(total, CLASSIFICATION.sums(LOGITS, LABELS))


def test_loss_smoothed_is_the_cross_entropy_with_smooth_labels() -> None:
    logits, labels = LOGITS[:3], LABELS[:3]
    smoothed = CLASSIFICATION.smoothed(0.1).loss(logits, labels)
    assert torch.equal(smoothed, functional.cross_entropy(logits, labels, label_smoothing=0.1))
    assert CLASSIFICATION.summed_loss(logits, labels) == functional.cross_entropy(logits, labels, reduction="sum")


def test_calibration_carries_the_loss_and_a_plain_function_means_cross_entropy() -> None:
    network, images = nn.Linear(3, 3), torch.randn(4, 3)

    def batches() -> list[tuple[Tensor, Tensor]]:
        return [(images, LABELS)]

    calibration = Calibration(CLASSIFICATION, batches)
    assert calibration() is not None and next(iter(calibration()))[1] is LABELS
    assert loss_of(calibration)(network, images, LABELS) == loss_of(batches)(network, images, LABELS)


def test_outputs_that_are_not_compared_with_a_teacher_are_refused() -> None:
    with pytest.raises(TypeError, match="compares no outputs"):
        super(type(CLASSIFICATION), CLASSIFICATION).distil(LOGITS, LOGITS, None)  # type: ignore[arg-type]
