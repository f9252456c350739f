"""Widths near the best so far: those of the front, changed a little. Pure: results in, a proposal's widths out.

A sampler over keep ratios begins with networks that are cut at random; widths by predicted damage, uniform and global
ones are far better than those. What is near them is better still, as no prediction knows how the groups' damages come
together. So a part of the proposals are children of the front: for some targets, of the members whose cost is nearest,
with the ratios of some groups multiplied by random factors. The projection onto the target (`allocate.ratios`) does the
rest.

Among many children the most promising one is tried, as soon as there are results enough to tell. A Gaussian process
(Rasmussen and Williams, 2006, algorithm 2.1 and section 5.4) predicts the logarithm of the error from those of cost and
ratios, the method and its hyper-parameters; the child by which the front is expected to gain most area is taken
(Emmerich et al., "Single- and multiobjective evolutionary optimization assisted by Gaussian random field metamodels",
IEEE TEC 2006). So trials go where the front has a step that can be filled. What is under way counts as come out as
predicted (Ginsbourger et al., "Kriging is well-suited to parallelize optimization", 2010), so that two do not seek the
same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from raprune.cost.latency import Floats
from raprune.pareto import non_dominated
from raprune.records import Setting

STEP = 0.3
"""Standard deviation of the logarithm of a factor: most are between three quarters and four thirds."""
CHANGED = 0.5
"""Share of the groups that a child changes, one at least."""
PARENTS = 4
TARGETS = 16
"""Costs that children are made for, one in each sixteenth of the range's logarithms."""
CHILDREN = 32
"""For each target, of its parents by turns; the model picks one of all."""
LOWEST = 0.01
LEARNED = 256
"""Results that the model is fitted to, at most: those whose error is least above the front's."""
ENOUGH = 8
"""Results from which on children are compared."""
LEAST = 1e-4
"""An error below this counts as this."""

_LEVEL, _SLOPE = 2.0, 0.5
"""Standard deviations of the model's constant and of its slopes, before any result."""
_LENGTHS = (1.0, 2.0, 4.0)
"""Over which distances of the logarithms it bends: that under which the results are likeliest."""
_BENDS = (0.1, 0.3)
"""By how much, as a standard deviation of the logarithm of the error."""
_NOISES = (0.02, 0.05)
"""Noise that the images and the calibration add: with 5,000 images and an error of 40 %, two percent."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A result that proposals may learn from, or what one is predicted to be."""

    method: str
    settings: Mapping[str, Setting]
    ratios: Mapping[str, float]
    """Group name -> the share of its channels that stayed, in (0, 1]."""
    cost: float
    """The cost that accuracy is traded against, as a fraction of the dense network, in (0, 1]."""
    error: float
    """1 - accuracy, in [0, 1]."""


def front_of(seen: Sequence[Seen]) -> list[Seen]:
    """Those that no other one beats, the cheapest first."""
    front = [seen[index] for index in non_dominated([(one.error, one.cost) for one in seen])]
    return sorted(front, key=lambda one: one.cost)


def parents_of(front: Sequence[Seen], target: float) -> list[Seen]:
    """Members of the front, by how near their cost is to `target` on a logarithmic scale."""
    return sorted(front, key=lambda one: abs(np.log(one.cost / target)))[:PARENTS]


def targets_in(lowest: float, highest: float, *, generator: np.random.Generator) -> list[float]:
    """`TARGETS` costs that cover the range evenly on a logarithmic scale, in random order."""
    places = (generator.permutation(TARGETS) + generator.random(TARGETS)) / TARGETS
    # Rounded, here and below: a resumed search on another machine has to find the same.
    targets = (lowest * (highest / lowest) ** places).round(6).clip(lowest, highest)
    return [float(target) for target in targets]


def child_of(
    seen: Sequence[Seen],
    targets: Sequence[float],
    *,
    highest: float,
    generator: np.random.Generator,
    pending: Sequence[Seen] = (),
) -> Seen:
    """The child, for one of `targets`, that the front of `seen` (one result at least) is expected to gain most by.

    It says what is predicted: its `ratios`, in [`LOWEST`, 1], are those to try, before their projection onto `cost`.
    The front counts up to the cost `highest`. `pending` were proposed, and are taken for results. Of fewer than
    `ENOUGH` results it is the first child for the first target.
    """
    front = front_of(seen)
    names = list(seen[0].ratios)
    parents: list[Seen] = []
    children: list[Floats] = []
    for target in targets:
        nearest = parents_of(front, target)
        parents += [nearest[index % len(nearest)] for index in range(CHILDREN)]
        children.append(_changed(nearest, names, generator))
    logs, costs = np.vstack(children), np.repeat(targets, CHILDREN)
    best, error = 0, parents[0].error
    if len(seen) >= ENOUGH:
        known = [*_by_excess(seen, front)[:LEARNED], *pending]
        settings = _numbers([{**one.settings, "": one.method} for one in [*known, *parents]])
        model = _Model(
            _inputs(np.log([one.cost for one in known]), _logs(known, names), settings[: len(known)]),
            np.log(np.maximum([one.error for one in known], LEAST)),
        )
        mean, deviation = model.predict(_inputs(np.log(costs), logs, settings[len(known) :]))
        gains = expected_gains(front_of([*front, *pending]), costs, mean, deviation, highest=highest)
        best = int(gains.round(9).argmax())
        error = round(float(np.exp(mean[best])), 6)
    parent = parents[best]
    return Seen(
        method=parent.method,
        settings=parent.settings,
        ratios={name: round(float(np.exp(log)), 6) for name, log in zip(names, logs[best], strict=True)},
        cost=float(costs[best]),
        error=min(1.0, error),
    )


def expected_gains(front: Sequence[Seen], costs: Floats, mean: Floats, deviation: Floats, *, highest: float) -> Floats:
    """By how much area the `front`, cheapest first, is expected to grow, shape `(N,)`, by a result at each of `costs`.

    The area is that of errors to 1 and costs to `highest`. A result's cost is certain, the logarithm of its error is
    normal. Between two costs of members of the front a result gains what its error is below that of the cheaper one.
    """
    edges = np.array([0.0, *(one.cost for one in front), np.inf]).clip(max=highest)
    errors = np.array([1.0, *(max(one.error, LEAST) for one in front)])
    widths = (edges[1:] - np.maximum(edges[:-1], costs[:, None])).clip(min=0.0)
    deviation = np.maximum(deviation, 1e-6)[:, None]
    far = (np.log(errors) - mean[:, None]) / deviation
    below = errors * _normal(far) - np.exp(mean[:, None] + deviation**2 / 2) * _normal(far - deviation)
    return np.asarray((widths * below.clip(min=0.0)).sum(axis=1))


_erf = np.vectorize(math.erf, otypes=[np.float64])


def _normal(values: Floats) -> Floats:
    """The distribution function of the standard normal."""
    return np.asarray((1.0 + _erf(values / math.sqrt(2.0))) / 2.0)


def _by_excess(seen: Sequence[Seen], front: Sequence[Seen]) -> list[Seen]:
    """By the ratio of their error to the least at no more cost."""
    edges = [one.cost for one in front]
    errors = np.maximum([one.error for one in front], LEAST)
    least = errors[np.searchsorted(edges, [one.cost for one in seen], side="right") - 1]
    ratios = np.maximum([one.error for one in seen], LEAST) / least
    return [seen[index] for index in np.argsort(ratios, kind="stable")]


def _changed(parents: Sequence[Seen], names: Sequence[str], generator: np.random.Generator) -> Floats:
    """Logarithms of the ratios of `CHILDREN` children, of `parents` by turns."""
    changes = generator.normal(0.0, STEP, (CHILDREN, len(names)))
    changes *= generator.random(changes.shape) < CHANGED
    # One group at least.
    unchanged = np.flatnonzero(~changes.any(axis=1))
    changes[unchanged, generator.integers(len(names), size=len(unchanged))] = STEP
    own = _logs(parents, names)[np.arange(CHILDREN) % len(parents)]
    return np.asarray(np.clip(own + changes, np.log(LOWEST), 0.0))


def _logs(ones: Sequence[Seen], names: Sequence[str]) -> Floats:
    return np.asarray(np.log([[max(one.ratios[name], LOWEST) for name in names] for one in ones]))


class _Model:
    """A Gaussian process: a plane, and a smooth remainder of the likeliest size, reach and noise."""

    def __init__(self, inputs: Floats, values: Floats) -> None:
        self._inputs, self._mean = inputs, float(values.mean())
        likeliest = -np.inf
        for length, bend, noise in product(_LENGTHS, _BENDS, _NOISES):
            covariance = _covariance(inputs, inputs, length, bend)
            covariance[np.diag_indices_from(covariance)] += noise**2
            lower = np.linalg.cholesky(covariance)
            whitened = np.linalg.solve(lower, values - self._mean)
            likelihood = -0.5 * float(whitened @ whitened) - float(np.log(np.diag(lower)).sum())
            if likelihood > likeliest:
                likeliest = likelihood
                self._length, self._bend, self._lower, self._whitened = length, bend, lower, whitened

    def predict(self, inputs: Floats) -> tuple[Floats, Floats]:
        """Return mean and standard deviation of results without noise, each `(N,)`, for inputs `(N, D)`."""
        across = np.linalg.solve(self._lower, _covariance(self._inputs, inputs, self._length, self._bend))
        before = _LEVEL**2 + _SLOPE**2 * (inputs**2).sum(axis=1) + self._bend**2
        left = np.maximum(before - (across**2).sum(axis=0), 0.0)
        return np.asarray(self._mean + across.T @ self._whitened), np.asarray(np.sqrt(left))


def _covariance(one: Floats, other: Floats, length: float, bend: float) -> Floats:
    products = one @ other.T
    distances = (one**2).sum(axis=1)[:, None] + (other**2).sum(axis=1) - 2 * products
    smooth = bend**2 * np.exp(-np.maximum(distances, 0.0) / (2 * length**2))
    return np.asarray(_LEVEL**2 + _SLOPE**2 * products + smooth)


def _inputs(cost: Floats, ratios: Floats, settings: Floats) -> Floats:
    """Logarithms of costs and of ratios, these without what they have in common, which the cost stands for."""
    return np.column_stack([cost, ratios - ratios.mean(axis=1, keepdims=True), settings])


def _numbers(settings: Sequence[Mapping[str, Setting]]) -> Floats:
    """Hyper-parameters as columns: numbers from 0 to 1 (0.5 where there is none), one column for each other value."""
    columns: list[Floats] = [np.zeros((len(settings), 0))]
    for name in sorted({name for one in settings for name in one}):
        values = [one.get(name) for one in settings]
        if all(value is None or isinstance(value, int | float) for value in values):
            numbers = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
            numbers -= np.nanmin(numbers)
            columns.append(np.nan_to_num(numbers / max(float(np.nanmax(numbers)), 1e-12), nan=0.5)[:, None])
        else:
            kinds = sorted({str(value) for value in values})
            columns.append(np.array([[float(str(value) == kind) for kind in kinds] for value in values]))
    return np.column_stack(columns)
