"""A Gaussian process over the widths, costs and settings of networks: a plane and a smooth remainder.

Rasmussen and Williams: "Gaussian Processes for Machine Learning", 2006, algorithm 2.1 and section 5.4.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from raprune.cost.latency import Floats

_LEVEL, _SLOPE = 2.0, 0.5
"""Prior standard deviations of the plane's constant and of its slopes."""
_LENGTHS = (1.0, 2.0, 4.0)
"""Length scales of the smooth remainder, in logarithms; the likeliest is taken, here and below."""
_BENDS = (0.1, 0.3)
"""Sizes of the smooth remainder: standard deviations of the logarithm of the error."""
_NOISES = (0.02, 0.05)
"""Noise of the images and the calibration: with 5,000 images and an error of 40 %, two percent of the error."""
_BLOCK = 64
"""Rows of a block of a triangular solve."""


@dataclass(frozen=True)
class Kernel:
    """The parameters of the Gaussian process that are fitted to results."""

    length: float
    bend: float
    noise: float


KERNELS = tuple(Kernel(*values) for values in product(_LENGTHS, _BENDS, _NOISES))


@dataclass(frozen=True)
class Predictions:
    """Predicted results at some inputs, by one model."""

    inputs: Floats
    """Shape `(N, D)`."""
    across: Floats
    """Their covariance with the results that the model is fitted to, whitened, shape `(results, N)`."""
    mean: Floats
    variance: Floats
    """Shape `(N,)`, as the mean."""

    @property
    def deviation(self) -> Floats:
        """Standard deviation of the results, shape `(N,)`."""
        return np.sqrt(np.maximum(self.variance, 0.0))


class GaussianProcess:
    """A Gaussian process: a plane and a smooth remainder, with a given kernel. It predicts results without noise."""

    def __init__(self, inputs: Floats, kernel: Kernel, mean: float, lower: Floats, whitened: Floats) -> None:
        self._inputs, self._kernel, self._mean, self._lower, self._whitened = inputs, kernel, mean, lower, whitened

    @classmethod
    def fitted(cls, inputs: Floats, values: Floats, kernel: Kernel) -> GaussianProcess:
        """The model of results: inputs `(N, D)`, values `(N,)`."""
        mean, lower = float(values.mean()), _triangle(_noisy(inputs, kernel))
        return cls(inputs, kernel, mean, lower, forward_solved(lower, (values - mean)[:, None])[:, 0])

    def expecting(self, under_way: Floats) -> tuple[GaussianProcess, Floats]:
        """The model once there are results at `under_way`, `(M, D)`, that are as predicted; and these results, `(M,)`.

        Such results leave its predictions as they are, and lower the deviations near them.
        """
        across, corner = self._beside(under_way)
        lower = np.block([[self._lower, np.zeros((len(self._lower), len(corner)))], [across.T, corner]])
        whitened = np.concatenate([self._whitened, np.zeros(len(corner))])
        inputs = np.vstack([self._inputs, under_way])
        return GaussianProcess(inputs, self._kernel, self._mean, lower, whitened), self._means(across)

    @property
    def likelihood(self) -> float:
        """Logarithm of the likelihood of the values, but for a constant."""
        return -0.5 * float(self._whitened @ self._whitened) - float(np.log(np.diag(self._lower)).sum())

    def predictions(self, inputs: Floats) -> Predictions:
        """Predictions for inputs `(N, D)`."""
        across = self._across(inputs)
        return Predictions(inputs, across, self._means(across), self._prior(inputs) - (across**2).sum(axis=0))

    def beside(self, predictions: Predictions, under_way: Floats) -> tuple[Floats, Floats]:
        """Standard deviation, `(N,)`, once there are results at `under_way` that are as predicted; and these results.

        The same as the predictions of `expecting`, at less cost where few are under way.
        """
        across, corner = self._beside(under_way)
        covariance = _covariance(under_way, predictions.inputs, self._kernel)
        more = forward_solved(corner, covariance - across.T @ predictions.across)
        left = predictions.variance - (more**2).sum(axis=0)
        return np.sqrt(np.maximum(left, 0.0)), self._means(across)

    def _beside(self, under_way: Floats) -> tuple[Floats, Floats]:
        """Covariance of `under_way` with the results, whitened, and the triangle of their own that is left."""
        across = self._across(under_way)
        return across, _triangle(_noisy(under_way, self._kernel) - across.T @ across)

    def _across(self, inputs: Floats) -> Floats:
        return forward_solved(self._lower, _covariance(self._inputs, inputs, self._kernel))

    def _means(self, across: Floats) -> Floats:
        return np.asarray(self._mean + across.T @ self._whitened)

    def _prior(self, inputs: Floats) -> Floats:
        return np.asarray(_LEVEL**2 + _SLOPE**2 * (inputs**2).sum(axis=1) + self._kernel.bend**2)


def _triangle(matrix: Floats) -> Floats:
    return np.asarray(np.linalg.cholesky(matrix), dtype=np.float64)


def _noisy(inputs: Floats, kernel: Kernel) -> Floats:
    """Covariance of results at inputs `(N, D)` with the noise of each."""
    covariance = _covariance(inputs, inputs, kernel)
    covariance[np.diag_indices_from(covariance)] += kernel.noise**2
    return covariance


def forward_solved(lower: npt.NDArray[np.floating[Any]], right: Floats) -> Floats:
    """The solution of `lower @ x = right` with a lower triangle `(N, N)` and `right` of shape `(N, K)`.

    By blocks, as NumPy has no triangular solve: a general one takes more than twice as long.
    """
    solution = np.empty_like(right)
    for begin in range(0, len(lower), _BLOCK):
        block = slice(begin, begin + _BLOCK)
        known = right[block] - lower[block, :begin] @ solution[:begin]
        solution[block] = np.linalg.solve(lower[block, block], known)
    return solution


def _covariance(one: Floats, other: Floats, kernel: Kernel) -> Floats:
    """Covariance of the results at inputs `(N, D)` and `(M, D)`, shape `(N, M)`."""
    products = one @ other.T
    distances = (one**2).sum(axis=1)[:, None] + (other**2).sum(axis=1) - 2 * products
    smooth = kernel.bend**2 * np.exp(-np.maximum(distances, 0.0) / (2 * kernel.length**2))
    return np.asarray(_LEVEL**2 + _SLOPE**2 * products + smooth)
