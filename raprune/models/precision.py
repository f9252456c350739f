"""Precision of forward passes: the half precision that a device has, and the rounding of float32 products on CUDA."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from torch.backends import cuda, cudnn

Precision = Literal["float32", "tf32", "bfloat16"]
"""Precision of an evaluation. `tf32` is float32 whose products CUDA rounds to 10 bits first."""

_CUDNN: Any = cudnn
"""PyTorch declares no types for cuDNN's settings."""

FLOAT16_FROM = (7, 0)
"""Compute capability from which CUDA devices multiply float16 in tensor cores; older ones gain nothing by it."""


def half_precision(device: torch.device) -> torch.dtype | None:
    """Return the 16-bit type that `device` computes in at full speed; None if it has no such type.

    The type is bfloat16 where the card has it and does not emulate it, else float16, which needs scaled losses.
    """
    if device.type != "cuda":
        return None
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    return torch.float16 if torch.cuda.get_device_capability(device) >= FLOAT16_FROM else None


@contextmanager
def forward_in(precision: Precision, device: torch.device) -> Iterator[None]:
    """Run forward passes on `device` in `precision` within the context; float32 is exact on CUDA too.

    A device without bfloat16 takes the type of `half_precision`, and a CUDA device without either takes `tf32`. On
    other devices `tf32` is float32.
    """
    if device.type != "cuda":
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16"):
            yield
        return
    half = half_precision(device) if precision == "bfloat16" else None
    with (
        _products("ieee" if precision == "float32" else "tf32"),
        torch.autocast("cuda", dtype=half or torch.bfloat16, enabled=half is not None),
    ):
        yield


@contextmanager
def _products(precision: Literal["ieee", "tf32"]) -> Iterator[None]:
    """Set how CUDA computes products of float32 values within the context.

    By default PyTorch rounds for convolutions and not for matrix products.
    """
    with ExitStack() as stack:
        for backend in (_CUDNN.conv, _CUDNN.rnn, cuda.matmul):
            stack.callback(_set_products, backend, backend.fp32_precision)
            _set_products(backend, precision)
        yield


def _set_products(backend: Any, precision: str) -> None:
    backend.fp32_precision = precision
