"""Tests of the warnings about a dense network: the figures that give a warning, and its text."""

from __future__ import annotations

from typing import Any

import pytest

from raprune.checks.symptoms import Accuracy, above_test, far_below_training, near_chance, symptoms
from raprune.results.test_split import SplitAccuracies
from raprune.store.record import RunRecord


@pytest.mark.parametrize(
    ("accuracy", "images", "is_told"),
    [(0.10, 1000, True), (0.12, 1000, True), (0.02, 1000, True), (0.14, 1000, False), (0.97, 1000, False)],
)
def test_near_chance_within_three_standard_errors_is_told(accuracy: float, images: int, is_told: bool) -> None:
    said = near_chance(Accuracy(accuracy, images), 0.1, has_weights=True)
    assert (said is not None) == is_told


def test_near_chance_of_too_few_images_is_not_told() -> None:
    assert near_chance(Accuracy(0.5, 8), 0.5, has_weights=True) is None


def test_near_chance_names_the_usual_causes() -> None:
    given, trained = (near_chance(Accuracy(0.1, 1000), 0.1, has_weights=has) for has in (True, False))
    assert given is not None and trained is not None
    for cause in ("normalised in another way", "raprune check", "labels or class names", "another task or checkpoint"):
        assert cause in given
    assert "10.0% on 1,000 validation images" in given
    assert "dense.epochs" in trained and "checkpoint" not in trained


@pytest.mark.parametrize(
    ("validation", "training", "is_told"),
    [((0.80, 1000), (0.99, 2000), True), ((0.86, 1000), (0.99, 2000), False), ((0.80, 10), (1.0, 2000), False)],
)
def test_validation_far_below_training_is_told(
    validation: tuple[float, int], training: tuple[float, int], is_told: bool
) -> None:
    said = far_below_training(Accuracy(*validation), Accuracy(*training))
    assert (said is not None) == is_told


@pytest.mark.parametrize(
    ("validation", "test", "is_told"),
    [
        ((0.961, 5000), (0.899, 10000), True),
        ((0.905, 5000), (0.899, 10000), False),
        ((0.961, 100), (0.899, 100), False),
        ((0.899, 5000), (0.961, 10000), False),
    ],
)
def test_validation_far_above_test_is_told_with_the_remedy(
    validation: tuple[float, int], test: tuple[float, int], is_told: bool
) -> None:
    said = above_test(Accuracy(*validation), Accuracy(*test))
    assert (said is not None) == is_told
    if said is not None:
        assert "96.1% on validation and 89.9% on test" in said and "--validation FILE" in said


def described(*, weights: str | None = "given.safetensors", **dense: Any) -> RunRecord:
    content = {
        "spec": {"model": {"weights": weights}},
        "data": {"chance": 0.1},
        "dense": {"val_accuracy": 0.961, "val_images": 5000, "train_accuracy": 0.97, "train_images": 2000, **dense},
    }
    return RunRecord.model_validate(content)


def test_symptoms_of_a_run_are_those_that_its_figures_have() -> None:
    tested = SplitAccuracies(dense=0.899, images=10_000)
    assert symptoms(described()) == []
    assert [s[:45] for s in symptoms(described(), tested)] == ["The dense network scores 96.1% on validation "]
    assert len(symptoms(described(val_accuracy=0.1))) == 1, "far below training says it; near chance says no more"
    assert "constant guess" in symptoms(described(val_accuracy=0.1, train_accuracy=0.11))[0]


def test_symptoms_of_a_network_that_was_trained_for_the_run_are_not_its_checkpoints() -> None:
    assert symptoms(described(weights=None), SplitAccuracies(dense=0.899, images=10_000)) == []


@pytest.mark.parametrize(
    "run",
    [
        {},
        {"dense": {"val_accuracy": None, "val_images": 251}},
        {"dense": {"val_accuracy": 0.1, "val_images": 251}, "data": {"num_classes": 10}},
    ],
)
def test_symptoms_of_a_run_without_the_figures_are_none(run: dict[str, Any]) -> None:
    assert symptoms(RunRecord.model_validate(run)) == []
