"""Mutation: widths of the front, changed a little. Pure: results in, the widths of a proposal out.

A sampler over keep ratios begins with networks that are cut at random. Uniform widths, and widths by predicted damage,
are far better. Widths near those are better still, because the predictions ignore how the damages of several groups
add up. So a part of the proposals are children of the front. For each of several targets, the parents are the members
of the front whose cost is nearest to the target; a child has the ratios of its parent, with some of them multiplied by
random factors. The projection (`allocate.ratios`) brings the child onto its target.

Once there are enough results, the most promising of many children is tried. A Gaussian process (Rasmussen and Williams,
2006, algorithm 2.1 and section 5.4) predicts the logarithm of a child's error from the logarithms of its cost and its
ratios, from its method and from its hyper-parameters. The child by which the front is expected to gain the largest area
is taken (Emmerich et al., "Single- and multiobjective evolutionary optimization assisted by Gaussian random field
metamodels", IEEE TEC 2006), so that trials fill the gaps of the front. A pending proposal counts as if its result were
the predicted one (Ginsbourger et al., "Kriging is well-suited to parallelize optimization", 2010), so that two
proposals do not fill the same gap.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np

from raprune.cost.latency import Floats
from raprune.pareto import non_dominated
from raprune.records import Setting, TrialState
from raprune.sampling.point import Point

STEP = 0.3
"""Standard deviation of a factor's logarithm: most factors are between three quarters and four thirds."""
CHANGED = 0.5
"""Fraction of the groups that a child changes, at least one group."""
PARENTS = 4
TARGETS = 16
"""Number of costs that children are made for, one in each equal part of the range on a logarithmic scale."""
CHILDREN = 32
"""Number of children for each target, of its parents in turn; one of all children is chosen."""
LOWEST = 0.01
LEARNED = 256
"""Maximum number of results that the model is fitted to: those whose error is least above the front's."""
ENOUGH = 8
"""Number of results from which on children are compared by the model."""
LEAST = 1e-4
"""Smallest error that is told apart."""

_LEVEL, _SLOPE = 2.0, 0.5
"""Prior standard deviations of the plane's constant and of its slopes."""
_LENGTHS = (1.0, 2.0, 4.0)
"""Length scales of the smooth remainder, in logarithms; the likeliest is taken, here and below."""
_BENDS = (0.1, 0.3)
"""Sizes of the smooth remainder: standard deviations of the logarithm of the error."""
_NOISES = (0.02, 0.05)
"""Noise of the images and the calibration: with 5,000 images and an error of 40 %, two percent of the error."""


def front_of(points: Sequence[Point], cost: str = "flops") -> list[Point]:
    """The points that no other point dominates in error and `cost`, the cheapest first."""
    front = [points[index] for index in non_dominated([point.objectives(cost) for point in points])]
    return sorted(front, key=lambda point: point.fraction(cost))


def parents_of(front: Sequence[Point], target: float, cost: str = "flops") -> list[Point]:
    """The `PARENTS` members of the front whose cost is nearest to `target` on a logarithmic scale, nearest first."""
    return sorted(front, key=lambda point: abs(np.log(point.fraction(cost) / target)))[:PARENTS]


def targets_in(lowest: float, highest: float, *, generator: np.random.Generator) -> list[float]:
    """`TARGETS` costs that cover the range evenly on a logarithmic scale, in random order."""
    places = (generator.permutation(TARGETS) + generator.random(TARGETS)) / TARGETS
    # Rounded, here and below: a resumed search on another machine has to find the same.
    targets = (lowest * (highest / lowest) ** places).round(6).clip(lowest, highest)
    return [float(target) for target in targets]


def child_of(
    points: Sequence[Point],
    targets: Sequence[float],
    *,
    cost: str = "flops",
    highest: float,
    generator: np.random.Generator,
    pending: Sequence[Point] = (),
) -> Point:
    """The child, for one of `targets`, by which the front of `points` is expected to gain the largest area.

    `points` are one result or more, with the ratios that their candidates came to. `targets` are fractions of the cost
    `cost`, and the front counts up to `highest`. `pending` are predicted results of proposals under way. With fewer
    than `ENOUGH` results the first child for the first target is returned.

    The returned point is the predicted result. Its `keep_ratios`, in [`LOWEST`, 1], are to be projected onto its cost.
    """
    front = front_of(points, cost)
    names = list(points[0].keep_ratios)
    parents: list[Point] = []
    children: list[Floats] = []
    for target in targets:
        nearest = parents_of(front, target, cost)
        parents += [nearest[index % len(nearest)] for index in range(CHILDREN)]
        children.append(_changed(nearest, names, generator))
    logs, costs = np.vstack(children), np.repeat(targets, CHILDREN)
    best, accuracy = 0, parents[0].accuracy
    if len(points) >= ENOUGH:
        known = [*_by_excess(points, front, cost)[:LEARNED], *pending]
        settings = _numbers([{**one.settings, "": one.method} for one in [*known, *parents]])
        model = _Model(
            _inputs(np.log([one.fraction(cost) for one in known]), _logs(known, names), settings[: len(known)]),
            np.log(_errors(known)),
        )
        mean, deviation = model.predict(_inputs(np.log(costs), logs, settings[len(known) :]))
        expected = front_of([*front, *pending], cost)
        gains = expected_gains(expected, costs, mean, deviation, highest=highest, cost=cost)
        best = int(gains.round(9).argmax())
        accuracy = 1.0 - min(1.0, round(float(np.exp(mean[best])), 6))
    parent = parents[best]
    child = Point(
        trial_id="",
        state=TrialState.WAITING,
        method=parent.method,
        settings=parent.settings,
        keep_ratios={name: round(float(np.exp(log)), 6) for name, log in zip(names, logs[best], strict=True)},
        accuracy=accuracy,
    )
    return child.with_fraction(cost, float(costs[best]))


def expected_gains(
    front: Sequence[Point], costs: Floats, mean: Floats, deviation: Floats, *, highest: float, cost: str = "flops"
) -> Floats:
    """Expected growth of the area under the `front` by one more result at each of `costs`, shape `(N,)`.

    `front` is sorted, cheapest first. The area reaches up to error 1 and the cost `highest`. The logarithm of the
    result's error is normal, with `mean` and `deviation` of shape `(N,)`. Between the costs of two members of the front
    the gain is the difference to the error of the cheaper member.
    """
    edges = np.array([0.0, *(point.fraction(cost) for point in front), np.inf]).clip(max=highest)
    errors = np.array([1.0, *_errors(front)])
    widths = (edges[1:] - np.maximum(edges[:-1], costs[:, None])).clip(min=0.0)
    deviation = np.maximum(deviation, 1e-6)[:, None]
    far = (np.log(errors) - mean[:, None]) / deviation
    below = errors * _normal(far) - np.exp(mean[:, None] + deviation**2 / 2) * _normal(far - deviation)
    return np.asarray((widths * below.clip(min=0.0)).sum(axis=1))


_erf = np.vectorize(math.erf, otypes=[np.float64])


def _normal(values: Floats) -> Floats:
    """The distribution function of the standard normal."""
    return np.asarray((1.0 + _erf(values / math.sqrt(2.0))) / 2.0)


def _errors(points: Sequence[Point]) -> Floats:
    """Errors of the points, at least `LEAST`, shape `(N,)`."""
    return np.maximum([1.0 - point.accuracy for point in points], LEAST)


def _by_excess(points: Sequence[Point], front: Sequence[Point], cost: str) -> list[Point]:
    """The points by the ratio of their error to the front's least error at no more cost, the smallest ratio first."""
    edges = [point.fraction(cost) for point in front]
    least = _errors(front)[np.searchsorted(edges, [point.fraction(cost) for point in points], side="right") - 1]
    ratios = _errors(points) / least
    return [points[index] for index in np.argsort(ratios, kind="stable")]


def _changed(parents: Sequence[Point], names: Sequence[str], generator: np.random.Generator) -> Floats:
    """Logarithms of the ratios of `CHILDREN` children, of the `parents` in turn, shape `(CHILDREN, groups)`."""
    changes = generator.normal(0.0, STEP, (CHILDREN, len(names)))
    changes *= generator.random(changes.shape) < CHANGED
    # At least one group changes.
    unchanged = np.flatnonzero(~changes.any(axis=1))
    changes[unchanged, generator.integers(len(names), size=len(unchanged))] = STEP
    own = _logs(parents, names)[np.arange(CHILDREN) % len(parents)]
    return np.asarray(np.clip(own + changes, np.log(LOWEST), 0.0))


def _logs(points: Sequence[Point], names: Sequence[str]) -> Floats:
    """Logarithms of the points' ratios, shape `(N, groups)`."""
    return np.asarray(np.log([[max(point.keep_ratios[name], LOWEST) for name in names] for point in points]))


class _Model:
    """A Gaussian process: a plane and a smooth remainder, whose size, length scale and noise are the likeliest ones."""

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
    """Columns of the model: logarithms of costs, logarithms of ratios minus their mean (the cost says it), settings."""
    return np.column_stack([cost, ratios - ratios.mean(axis=1, keepdims=True), settings])


def _numbers(settings: Sequence[Mapping[str, Setting]]) -> Floats:
    """Hyper-parameters as columns: numbers scaled to [0, 1], 0.5 where missing; an indicator for each other value."""
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
