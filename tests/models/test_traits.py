from __future__ import annotations

import pytest
from torch import nn

from raprune.data import load_data
from raprune.data.dataset import Dataset
from raprune.models.traits import traits_of
from raprune.spec.job import DataSpec
from raprune.spec.recipes import Traits


def data(augment: str) -> Dataset:
    return load_data(DataSpec.model_validate({"name": "digits", "max_images": 20, "augment": augment}), seed=0)


class WindowSelfAttention(nn.Module):
    """Attention that is written by hand, as in networks of timm and transformers."""


@pytest.mark.parametrize(
    ("layers", "has_layer_norm", "has_depthwise"),
    [
        ([nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)], False, False),
        ([nn.Conv2d(8, 8, 3, groups=8)], False, True),
        ([nn.Conv2d(8, 8, 3, groups=4)], False, False),
        ([nn.Conv2d(1, 8, 3)], False, False),
        ([nn.Linear(4, 4), nn.LayerNorm(4)], True, False),
        ([nn.MultiheadAttention(4, 2)], True, False),
        ([WindowSelfAttention()], True, False),
    ],
)
def test_traits_are_those_of_the_modules(layers: list[nn.Module], has_layer_norm: bool, has_depthwise: bool) -> None:
    found = traits_of(nn.Sequential(*layers), data("none"))
    assert found == Traits(has_layer_norm=has_layer_norm, has_depthwise=has_depthwise, image_size=8, is_plain=True)


def test_images_that_are_augmented_are_not_plain() -> None:
    assert not traits_of(nn.Linear(1, 1), data("shift")).is_plain
