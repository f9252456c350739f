from __future__ import annotations

import numpy as np
import pytest
import torch

from raprune.data import Split
from raprune.data.augment import crop, draw, flip, shift
from raprune.data.batches import DeviceSplit, batch_sizes


def split(count: int = 10, channels: int = 3, size: int = 8) -> Split:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (count, channels, size, size), dtype=np.uint8)
    return Split(images, np.arange(count))


def place(source: Split, layout: torch.memory_format = torch.contiguous_format) -> DeviceSplit:
    channels = source.images.shape[1]
    return DeviceSplit.place(source, (0.5,) * channels, (0.25,) * channels, "cpu", layout=layout)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draws(augment: str, images: torch.Tensor) -> torch.Tensor:
    return draw(augment, [len(images)], [slice(0, len(images))], images.shape[1:], seeded())


def test_batches_are_normalised_and_in_order() -> None:
    source = split()
    batches = list(place(source).batches(4))
    assert [len(y) for _, y in batches] == [4, 4, 2]
    x = torch.cat([x for x, _ in batches]).numpy()
    assert np.allclose(x, (source.images / 255 - 0.5) / 0.25, atol=1e-6)
    assert torch.cat([y for _, y in batches]).tolist() == list(range(10))


def test_on_the_cpu_the_images_are_the_splits_own_memory_even_if_read_only() -> None:
    source = split()
    source.images.flags.writeable = False
    source.labels.flags.writeable = False
    before = source.images.copy()
    placed = place(source)
    assert placed.images.data_ptr() == source.images.ctypes.data
    for augment in ("none", "shift", "shift-flip", "crop-flip"):
        for x, _ in placed.shuffled(4, seeded(), augment):
            x.zero_()
    for x, _ in placed.batches(4):
        x.zero_()
    assert np.array_equal(source.images, before)


def test_channels_last_batches_hold_the_same_numbers() -> None:
    plain, last = place(split()), place(split(), layout=torch.channels_last)
    for (one, _), (two, _) in zip(plain.batches(4), last.batches(4), strict=True):
        assert two.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(one, two)


def test_an_epoch_shows_every_image_once_and_a_seed_repeats_it() -> None:
    placed = place(split())
    orders = [torch.cat([y for _, y in placed.shuffled(4, seeded(seed))]).tolist() for seed in (0, 0, 1)]
    assert sorted(orders[0]) == list(range(10))
    assert orders[0] == orders[1] != orders[2]


def test_images_keep_their_labels_when_shuffled() -> None:
    source = split()
    for x, y in place(source).shuffled(3, seeded()):
        assert np.allclose(x.numpy(), (source.images[y.numpy()] / 255 - 0.5) / 0.25, atol=1e-6)


@pytest.mark.parametrize(("count", "sizes"), [(8, [4, 4]), (10, [4, 4, 2]), (9, [4, 5]), (3, [3]), (1, [1]), (5, [5])])
def test_batch_sizes_last_image_alone_joins_the_batch_before(count: int, sizes: list[int]) -> None:
    assert batch_sizes(count, 4) == sizes


def test_take_draws_without_replacement() -> None:
    placed = place(split())
    taken = placed.take(6, seeded())
    assert len(set(taken.labels.tolist())) == 6
    assert torch.equal(taken.images, placed.images[taken.labels])
    assert placed.take(99, seeded()) is placed


def test_shift_moves_each_image_by_up_to_an_eighth() -> None:
    images = torch.from_numpy(split(count=64, size=16).images)
    moved = shift(images, draws("shift", images))
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2))
    offsets = set()
    for before, after in zip(padded, moved, strict=True):
        found = [
            (top, left)
            for top in range(5)
            for left in range(5)
            if torch.equal(before[:, top : top + 16, left : left + 16], after)
        ]
        assert len(found) == 1
        offsets.add(found[0])
    assert len(offsets) > 15


def test_flip_mirrors_some_images_and_leaves_the_others() -> None:
    images = torch.from_numpy(split(count=64).images)
    mirrored = 0
    for before, after in zip(images, flip(images, torch.rand(64, generator=seeded())), strict=True):
        mirrored += torch.equal(after, before.flip(2))
        assert torch.equal(after, before) or torch.equal(after, before.flip(2))
    assert 16 < mirrored < 48


def test_crop_stays_within_the_image_and_in_place() -> None:
    ramp = torch.arange(32).repeat(16, 1, 32, 1).to(torch.uint8)
    cropped = crop(ramp, draws("crop-flip", ramp)[:4])
    assert cropped.shape == ramp.shape
    assert cropped.min() >= 0
    assert cropped.max() <= 31
    step = cropped[:, 0, 16, 17] - cropped[:, 0, 16, 16]
    assert torch.all((step > 0.45) & (step <= 1.0001))


def test_an_unknown_augmentation_names_the_valid_ones() -> None:
    with pytest.raises(ValueError, match="valid are auto, none"):
        draws("blur", torch.zeros(1, 1, 8, 8, dtype=torch.uint8))
