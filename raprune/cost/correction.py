"""The correction of predicted latencies by whole networks that were timed.

A search takes the widths whose prediction is lowest, and so those where the table errs most. Each whole network that
was timed gives the factor between its time and the prediction. Other networks get the mean of these factors, and the
nearer their widths are to those of a timed network, the more of that network's own factor: a Gaussian process
(Rasmussen and Williams, "Gaussian Processes for Machine Learning", 2006, section 2.7) on the logarithms of factors and
sizes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

_Values = npt.NDArray[np.float64]

NEAR = 0.25
"""Distance of two networks, the root mean square over the axes of the logarithms of their sizes' ratios, at which their
factors have a correlation of 0.6."""
NOISE, LEAST = 0.01, 0.03
"""Standard deviation of a timing, relative to it, and the least of the factors around their mean."""


@dataclass(frozen=True, eq=False)
class Correction:
    """Factors of n timed networks, whose F axes have the sizes `sizes`."""

    sizes: _Values
    """Shape `(n, F)`."""
    factors: _Values
    """Time over the prediction of the table without any correction, shape `(n,)`."""

    def at(self, sizes: _Values) -> _Values:
        """Return the factors of networks with these sizes; `(m, F)` to `(m,)`."""
        mean, weights, variance = self._fit
        factors: _Values = np.exp(mean + variance * _similar(_logs(sizes), _logs(self.sizes)) @ weights)
        return factors

    def with_more(self, sizes: _Values, factors: _Values) -> Correction:
        """Return the correction by these networks too."""
        return Correction(np.concatenate([self.sizes, sizes]), np.concatenate([self.factors, factors]))

    @cached_property
    def _fit(self) -> tuple[float, _Values, float]:
        """Mean of the logarithms, weights of the networks, and variance around the mean."""
        values, logs = np.log(self.factors), _logs(self.sizes)
        variance = max(float(np.var(values)), LEAST**2)
        covariance = variance * _similar(logs, logs) + NOISE**2 * np.eye(len(values))
        ones = np.linalg.solve(covariance, np.ones(len(values)))
        mean = float(ones @ values / ones.sum())
        weights: _Values = np.linalg.solve(covariance, values - mean).astype(np.float64)
        return mean, weights, variance

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return arrays from which `from_arrays` makes an equal correction."""
        return {"corrected_sizes": self.sizes, "corrected_factors": self.factors}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> Correction | None:
        """Return the correction that a table's arrays hold; None if they hold none."""
        if "corrected_sizes" not in arrays:
            return None
        return cls(arrays["corrected_sizes"], arrays["corrected_factors"])


def _logs(sizes: _Values) -> _Values:
    # The axes of a block that is gone have no size.
    return np.log(np.maximum(sizes, 0.5))


def _similar(one: _Values, other: _Values) -> _Values:
    """Return the correlations of the factors; `(m, F)` and `(n, F)` to `(m, n)`."""
    squares = (one**2).mean(1)[:, None] + (other**2).mean(1)[None] - 2 * one @ other.T / one.shape[1]
    similar: _Values = np.exp(-np.maximum(squares, 0.0) / (2 * NEAR**2))
    return similar
