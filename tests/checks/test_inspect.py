"""Tests of the inspection of a network, on images of the size that the network is made for."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn

from raprune.checks.inspect import inspect, inspect_by_name, show
from raprune.models import OWN, image_shape_of
from raprune.spec.job import ModelSpec
from tests.tools import require_module


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("digits-net", (1, 8, 8)),
        ("lenet5", (1, 28, 28)),
        ("cifar-resnet20", (3, 32, 32)),
        ("resnet18", (3, 224, 224)),
        ("inception_v3", (3, 299, 299)),
        ("efficientnet_b1", (3, 240, 240)),
        ("vit_b_16", (3, 224, 224)),
    ],
)
def test_image_shape_of_a_name_is_what_the_network_is_made_for(name: str, shape: tuple[int, int, int]) -> None:
    assert image_shape_of(name) == shape


def test_image_shape_of_a_timm_name_is_that_of_its_configuration() -> None:
    require_module("timm")
    assert image_shape_of("timm:tf_efficientnet_lite0") == (3, 224, 224)
    assert image_shape_of("timm:inception_v3") == (3, 299, 299)


@pytest.mark.parametrize("name", OWN)
def test_image_shape_of_every_own_name_is_known(name: str) -> None:
    assert image_shape_of(name) is not None


def test_classifier_of_a_torchvision_network_is_weighed_at_its_own_size() -> None:
    found = inspect_by_name(ModelSpec(name="squeezenet1_1")).to_json()
    assert found["input_shape"] == [3, 224, 224]
    assert found["proof"]["passed"] and found["groups"]


def test_proof_on_small_images_finds_the_groups_and_costs_of_large_ones() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )
    image = torch.zeros(1, 3, 64, 64)
    whole, quick = inspect(model, image), inspect(model, image, proved_on=torch.zeros(1, 3, 8, 8))
    left, right = whole.to_json(), quick.to_json()
    for key in ("input_shape", "flops", "groups", "frozen", "min_flops_fraction"):
        assert left[key] == right[key]


def test_function_of_the_user_is_inspected_on_images_of_imagenet_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "inspected_nets.py").write_text(
        "from torch import nn\n"
        "def any_size():\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))\n"
        "def small():\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Flatten(), nn.Linear(4 * 32 * 32, 2))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert inspect_by_name(ModelSpec(name="inspected_nets:any_size")).graph.input_shape == (3, 224, 224)
    assert inspect_by_name(ModelSpec(name="inspected_nets:small")).graph.input_shape == (3, 32, 32)
    assert inspect_by_name(ModelSpec(name="inspected_nets:any_size"), image_size=48).graph.input_shape == (3, 48, 48)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_tables_of_an_inspection_cut_no_figure(width: int) -> None:
    found = inspect_by_name(ModelSpec(name="cifar-resnet20"))
    console = Console(file=io.StringIO(), width=width, color_system=None)
    show(found, console)
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert "images of 32x32 pixels with 3 channels" in " ".join(shown.split())
    assert "…" not in shown and max(map(len, shown.splitlines())) <= width
    for group in found.to_json()["groups"]:
        assert f"{group['flops_fraction']:.1%}" in shown and f" {group['num_channels']} " in shown
