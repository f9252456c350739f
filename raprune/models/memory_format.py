"""Channels-last memory format, in which convolutions run faster (1.1 to 2.7 times on a CPU), if a network allows it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def layout_for(model: nn.Module, x: Tensor) -> torch.memory_format:
    """Return channels-last if `model` runs on `x` `(B, C, H, W)` in this format, else the contiguous format.

    A network that calls `view` across channels and pixels does not run in channels-last.

    Raises:
        torch.OutOfMemoryError, torch.AcceleratorError: if the device has no memory left, or does not work.
    """
    try:
        # The order matters: a buffer that is converted under inference_mode could never be used in training again.
        with laid_out(model, torch.channels_last), torch.inference_mode():
            model(x.contiguous(memory_format=torch.channels_last))
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        # The device failed, not the network.
        raise
    except RuntimeError:
        return torch.contiguous_format
    return torch.channels_last


@contextmanager
def laid_out(model: nn.Module | None, layout: torch.memory_format) -> Iterator[None]:
    """Keep the parameters of `model` in `layout` within the context, and contiguous after it, for files and tracing."""
    if model is None or layout == torch.contiguous_format:
        yield
        return
    model.to(memory_format=layout)
    try:
        yield
    finally:
        model.to(memory_format=torch.contiguous_format)
