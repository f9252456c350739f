"""Tests of the re-estimation of batch norms, against the statistics of all calibration images at once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from raprune.methods import reestimate_batch_norm
from tests.channels.networks import build


def batches_of(images: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    return [(part, torch.zeros(len(part), dtype=torch.int64)) for part in images.split(size)]


def drawn(count: int) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


@pytest.mark.parametrize("size", [8, 9, 24])
def test_reestimated_statistics_are_the_average_over_all_images(size: int) -> None:
    """The average is right even if the last batch is smaller: batches are weighted by their numbers of images."""
    model = build("Residual").double()
    batches = batches_of(drawn(24), size)
    reestimate_batch_norm(model, lambda: iter(batches))
    with torch.no_grad():
        seen = [model.get_submodule("stem")(x) for x, _ in batches]
    torch.testing.assert_close(model.get_buffer("stem_bn.running_mean"), torch.cat(seen).mean((0, 2, 3)))
    var = sum(x.var((0, 2, 3)) * len(x) for x in seen) / 24
    torch.testing.assert_close(model.get_buffer("stem_bn.running_var"), var)


def test_later_layers_see_what_the_earlier_ones_give_in_the_same_pass() -> None:
    """After one batch, evaluation mode gives the outputs of training mode, except for the unbiased variance."""
    model = build("Residual").double()
    batches = batches_of(drawn(16), 16)
    reestimate_batch_norm(model, lambda: iter(batches))
    evaluated = model.eval()(batches[0][0])
    trained = model.train()(batches[0][0])
    torch.testing.assert_close(evaluated, trained, rtol=1e-2, atol=1e-2)


def test_old_statistics_are_forgotten() -> None:
    one, other = build("Residual"), build("Residual")
    for module in other.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            module.running_mean.fill_(1e6)
    for model in (one, other):
        reestimate_batch_norm(model, lambda: iter(batches_of(drawn(16).float(), 8)))
    assert all(torch.equal(a, b) for a, b in zip(one.buffers(), other.buffers(), strict=True))


@pytest.mark.parametrize("training", [True, False])
def test_modes_momentum_and_weights_stay(training: bool) -> None:
    model = build("Residual").train(training)
    bn = model.get_submodule("bn1")
    assert isinstance(bn, nn.BatchNorm2d)
    bn.momentum = 0.03
    bn.eval()
    modes = [module.training for module in model.modules()]
    weights = [parameter.clone() for parameter in model.parameters()]
    reestimate_batch_norm(model, lambda: iter(batches_of(drawn(8).float(), 4)))
    assert [module.training for module in model.modules()] == modes
    assert bn.momentum == 0.03
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), weights, strict=True))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_reestimation_runs_without_dropout() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm2d(3)).train()
    images = drawn(8).float()
    reestimate_batch_norm(model, lambda: iter(batches_of(images, 8)))
    torch.testing.assert_close(model.get_buffer("1.running_mean"), images.mean((0, 2, 3)))


def test_a_last_batch_of_one_image_is_left_out() -> None:
    """One value per channel has no variance; PyTorch would raise."""
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(3 * 64))
    images = drawn(9).float()
    reestimate_batch_norm(model, lambda: iter(batches_of(images, 8)))
    torch.testing.assert_close(model.get_buffer("1.running_mean"), images[:8].flatten(1).mean(0))


def test_a_network_without_batch_norm_sees_no_batch() -> None:
    def none() -> Iterator[tuple[Tensor, Tensor]]:
        raise AssertionError("asked for batches")

    reestimate_batch_norm(build("FlattenLinear"), none)
