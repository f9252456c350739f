"""The forms of targets, from arrays and from map-style data sets."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from raprune.data import load_data
from raprune.data.given import give_data
from raprune.data.targets import FORMS
from raprune.errors import DataError, UsageError
from raprune.spec.job import DataSpec

IMAGES = np.random.default_rng(0).integers(0, 256, (20, 3, 8, 8), dtype=np.uint8)
MASKS = np.random.default_rng(1).integers(0, 3, (20, 8, 8))


def given(train: object) -> DataSpec:
    data = give_data(train)
    return DataSpec(name=data.name).holding(data)


def test_masks_are_held_as_bytes_with_their_number_of_classes_and_no_augmentation() -> None:
    masks = MASKS.copy()
    masks[:, 0] = 255
    data = load_data(given((IMAGES, masks)), seed=0, form="masks")
    assert data.train.labels.dtype == np.uint8 and data.train.labels.shape[1:] == (8, 8)
    assert (data.num_classes, data.augment, data.chance) == (3, "none", None)
    assert len(data.train) + len(data.validation) == 20


def test_rows_stay_with_their_images_when_a_part_is_held_out() -> None:
    means = IMAGES.reshape(20, -1).mean(1)
    data = load_data(given((IMAGES, means)), seed=0, form="columns")
    for split in (data.train, data.validation):
        assert split.labels.shape == (len(split), 1)
        np.testing.assert_allclose(split.labels[:, 0], split.images.reshape(len(split), -1).mean(1), rtol=1e-6)


def test_map_style_items_may_have_masks_and_are_drawn_anew_if_they_are_random() -> None:
    class Flipped(torch.utils.data.Dataset[tuple[torch.Tensor, torch.Tensor]]):
        def __len__(self) -> int:
            return 20

        def __getitem__(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
            image, mask = torch.from_numpy(IMAGES[number]), torch.from_numpy(MASKS[number])
            return (image.flip(2), mask.flip(1)) if torch.rand(()) < 0.5 else (image, mask)

    data = load_data(given(Flipped()), seed=0, form="masks")
    assert data.drawn is not None and data.drawn.opened().form == "masks"
    assert data.train.labels.shape == (16, 8, 8)


def test_function_may_return_map_style_data_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.data import test_targets

    dataset = torch.utils.data.TensorDataset(torch.from_numpy(IMAGES), torch.from_numpy(MASKS))
    monkeypatch.setattr(test_targets, "made", lambda: {"train": dataset}, raising=False)
    data = load_data(DataSpec(name="tests.data.test_targets:made"), seed=0, form="masks")
    assert data.train.labels.shape == (16, 8, 8) and data.drawn is None


@pytest.mark.parametrize(("form", "targets"), [("masks", MASKS[:, 0]), ("columns", MASKS), ("labels", MASKS)])
def test_targets_of_another_form_are_refused(form: str, targets: np.ndarray) -> None:
    with pytest.raises(DataError, match=r"train \(arrays\): (targets|labels) are int64 of shape"):
        load_data(given((IMAGES, targets)), seed=0, form=form)


def test_data_sets_of_class_numbers_and_augmentation_are_refused_where_masks_are_needed() -> None:
    with pytest.raises(UsageError, match=r"data.name 'digits' has one class for each image; the task needs masks"):
        load_data(DataSpec(name="digits"), seed=0, form="masks")
    spec = given((IMAGES, MASKS)).model_copy(update={"augment": "shift-flip"})
    with pytest.raises(UsageError, match="images would be moved, and their targets would not"):
        load_data(spec.holding(given((IMAGES, MASKS)).given), seed=0, form="masks")


BOXES = [
    {"boxes": np.array([[1.0, 2, 5, 6]] * count).reshape(-1, 4), "labels": np.full(count, 1 + count % 3)}
    for count in [0, 1, 2, 3] * 5
]


class Boxed(torch.utils.data.Dataset[tuple[torch.Tensor, dict[str, np.ndarray]]]):
    """Items as torchvision's detectors are trained on."""

    def __len__(self) -> int:
        return 20

    def __getitem__(self, number: int) -> tuple[torch.Tensor, dict[str, np.ndarray]]:
        return torch.from_numpy(IMAGES[number]), BOXES[number]


def collate(items: list[Any]) -> tuple[Any, ...]:
    """Make a list of images and a list of targets, as torchvision's reference training does."""
    return tuple(zip(*items, strict=True))


@pytest.mark.parametrize(
    "train",
    [(IMAGES, BOXES), Boxed(), torch.utils.data.DataLoader(Boxed(), collate_fn=collate)],
    ids=["arrays", "items", "collate"],
)
def test_boxes_of_images_with_different_numbers_of_them_are_held_in_one_array(train: object) -> None:
    data = load_data(give(train), seed=0, form="boxes")
    assert data.train.labels.shape[1:] == (3, 6) and data.num_classes == 4
    every = np.concatenate([data.train.labels, data.validation.labels])
    assert sorted((every[..., 4] > 0).sum(1)) == [0] * 5 + [1] * 5 + [2] * 5 + [3] * 5
    assert every[every[..., 4] > 0][:, :4].tolist() == [[1, 2, 5, 6]] * 30
    assert data.std == (1.0, 1.0, 1.0), "a detector normalises images itself"


def give(train: object) -> DataSpec:
    return given((IMAGES, np.array(BOXES))) if isinstance(train, tuple) else given(train)


@pytest.mark.parametrize(
    ("target", "problem"),
    [
        ({"boxes": [[5.0, 2, 5, 6]], "labels": [1]}, "no width or no height"),
        ({"boxes": [[1.0, 2, 5, 6]], "labels": [0]}, "labels are whole numbers from 1"),
        ({"boxes": [[1.0, 2, 5, 6]], "labels": [1, 2]}, "1 boxes, 2 labels"),
        ({"boxes": [[1.0, 2, 5, 6]]}, "targets are object"),
    ],
)
def test_wrong_boxes_are_refused_with_the_image(target: dict[str, object], problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        FORMS["boxes"].array([BOXES[1], target], 2, "train")


def test_fingerprint_of_other_targets_depends_on_their_form() -> None:
    zeros = np.zeros((20, 1), np.float32)
    found = {load_data(given((IMAGES, zeros)), seed=0, form=form).fingerprint for form in ("columns", "any")}
    assert len(found) == 2 and set(FORMS) == {"labels", "columns", "masks", "boxes", "any"}
