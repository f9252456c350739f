"""The latency of any width vector, from a table of operation times that were measured on the device (`measure.py`).

Each operation's time is a grid over the sizes of at most two tensor axes, interpolated bilinearly. A network takes

    offset + sum over its operations of scale[kind] * time

milliseconds, with scales and offset fitted to whole networks: the sum alone knows neither the calls between operations
nor that a tensor which another operation just wrote is still in the cache, or no longer.

Times are made monotone in the sizes, and no network is slower than the dense one: the projection onto a budget takes
both for granted. Real ones are monotone only about: a width that is no multiple of the vector unit's can take longer
than the next one that is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Positions = npt.NDArray[np.int64]

TABLE = "latency.safetensors"
"""Where a run keeps its table."""

KINDS = ("matrix", "other")
"""Of operations: convolutions and products of matrices; and all that is done element by element."""

_CHUNK = 512
"""Width vectors that are worked on together: their intermediate arrays stay in the cache."""


@dataclass(frozen=True)
class Accuracy:
    """How far predictions were from the timings of whole networks that had no part in the fit."""

    median_error: float
    """Relative to the timing."""
    worst_error: float
    networks: int


@dataclass(frozen=True, eq=False)
class LatencyTable:
    """Times of a network's operations on one device, for one batch. N operations share T grids of at most W x W."""

    grids: Floats
    """Ascending sizes of the two axes; shape `(T, 2, W)`, the last size repeated where there are fewer."""
    times_ms: Floats
    """Shape `(T, W, W)`; monotone in both axes."""
    tables: Positions
    """Operation -> its grid; shape `(N,)`."""
    factors: Positions
    """Operation -> the positions in `ChannelGraph.factors` of its two axes, -1 for none; shape `(N, 2)`."""
    kinds: Positions
    """Operation -> position in `KINDS`; shape `(N,)`."""
    modules: tuple[str, ...]
    """Operation -> the module that runs it."""
    scales: tuple[float, ...]
    """One for each of `KINDS`."""
    offset_ms: float
    dense_ms: float
    """The dense network's, measured whole."""
    accuracy: Accuracy
    device: str
    """Its name, and on a processor the number of threads."""
    batch_size: int
    precision: str
    unknown: tuple[str, ...] = ()
    """Operations whose sizes follow no traced axis, which count as at full width, or that run in the network only,
    which count nothing by themselves."""

    def predict(self, sizes: npt.ArrayLike) -> Floats:
        """Milliseconds of a batch; `sizes` of the graph's factors, shape `(..., F)` to `(...,)`."""
        values = np.asarray(sizes, dtype=np.float64)
        flat = values.reshape(-1, values.shape[-1])
        parts = [self._predict(flat[start : start + _CHUNK]) for start in range(0, len(flat), _CHUNK)]
        return np.concatenate(parts or [np.zeros(0)]).reshape(values.shape[:-1])

    def by_module(self, sizes: npt.ArrayLike) -> dict[str, float]:
        """Module -> milliseconds of its operations, the slowest first; `sizes` of shape `(F,)`."""
        scale = np.array(self.scales)[self.kinds]
        times = self._all.times(self.times_ms, np.asarray(sizes, dtype=np.float64)[None])[0] * scale
        by_module: dict[str, float] = {}
        for module, time_ms in zip(self.modules, times.tolist(), strict=True):
            by_module[module] = by_module.get(module, 0.0) + time_ms
        return dict(sorted(by_module.items(), key=lambda item: -item[1]))

    def sums(self, sizes: Floats) -> Floats:
        """For each kind the sum of its operations' times, before any scale; `(n, F)` to `(n, len(KINDS))`."""
        times = self._all.times(self.times_ms, sizes)
        return np.stack([times[:, self.kinds == kind].sum(axis=1) for kind in range(len(KINDS))], axis=1)

    def _predict(self, sizes: Floats) -> Floats:
        lookup, weights = self._distinct
        total = lookup.times(self.times_ms, sizes) @ weights + self.offset_ms
        return np.minimum(total, self.dense_ms)

    @cached_property
    def _all(self) -> _Lookup:
        return _Lookup.of(self.grids, self.tables, self.factors)

    @cached_property
    def _distinct(self) -> tuple[_Lookup, Floats]:
        """Every operation that differs from the others, and its scales added up."""
        rows, which = np.unique(np.c_[self.tables, self.factors], axis=0, return_inverse=True)
        weights = np.bincount(which.reshape(-1), np.array(self.scales)[self.kinds], minlength=len(rows))
        return _Lookup.of(self.grids, rows[:, 0], rows[:, 1:]), weights.astype(np.float64)

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Arrays alone, which `from_arrays` reads back to an equal table."""
        about = {
            "modules": self.modules,
            "scales": self.scales,
            "offset_ms": self.offset_ms,
            "dense_ms": self.dense_ms,
            "accuracy": vars(self.accuracy),
            "device": self.device,
            "batch_size": self.batch_size,
            "precision": self.precision,
            "unknown": self.unknown,
        }
        return {
            "about": np.frombuffer(json.dumps(about).encode(), dtype=np.uint8).copy(),
            "grids": self.grids,
            "times_ms": self.times_ms,
            "tables": self.tables,
            "factors": self.factors,
            "kinds": self.kinds,
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> LatencyTable:
        about = json.loads(arrays["about"].tobytes())
        return cls(
            **{name: arrays[name] for name in ("grids", "times_ms", "tables", "factors", "kinds")},
            modules=tuple(about["modules"]),
            scales=tuple(about["scales"]),
            offset_ms=about["offset_ms"],
            dense_ms=about["dense_ms"],
            accuracy=Accuracy(**about["accuracy"]),
            device=about["device"],
            batch_size=about["batch_size"],
            precision=about["precision"],
            unknown=tuple(about["unknown"]),
        )

    def describe(self) -> dict[str, Any]:
        """What `run.json` says of it."""
        return {
            "device": self.device,
            "batch_size": self.batch_size,
            "precision": self.precision,
            "dense_ms": self.dense_ms,
            "median_error": self.accuracy.median_error,
            "worst_error": self.accuracy.worst_error,
            "networks": self.accuracy.networks,
            "unknown": list(self.unknown),
        }


@dataclass(frozen=True, eq=False)
class _Lookup:
    """Where operations look up their times. They share U axes, each a factor with a grid: those are worked out once."""

    tables: Positions
    """Shape `(N,)`."""
    axes: Positions
    """Shape `(N, 2)`."""
    factors: Positions
    """Of the axes, shape `(U,)`."""
    grids: Floats
    """Of the axes, shape `(U, W)`."""

    @classmethod
    def of(cls, grids: Floats, tables: Positions, factors: Positions) -> _Lookup:
        axes = np.c_[factors.reshape(-1), grids[tables].reshape(-1, grids.shape[2])]
        distinct, which = np.unique(axes, axis=0, return_inverse=True)
        return cls(tables, which.reshape(-1, 2), distinct[:, 0].astype(np.int64), distinct[:, 1:])

    def times(self, times_ms: Floats, sizes: Floats) -> Floats:
        """Times of the operations at these sizes, `(n, F)` to `(n, N)`; beyond a grid as at its edge."""
        last = self.grids.shape[1] - 1
        at = np.where(self.factors >= 0, sizes[:, self.factors], self.grids[:, 0])
        lower = np.zeros(at.shape, dtype=np.int64)
        for edge in range(1, last):
            lower += at >= self.grids[:, edge]
        upper, axis = np.minimum(lower + 1, last), np.arange(len(self.grids))
        left, right = self.grids[axis, lower], self.grids[axis, upper]
        share = np.clip((at - left) / np.where(right > left, right - left, 1.0), 0.0, 1.0)
        (first, second), tables = self.axes.T, self.tables
        i, up, u = lower[:, first], upper[:, first], share[:, first]
        j, on, v = lower[:, second], upper[:, second], share[:, second]
        near = times_ms[tables, i, j] * (1 - v) + times_ms[tables, i, on] * v
        far = times_ms[tables, up, j] * (1 - v) + times_ms[tables, up, on] * v
        result: Floats = near * (1 - u) + far * u
        return result


def monotone(times: Floats) -> Floats:
    """The nearest times, in the largest distance, that never fall along an axis; any shape.

    Half way between the least such times above them and the greatest below.
    """
    above, below = times.copy(), times.copy()
    for axis in range(times.ndim):
        above = np.maximum.accumulate(above, axis=axis)
        below = np.flip(np.minimum.accumulate(np.flip(below, axis), axis=axis), axis)
    return (above + below) / 2


def fitted(sums: Floats, measured_ms: Floats) -> Floats:
    """Scales and offset, none below 0, that give `sums` (n, kinds) the least relative squared error; `(kinds + 1,)`.

    Every subset of the terms is solved by itself, which for three of them is the exact solution.
    """
    terms = np.c_[sums, np.ones(len(sums))] / measured_ms[:, None]
    best, least = np.zeros(terms.shape[1]), np.inf
    for subset in range(1, 2 ** terms.shape[1]):
        columns = [i for i in range(terms.shape[1]) if subset >> i & 1]
        solution = np.linalg.lstsq(terms[:, columns], np.ones(len(terms)), rcond=None)[0]
        error = float(((terms[:, columns] @ solution - 1) ** 2).sum())
        if (solution >= 0).all() and error < least:
            best, least = np.zeros(terms.shape[1]), error
            best[columns] = solution
    return best
