"""Tests of the normalisation figures of public weights."""

from __future__ import annotations

import pytest

from raprune.models.normalisation import usual_normalisation
from raprune.spec.job import ModelSpec
from tests.tools import require_module

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("name", "figures", "origin"),
    [
        ("resnet50", IMAGENET, "ImageNet's, the default for resnet50"),
        ("vgg16", IMAGENET, "ImageNet's, the default for vgg16"),
        ("efficientnet_v2_l", HALF, "pixels in [-1, 1], the default for efficientnet_v2_l"),
    ],
)
def test_usual_normalisation_of_a_torchvision_network_is_that_of_its_weights(
    name: str, figures: tuple[tuple[float, ...], tuple[float, ...]], origin: str
) -> None:
    found = usual_normalisation(ModelSpec(name=name, weights="w.safetensors"))
    assert found is not None
    assert ((found.mean, found.std), found.origin) == (figures, origin)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_usual_normalisation_of_a_network_that_transforms_its_input_depends_on_how_it_is_built(name: str) -> None:
    plain = usual_normalisation(ModelSpec(name=name, weights="w.safetensors"))
    transforming = usual_normalisation(
        ModelSpec(name=name, weights="w.safetensors", arguments={"transform_input": True})
    )
    assert plain is not None and transforming is not None
    assert ((plain.mean, plain.std), (transforming.mean, transforming.std)) == (HALF, IMAGENET)


@pytest.mark.parametrize(("name", "mean"), [("timm:tf_efficientnet_lite0", 0.5), ("timm:resnet50.a1_in1k", 0.485)])
def test_usual_normalisation_of_a_timm_network_is_that_of_its_weights(name: str, mean: float) -> None:
    require_module("timm")
    found = usual_normalisation(ModelSpec(name=name, weights="w.safetensors"))
    assert found is not None and found.mean[0] == mean and found.origin.endswith(f"the default for {name}")


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("resnet50", None),
        ("cifar-resnet20", "w.safetensors"),
        ("mine:net", "w.safetensors"),
        ("timm:no_such_network", "w.safetensors"),
        ("no-such-network", "w.safetensors"),
    ],
)
def test_usual_normalisation_of_other_networks_is_not_known(name: str, weights: str | None) -> None:
    assert usual_normalisation(ModelSpec(name=name, weights=weights)) is None
