from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from raprune.models.digits import DigitsNet
from raprune.models.memory_format import laid_out, layout_for


class Views(nn.Module):
    """A network that calls `view` across channels and pixels, which only contiguous memory allows."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x.view(len(x), -1)


def test_channels_last_only_where_the_network_runs_on_it() -> None:
    assert layout_for(DigitsNet(in_channels=3), torch.randn(2, 3, 8, 8)) == torch.channels_last
    assert layout_for(Views(), torch.randn(2, 3, 8, 8)) == torch.contiguous_format


def test_layout_where_the_device_has_no_memory_left_is_an_error_and_not_a_layout() -> None:
    class Hungry(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        layout_for(Hungry(), torch.randn(2, 3, 8, 8))


def test_the_layout_is_given_back_even_after_an_error() -> None:
    model = DigitsNet(in_channels=3)
    with laid_out(model, torch.channels_last):
        assert model.conv2.weight.is_contiguous(memory_format=torch.channels_last)
    assert model.conv2.weight.is_contiguous()
    with pytest.raises(RuntimeError), laid_out(model, torch.channels_last):
        model(torch.zeros(1, 99, 8, 8))
    assert model.conv2.weight.is_contiguous()


def test_buffers_can_still_be_trained_with() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.register_buffer("mask", torch.ones(1, 4, 6, 6))

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x) * self.mask

    model = Masked()
    layout_for(model, torch.randn(2, 3, 8, 8))
    assert not any(buffer.is_inference() for buffer in model.buffers())
    model(torch.randn(2, 3, 8, 8)).sum().backward()
