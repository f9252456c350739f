from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from raprune.data.arrays import Split
from raprune.data.batches import DeviceSplit
from raprune.spec.job import TrainSpec
from raprune.training.loop import train
from raprune.training.mixing import Mixing, erase, mixed_images

CPU = torch.device("cpu")


def mixing(seed: int = 0, rank: int = 0, **fields: Any) -> Mixing:
    return Mixing(TrainSpec(**fields), CPU, seed=seed, rank=rank)


def batches(count: int = 3, size: int = 4) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(size, 3, 16, 16, generator=generator), torch.arange(size)) for _ in range(count)]


def epoch(changes: Mixing, number: int = 0) -> list[tuple[Tensor, Tensor]]:
    given = [(x.clone(), y) for x, y in batches()]
    return list(changes.epoch(iter(given), [len(y) for _, y in given], number))


def test_mixup_blends_each_image_with_the_one_before_it_by_the_share_of_its_label() -> None:
    changes, given = mixing(mixup=1.0), batches()
    seen = []
    for (x, y), (mixed, labels) in zip(given, changes.epoch(iter(given), [4, 4, 4], 0), strict=True):
        assert changes.share is not None
        share = float(changes.share)
        seen.append(share)
        assert torch.allclose(mixed, share * x + (1 - share) * x[[3, 0, 1, 2]], atol=1e-6)
        assert labels.tolist() == [[0, 3], [1, 0], [2, 1], [3, 2]] and torch.equal(labels[:, 0], y)
    assert len(set(seen)) == 3 and all(0 < share < 1 for share in seen)


def test_cutmix_replaces_a_rectangle_and_the_share_is_the_area_that_is_left() -> None:
    x = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 16, 16)
    random, shares = np.random.default_rng(0), []
    for _ in range(20):
        mixed, share = mixed_images(x, 0.0, 1.0, random)
        replaced = mixed != x
        assert torch.equal(mixed[replaced], x.roll(1, 0)[replaced])
        assert share == pytest.approx(1 - float(replaced.float().mean()))
        rows, columns = replaced[0, 0].any(1), replaced[0, 0].any(0)
        assert torch.equal(replaced[0, 0], rows[:, None] & columns)
        shares.append(share)
    assert min(shares) < 0.7 and max(shares) > 0.9


def test_mixup_and_cutmix_together_are_either_of_them() -> None:
    x, random = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 16, 16), np.random.default_rng(0)
    whole = [bool((mixed_images(x, 1.0, 1.0, random)[0] != x).all()) for _ in range(40)]
    assert 5 < sum(whole) < 35


def test_erased_part_is_a_rectangle_of_the_mean_within_its_bounds() -> None:
    x = torch.ones(200, 3, 16, 16)
    numbers = torch.rand(5, 200, generator=torch.Generator().manual_seed(0))
    erased = erase(x, numbers, 0.25) == 0
    happens = numbers[0] < 0.25
    areas = erased[:, 0].float().mean((1, 2))
    assert torch.equal(erased.any(1).any(1).any(1), happens)
    assert areas[happens].min() > 0.01 and areas.max() < 0.36
    for one in erased[happens]:
        rows, columns = one[0].any(1), one[0].any(0)
        assert torch.equal(one, (rows[:, None] & columns).expand_as(one))


@pytest.mark.parametrize("fields", [{"mixup": 0.2}, {"cutmix": 1.0}, {"erase": 0.9}], ids=lambda fields: str(fields))
def test_epoch_has_its_own_random_numbers_which_a_seed_repeats(fields: dict[str, Any]) -> None:
    first = epoch(mixing(**fields), 3)
    again, other, later = epoch(mixing(**fields), 3), epoch(mixing(seed=1, **fields), 3), epoch(mixing(**fields), 4)

    def same(those: list[tuple[Tensor, Tensor]]) -> bool:
        return all(torch.equal(x, z) for (x, _), (z, _) in zip(first, those, strict=True))

    assert same(again) and not same(other) and not same(later)


def test_processes_mix_a_batch_by_one_share_and_erase_other_parts() -> None:
    first, second = mixing(mixup=0.5, erase=0.9), mixing(rank=1, mixup=0.5, erase=0.9)
    shares: list[tuple[float, float]] = []
    for (x, _), (z, _) in zip(
        first.epoch(iter(batches()), [4] * 3, 0), second.epoch(iter(batches()), [4] * 3, 0), strict=True
    ):
        assert first.share is not None and second.share is not None
        shares.append((float(first.share), float(second.share)))
        assert not torch.equal(x, z)
    assert all(one == two for one, two in shares)


class Linear(nn.Module):
    """A linear network from `(B, 1, 8, 8)` to ten logits, which keeps the images that it sees."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(64, 10, generator=generator))
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.detach().clone())
        return x.flatten(1) @ self.weight


def noise() -> DeviceSplit:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (6, 1, 8, 8), dtype=np.uint8)
    return DeviceSplit.place(Split(images, np.arange(6)), (0.5,), (0.25,), "cpu")


@pytest.mark.parametrize(
    "fields", [{"mixup": 1.0}, {"cutmix": 1.0, "label_smoothing": 0.2}, {"mixup": 1.0, "accumulate": 2}]
)
def test_loss_of_mixed_images_is_that_of_labels_mixed_by_the_same_share(fields: dict[str, Any]) -> None:
    spec = TrainSpec(batch_size=6, **fields)
    model, split = Linear(), noise()
    weight = model.weight.detach().clone()
    history = train(model, split, spec, augment="none", seed=4)
    generator = torch.Generator().manual_seed(4)
    x, y = next(split.shuffled(6, generator))
    changes = Mixing(spec, CPU, seed=4, rank=0)
    x, pairs = next(changes.epoch(iter([(x, y)]), [6], 0))
    assert changes.share is not None
    assert torch.allclose(torch.cat(model.seen), x, atol=1e-6)
    hot = functional.one_hot(pairs, 10).float()
    target = changes.share * hot[:, 0] + (1 - changes.share) * hot[:, 1]
    expected = functional.cross_entropy(x.flatten(1) @ weight, target, label_smoothing=spec.label_smoothing)
    assert history[0].loss == pytest.approx(float(expected), rel=1e-5)


def test_teacher_sees_the_mixed_images_of_the_student() -> None:
    student, teacher = Linear(), Linear()
    spec = TrainSpec(batch_size=6, mixup=1.0, cutmix=1.0, erase=0.5, policy="trivial")
    train(student, noise(), spec, augment="shift", seed=0, teacher=teacher)
    assert len(student.seen) == 1
    assert torch.equal(student.seen[0], teacher.seen[0])
