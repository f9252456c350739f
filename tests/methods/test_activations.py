"""Tests of methods that score channels at the readers' inputs, against the formulas written out."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from raprune.channels.graph import ChannelGraph
from raprune.channels.trace import trace
from raprune.methods import METHODS, taylor
from raprune.methods.activations import readers


class Net(nn.Module):
    """Two convolutions and a linear layer after a flatten of 2x2 positions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 5, 3, padding=1)
        self.conv2 = nn.Conv2d(5, 4, 3, padding=1)
        self.linear = nn.Linear(16, 6)

    def maps(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first = torch.relu(self.conv1(x))
        return first, functional.adaptive_avg_pool2d(torch.relu(self.conv2(first)), 2)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.maps(x)[1].flatten(1))
        return logits


DATA = torch.Generator().manual_seed(4)
BATCHES = [(torch.randn(n, 3, 8, 8, generator=DATA), torch.randint(6, (n,), generator=DATA)) for n in (6, 3)]


def batches() -> Iterator[tuple[Tensor, Tensor]]:
    yield from BATCHES


@pytest.fixture(scope="module")
def net() -> tuple[Net, ChannelGraph]:
    torch.manual_seed(0)
    model = Net().eval()
    return model, trace(model, torch.zeros(1, 3, 8, 8))


def scores(method: str, net: tuple[Net, ChannelGraph]) -> dict[str, np.ndarray]:
    return METHODS[method]().score(*net, batches, seed=0)


def unit(values: Tensor) -> np.ndarray:
    found: np.ndarray = (values / values.norm()).detach().double().numpy()
    return found


def maps(model: Net) -> tuple[Tensor, Tensor]:
    """Return the channels of conv1 and of conv2 at their readers, for all images, in one float64 pass."""
    with torch.no_grad():
        first, second = zip(*(model.maps(x) for x, _ in BATCHES), strict=True)
    return torch.cat(first), torch.cat(second)


def test_each_group_is_read_where_it_is_consumed(net: tuple[Net, ChannelGraph]) -> None:
    model, graph = net
    found = {reader.group: (reader.module, reader.indices.shape) for reader in readers(model, graph)}
    assert found == {"conv1": (model.conv2, (5, 1)), "conv2": (model.linear, (4, 4))}


def test_apoz_score_is_the_fraction_of_non_zeros(net: tuple[Net, ChannelGraph]) -> None:
    for name, seen in zip(("conv1", "conv2"), maps(net[0]), strict=True):
        nonzero = torch.stack([(seen[:, c] != 0).float().mean() for c in range(seen.shape[1])])
        np.testing.assert_allclose(scores("apoz", net)[name], unit(nonzero), rtol=1e-5)


def test_activation_score_is_the_mean_absolute_value(net: tuple[Net, ChannelGraph]) -> None:
    for name, seen in zip(("conv1", "conv2"), maps(net[0]), strict=True):
        size = torch.stack([seen[:, c].abs().mean() for c in range(seen.shape[1])])
        np.testing.assert_allclose(scores("activation", net)[name], unit(size), rtol=1e-5)


def test_taylor_is_the_change_of_the_loss_image_by_image(net: tuple[Net, ChannelGraph]) -> None:
    model = net[0]
    change = {"conv1": torch.zeros(5), "conv2": torch.zeros(4)}
    for images, labels in BATCHES:
        for image, label in zip(images, labels, strict=True):
            first = torch.relu(model.conv1(image[None])).detach().requires_grad_()
            second = functional.adaptive_avg_pool2d(torch.relu(model.conv2(first)), 2)
            loss = functional.cross_entropy(model.linear(second.flatten(1)), label[None])
            for name, a, g in zip(change, (first, second), torch.autograd.grad(loss, (first, second)), strict=True):
                for c in range(len(change[name])):
                    change[name][c] += (a[0, c] * g[0, c]).mean().abs().detach()
    for name, total in change.items():
        np.testing.assert_allclose(scores("taylor", net)[name], unit(total), rtol=1e-4)
        assert scores("taylor", net)[name].min() > 0


def test_taylor_takes_large_images_a_few_at_a_time(
    net: tuple[Net, ChannelGraph], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, whole = net[0], scores("taylor", net)
    sizes: list[int] = []
    handle = model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    monkeypatch.setattr(taylor, "MOST_PIXELS", 2 * BATCHES[0][0][0, 0].numel() + 1)
    parts = scores("taylor", net)
    handle.remove()
    assert max(sizes) == 2 and sum(sizes) == sum(len(images) for images, _ in BATCHES)
    for name, score_C in whole.items():
        np.testing.assert_allclose(parts[name], score_C, rtol=1e-5)


def test_fpgm_is_the_distance_to_all_other_filters(net: tuple[Net, ChannelGraph]) -> None:
    for name, layer in (("conv1", net[0].conv1), ("conv2", net[0].conv2)):
        filters = layer.weight.detach().double()
        distance = torch.stack([sum((a - b).pow(2).sum().sqrt() for b in filters) for a in filters])
        np.testing.assert_allclose(scores("fpgm", net)[name], unit(distance), rtol=1e-6)
