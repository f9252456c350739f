"""The latency of any width vector, from a table of operation times that were measured on the device (`measure.py`).

Each operation's time is a grid over the sizes of at most two tensor axes, interpolated bilinearly. A network takes

    offset + sum over its operations of scale[kind] * time

milliseconds. Scales and offset are fitted to whole networks, because the sum alone includes neither the time between
operations nor the effect of caches on a tensor that another operation just wrote. Networks of the run that were timed
correct the sum (`correction.py`).

Times are those that were measured. They need not rise with the sizes: a width that is no multiple of the vector unit's
width can take longer than the next multiple, and then the wider network is the faster one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from raprune.channels.positions import IndexArray
from raprune.cost.correction import Correction

Floats = npt.NDArray[np.float64]

TABLE = "latency.safetensors"
"""File name of a run's table in the run's folder."""

KINDS = ("matrix", "other")
"""Kinds of operations: convolutions and products of matrices; and all other operations."""

_CHUNK = 512
"""Number of width vectors that are predicted together, so that the intermediate arrays stay in the CPU's cache."""


@dataclass(frozen=True)
class PredictionError:
    """Error of the predictions for whole networks by a fit without them, relative to their timings."""

    median_error: float
    """Median of the relative errors: 0.1 is 10 %."""
    worst_error: float
    """Largest relative error."""
    networks: int
    """Number of networks."""


@dataclass(frozen=True, eq=False)
class LatencyTable:
    """Times of a network's operations on one device, for one batch. N operations share T grids of at most W x W."""

    grids: Floats
    """Ascending sizes of the two axes, shape `(T, 2, W)`; a shorter grid repeats its last size."""
    times_ms: Floats
    """Times at the points of the grids, shape `(T, W, W)`."""
    tables: IndexArray
    """Index of each operation's grid, shape `(N,)`."""
    factors: IndexArray
    """Indices in `ChannelGraph.factors` of each operation's two axes, -1 for no axis; shape `(N, 2)`."""
    kinds: IndexArray
    """Index of each operation's kind in `KINDS`, shape `(N,)`."""
    modules: tuple[str, ...]
    """Name of the module that runs each operation."""
    scales: tuple[float, ...]
    """Scale of the times of each of `KINDS`."""
    offset_ms: float
    dense_ms: float
    """Milliseconds of one batch through the dense network, measured as a whole."""
    accuracy: PredictionError
    device: str
    """Name of the device; for a CPU with the number of threads."""
    batch_size: int
    precision: str
    unknown: tuple[str, ...] = ()
    """Operations that the table does not model: their sizes follow no traced axis, so that they count as at full
    width, or they only run inside the network, so that they count nothing by themselves."""

    runtime: str = "eager"
    """Runtime in which the operations were timed: a value of `latency.runtime`."""
    corrected_by: int = 0
    """Number of whole networks that corrected the scales, because the error was above 10 % at first; 0: none."""
    step: int = 1
    """Number that the timed widths are multiples of."""
    correction: Correction | None = None
    """Correction by whole networks of the run; None if there is none."""

    def predict(self, sizes: npt.ArrayLike) -> Floats:
        """Predict the milliseconds of a batch from the `sizes` of the graph's factors; shape `(..., F)` to `(...,)`."""
        values = np.asarray(sizes, dtype=np.float64)
        flat = values.reshape(-1, values.shape[-1])
        parts = [self._corrected(flat[start : start + _CHUNK]) for start in range(0, len(flat), _CHUNK)]
        return np.concatenate(parts or [np.zeros(0)]).reshape(values.shape[:-1])

    def corrected(self, sizes: Floats, measured_ms: Floats) -> LatencyTable:
        """Return the table corrected by networks of these sizes, `(n, F)`, which took `measured_ms`, `(n,)`."""
        factors = measured_ms / self._predict(sizes)
        more = Correction(sizes, factors) if self.correction is None else self.correction.with_more(sizes, factors)
        return replace(self, correction=more)

    def without(self, modules: Sequence[str]) -> LatencyTable:
        """Return the table without the operations inside these modules; the dense network's time stays."""
        prefixes = tuple(f"{module}." for module in modules)
        stay = np.array([not f"{name}.".startswith(prefixes) for name in self.modules], dtype=bool)
        return replace(
            self,
            tables=self.tables[stay],
            factors=self.factors[stay],
            kinds=self.kinds[stay],
            modules=tuple(name for name, stays in zip(self.modules, stay, strict=True) if stays),
        )

    def by_module(self, sizes: npt.ArrayLike) -> dict[str, float]:
        """Return the milliseconds of each module's operations, the slowest module first; `sizes` has shape `(F,)`."""
        scale = np.array(self.scales)[self.kinds]
        times = self._all.times(self.times_ms, np.asarray(sizes, dtype=np.float64)[None])[0] * scale
        by_module: dict[str, float] = {}
        for module, time_ms in zip(self.modules, times.tolist(), strict=True):
            by_module[module] = by_module.get(module, 0.0) + time_ms
        return dict(sorted(by_module.items(), key=lambda item: -item[1]))

    def sums(self, sizes: Floats) -> Floats:
        """Return for each kind the sum of its operations' times before any scale; `(n, F)` to `(n, len(KINDS))`."""
        times = self._all.times(self.times_ms, sizes)
        return np.stack([times[:, self.kinds == kind].sum(axis=1) for kind in range(len(KINDS))], axis=1)

    def _corrected(self, sizes: Floats) -> Floats:
        predicted = self._predict(sizes)
        return predicted if self.correction is None else predicted * self.correction.at(sizes)

    def _predict(self, sizes: Floats) -> Floats:
        lookup, weights = self._distinct
        total: Floats = lookup.times(self.times_ms, sizes) @ weights + self.offset_ms
        return total

    @cached_property
    def _all(self) -> _Lookup:
        return _Lookup.of(self.grids, self.tables, self.factors)

    @cached_property
    def _distinct(self) -> tuple[_Lookup, Floats]:
        """The lookup of all distinct operations, and for each of them the sum of the scales of its occurrences."""
        rows, which = np.unique(np.c_[self.tables, self.factors], axis=0, return_inverse=True)
        weights = np.bincount(which.reshape(-1), np.array(self.scales)[self.kinds], minlength=len(rows))
        return _Lookup.of(self.grids, rows[:, 0], rows[:, 1:]), weights.astype(np.float64)

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return arrays from which `from_arrays` makes an equal table."""
        about = {
            "modules": self.modules,
            "scales": self.scales,
            "offset_ms": self.offset_ms,
            "runtime": self.runtime,
            "corrected_by": self.corrected_by,
            "step": self.step,
            "dense_ms": self.dense_ms,
            "accuracy": vars(self.accuracy),
            "device": self.device,
            "batch_size": self.batch_size,
            "precision": self.precision,
            "unknown": self.unknown,
        }
        arrays: dict[str, npt.NDArray[Any]] = {
            "about": np.frombuffer(json.dumps(about).encode(), dtype=np.uint8).copy(),
            "grids": self.grids,
            "times_ms": self.times_ms,
            "tables": self.tables,
            "factors": self.factors,
            "kinds": self.kinds,
        }
        return arrays if self.correction is None else arrays | self.correction.to_arrays()

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> LatencyTable:
        about = json.loads(arrays["about"].tobytes())
        return cls(
            **{name: arrays[name] for name in ("grids", "times_ms", "tables", "factors", "kinds")},
            modules=tuple(about["modules"]),
            scales=tuple(about["scales"]),
            offset_ms=about["offset_ms"],
            dense_ms=about["dense_ms"],
            accuracy=PredictionError(**about["accuracy"]),
            device=about["device"],
            batch_size=about["batch_size"],
            precision=about["precision"],
            unknown=tuple(about["unknown"]),
            # Tables of earlier versions have none of these.
            runtime=about.get("runtime", "eager"),
            corrected_by=about.get("corrected_by", 0),
            step=about.get("step", 1),
            correction=Correction.from_arrays(arrays),
        )

    def describe(self) -> dict[str, Any]:
        """Return the description of the table for `run.json`."""
        return {
            "device": self.device,
            "runtime": self.runtime,
            "batch_size": self.batch_size,
            "precision": self.precision,
            "dense_ms": self.dense_ms,
            "median_error": self.accuracy.median_error,
            "worst_error": self.accuracy.worst_error,
            "networks": self.accuracy.networks,
            "unknown": list(self.unknown),
            "corrected_by": 0 if self.correction is None else len(self.correction.factors),
        }


@dataclass(frozen=True, eq=False)
class _Lookup:
    """Interpolation in the grids for N operations.

    The operations share U axes, each a factor with a grid, so that each axis is located in its grid only once.
    """

    tables: IndexArray
    """Index of each operation's grid, shape `(N,)`."""
    axes: IndexArray
    """Indices of each operation's two axes, shape `(N, 2)`."""
    factors: IndexArray
    """Factor of each axis, shape `(U,)`."""
    grids: Floats
    """Grid of each axis, shape `(U, W)`."""

    @classmethod
    def of(cls, grids: Floats, tables: IndexArray, factors: IndexArray) -> _Lookup:
        axes = np.c_[factors.reshape(-1), grids[tables].reshape(-1, grids.shape[2])]
        distinct, which = np.unique(axes, axis=0, return_inverse=True)
        return cls(tables, which.reshape(-1, 2), distinct[:, 0].astype(np.int64), distinct[:, 1:])

    def times(self, times_ms: Floats, sizes: Floats) -> Floats:
        """Return the times of the operations at `sizes`, `(n, F)` to `(n, N)`; beyond a grid the time at its edge."""
        last = self.grids.shape[1] - 1
        at = np.where(self.factors >= 0, sizes[:, self.factors], self.grids[:, 0])
        lower = np.zeros(at.shape, dtype=np.int64)
        for edge in range(1, last):
            lower += at >= self.grids[:, edge]
        upper, axis = np.minimum(lower + 1, last), np.arange(len(self.grids))
        left, right = self.grids[axis, lower], self.grids[axis, upper]
        fraction = np.clip((at - left) / np.where(right > left, right - left, 1.0), 0.0, 1.0)
        (first, second), tables = self.axes.T, self.tables
        i, up, u = lower[:, first], upper[:, first], fraction[:, first]
        j, on, v = lower[:, second], upper[:, second], fraction[:, second]
        near = times_ms[tables, i, j] * (1 - v) + times_ms[tables, i, on] * v
        far = times_ms[tables, up, j] * (1 - v) + times_ms[tables, up, on] * v
        result: Floats = near * (1 - u) + far * u
        return result


def fitted(sums: Floats, measured_ms: Floats) -> Floats:
    """Fit scales and offset, none below 0, to `sums` `(n, kinds)` by least relative squared error; `(kinds + 1,)`.

    Every subset of the terms is solved by itself, which for three terms gives the exact solution.
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
