"""Positions on the axes of parameters, and their short forms in JSON. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

IndexArray = npt.NDArray[np.int64]


def pack_indices(indices: IndexArray) -> dict[str, Any]:
    """Write indices as `start + row * stride + column * step` if they have that form, else in full."""
    rows, columns = indices.shape
    start = int(indices[0, 0])
    stride = int(indices[1, 0] - indices[0, 0]) if rows > 1 else 0
    step = int(indices[0, 1] - indices[0, 0]) if columns > 1 else 0
    if np.array_equal(indices, start + stride * np.arange(rows)[:, None] + step * np.arange(columns)[None, :]):
        return {"affine": [start, rows, stride, columns, step]}
    return {"indices": indices.tolist()}


def unpack_indices(packed: Mapping[str, Any]) -> IndexArray:
    if "affine" not in packed:
        return np.asarray(packed["indices"], dtype=np.int64)
    start, rows, stride, columns, step = packed["affine"]
    return (start + stride * np.arange(rows)[:, None] + step * np.arange(columns)[None, :]).astype(np.int64)


def pack_positions(positions: IndexArray) -> list[list[int]]:
    """Write ascending positions as runs `[first, last]`, both included, which are short to read and to write."""
    breaks = np.flatnonzero(np.diff(positions) != 1)
    firsts = np.r_[positions[:1], positions[breaks + 1]]
    lasts = np.r_[positions[breaks], positions[-1:]]
    return [[int(first), int(last)] for first, last in zip(firsts, lasts, strict=True)]


def unpack_positions(runs: list[list[int]]) -> IndexArray:
    """Return the positions from the runs of `pack_positions`."""
    return np.concatenate([np.arange(first, last + 1) for first, last in runs] or [np.arange(0)])
