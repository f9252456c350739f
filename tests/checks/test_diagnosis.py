"""Tests of the diagnosis of a dense network whose images are normalised wrongly or rightly."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from raprune.checks.diagnosis import accuracy_on_training, accuracy_on_validation, better_normalisation, examine
from raprune.cli import _assignment
from raprune.data.dataset import Dataset, Split
from raprune.data.normalisation import common
from raprune.pruning.workload import Workload
from raprune.spec.job import SearchSpec
from raprune.training.evaluate import Evaluation


class Threshold(nn.Module):
    """A network that gives class 1 for images whose input has a positive mean."""

    def forward(self, x: Tensor) -> Tensor:
        brightness = x.flatten(1).mean(1, keepdim=True)
        return torch.cat([-brightness, brightness], 1)


def workload(*, mean: float, std: float, channels: int = 3, count: int = 400) -> Workload:
    """Images of pixels around 123.5 (class 0) and 131.5 (class 1), so that a mean of 0.5 tells them apart."""
    labels = np.arange(count) % 2
    images = np.random.default_rng(0).integers(120, 128, (count, channels, 4, 4)) + 8 * labels[:, None, None, None]
    split = Split(images.astype(np.uint8), labels.astype(np.int64))
    data = Dataset(
        name="grey",
        train=split,
        validation=split,
        test=None,
        num_classes=2,
        label_names=("dark", "bright"),
        mean=(mean,) * channels,
        std=(std,) * channels,
    )
    return Workload(Threshold(), data, torch.device("cpu"), SearchSpec())


@pytest.mark.parametrize("channels", [1, 3])
def test_better_normalisation_of_a_network_that_sees_other_figures_is_named(channels: int) -> None:
    found = better_normalisation(workload(mean=0.0, std=1.0, channels=channels))
    assert found is not None
    assert (found.figures.mean, found.figures.std) == ((0.5,) * channels, (0.5,) * channels)
    assert (found.present.value, found.accuracy.value, found.accuracy.images) == (0.5, 1.0, 400)
    assert "100.0% instead of 50.0% on 400 validation images, 50.0 points more" in str(found)
    flags = dict(_assignment(text) for text in re.findall(r'--set "([^"]*)"', str(found)))
    assert flags == {"data.mean": [0.5] * channels, "data.std": [0.5] * channels}


def test_better_normalisation_is_none_for_floats_which_are_taken_as_they_are() -> None:
    held = workload(mean=0.0, std=1 / 255)
    floats = Split(held.data.train.images.astype(np.float32), held.data.train.labels)
    held.data = replace(held.data, train=floats, validation=floats)
    assert better_normalisation(held) is None


def test_better_normalisation_is_none_where_the_network_sees_its_own_figures() -> None:
    assert better_normalisation(workload(mean=0.5, std=0.5)) is None


def test_better_normalisation_is_none_where_the_gain_may_be_chance() -> None:
    assert better_normalisation(workload(mean=0.0, std=1.0, count=4)) is None


def test_accuracies_are_those_of_the_splits() -> None:
    held = workload(mean=0.0, std=1.0)
    assert (accuracy_on_validation(held).value, accuracy_on_validation(held).images) == (0.5, 400)
    many = accuracy_on_training(workload(mean=0.5, std=0.5, count=2500))
    assert (many.value, many.images) == (1.0, 2000)


@pytest.mark.parametrize(("mean", "std", "accuracy"), [(0.0, 1.0, 0.5), (0.5, 0.5, 0.6)])
def test_examination_of_a_network_that_cannot_classify_warns(mean: float, std: float, accuracy: float) -> None:
    (warning,) = examine(workload(mean=mean, std=std), Evaluation(accuracy, 1.0))
    assert f"The dense network scores {accuracy:.1%} on" in warning


def test_examination_of_a_network_that_classifies_gives_no_warning() -> None:
    assert examine(workload(mean=0.5, std=0.5), Evaluation(1.0, 0.1)) == []


@pytest.mark.parametrize("channels", [1, 3])
def test_common_normalisations_are_for_so_many_channels(channels: int) -> None:
    found = common(channels)
    assert {len(figures.mean) for figures in found} == {len(figures.std) for figures in found} == {channels}
    assert next(figures.origin for figures in found) == {1: "MNIST's", 3: "ImageNet's"}[channels]
