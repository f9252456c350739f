"""RandAugment and TrivialAugment image by image, against the operations of torchvision."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode, RandAugment, TrivialAugmentWide

from raprune.data.augment import Augmentation, augmented, draw
from raprune.data.policy import BINS, OPERATIONS, SPACES, apply_policy, draw_policy, operated

NAMES = {
    "shear_x": "ShearX", "shear_y": "ShearY", "translate_x": "TranslateX", "translate_y": "TranslateY",
    "autocontrast": "AutoContrast",
}  # fmt: skip
"""Names of torchvision's operations, where they are not ours with a capital."""


def images(channels: int = 3) -> Tensor:
    """Smooth images with an edge, uint8, of two heights over widths in one."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(4, channels, 4, 5, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (12, 18), mode="bilinear")
    smooth[:, :, 4:8, 6:10] = 0.9
    return (40 + 170 * smooth).to(torch.uint8)


def expected(x: Tensor, name: str, policy: str, level: int, sign: float) -> Tensor:
    """What torchvision gives for the operation at a strength in 0..30."""
    torchvision = (RandAugment if policy == "rand" else TrivialAugmentWide)(interpolation=InterpolationMode.BILINEAR)
    known = NAMES.get(name, name.capitalize())
    strengths, signed = torchvision._AUGMENTATION_SPACE[known]
    found = strengths(BINS, x.shape[2], x.shape[3])
    magnitude = 0.0 if found is None else float(found[level]) * (sign if signed else 1.0)
    changed: Tensor = torchvision._apply_image_or_video_transform(x, known, magnitude, InterpolationMode.BILINEAR, {})
    return changed.float()


@pytest.mark.parametrize("policy", SPACES)
@pytest.mark.parametrize("name", OPERATIONS)
def test_operation_is_that_of_torchvision_in_either_direction(name: str, policy: str) -> None:
    x, count = images(), 4
    number = torch.full((count,), OPERATIONS.index(name))
    for level, sign in ((9, 1.0), (9, -1.0), (30, 1.0), (17, -1.0)):
        levels, signs = torch.full((count,), level / (BINS - 1)), torch.full((count,), sign)
        found = operated(x.float(), number, levels, signs, SPACES[policy])
        difference = (found - expected(x, name, policy, level, sign)).abs()
        # torchvision rounds to whole values, and the grey of a colour image down.
        assert difference.max() <= 1.6, (level, sign)


def test_each_image_of_a_batch_has_its_own_operation_and_strength() -> None:
    x = images()
    number = torch.tensor([OPERATIONS.index(name) for name in ("identity", "rotate", "solarize", "brightness")])
    levels, signs = torch.tensor([0.3, 0.5, 0.7, 1.0]), torch.tensor([1.0, -1.0, 1.0, 1.0])
    together = operated(x.float(), number, levels, signs, SPACES["rand"])
    alone = [
        operated(x[i : i + 1].float(), number[i : i + 1], levels[i : i + 1], signs[i : i + 1], SPACES["rand"])
        for i in range(4)
    ]
    assert torch.allclose(together, torch.cat(alone), atol=1e-4)
    assert torch.equal(together[0], x[0].float())


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("policy", SPACES)
def test_policy_keeps_shape_and_range_and_follows_its_numbers(policy: str, channels: int) -> None:
    x = images(channels)
    numbers = draw_policy(policy, 4, torch.Generator().manual_seed(1))
    found = apply_policy(x, policy, 9, numbers)
    assert found.shape == x.shape and found.min() >= 0 and found.max() <= 255
    assert torch.equal(found, apply_policy(x, policy, 9, numbers))
    assert not torch.equal(found, x.float())


@pytest.mark.parametrize("name", ["none", "shift", "shift-flip", "crop-flip"])
def test_policy_leaves_the_other_random_numbers_as_they_are(name: str) -> None:
    def numbers(asked: str | Augmentation) -> Tensor:
        return draw(asked, [4], [slice(0, 4)], (3, 12, 18), torch.Generator().manual_seed(0))

    plain, more = numbers(name), numbers(Augmentation(name, policy="rand"))
    assert torch.equal(more[: len(plain)], plain) and len(more) == len(plain) + 6
    x = images()
    found = augmented(x, Augmentation(name, policy="rand"), more)
    assert torch.allclose(found, apply_policy(augmented(x, name, plain), "rand", 9, more[len(plain) :]))


def test_policy_leaves_images_of_other_transforms_alone() -> None:
    x = torch.randn(4, 3, 12, 18)
    asked = Augmentation("none", policy="rand")
    assert torch.equal(augmented(x, asked, draw(asked, [4], [slice(0, 4)], x.shape[1:], torch.Generator())), x)


def test_crop_scale_is_the_smallest_part_that_a_crop_keeps() -> None:
    ramp = torch.arange(64.0).expand(1, 1, 64, 64)
    smallest = torch.tensor([[0.0], [0.5], [0.5], [0.5], [0.9]])

    def width(scale: float) -> float:
        found = augmented(ramp, Augmentation("crop-flip", crop_scale=scale), smallest)
        return float(found.max() - found.min()) / 63

    assert width(0.09) == pytest.approx(0.3, abs=0.02)
    assert width(0.35) == pytest.approx(0.35**0.5, abs=0.02)
