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

Everything is a function of the results and of the pending proposals, which are in the store: an interrupted search goes
on as if it had not been interrupted. The time of a child hardly grows with the search: the model has at most `LEARNED`
results, `PENDING` pending proposals, and those of the litter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from raprune.channels.positions import IndexArray
from raprune.cost.latency import Floats
from raprune.pareto import non_dominated
from raprune.records import Setting, TrialState
from raprune.sampling.gaussian_process import KERNELS, GaussianProcess, Kernel, Predictions
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
"""Smallest ratio of a child."""
TOGGLED = 0.5
"""Fraction of the children that take out one block of their parent, or put one back, where blocks may go."""
CLOSED = -1.0
"""Logarithm that stands for the ratio 0 of a block that is gone, so that it weighs like other changes of a child."""
LEARNED = 256
"""Maximum number of results that the model is fitted to: those whose error is least above the front's."""
PENDING = 64
"""Maximum number of pending proposals that the model takes for results: the last ones."""
ENOUGH = 8
"""Number of results from which on children are compared by the model."""
FEW = 64
"""Number of results below which each model has a kernel of its own, fitted to all of them at little cost."""
LEAST = 1e-4
"""Smallest error that is told apart."""

_SAME_COST, _ROUNDED = 1e-9, 1e-4
"""Maximum differences of a child and of its proposal, which was rounded: of the cost, relative; of a logarithm."""


class Mutator:
    """Children of the front of results that are learned one after another.

    `groups` are the names of the groups, `gates` those of the blocks that may go, which have the ratio 0 or 1. `cost`
    names the cost of targets and of the front, which counts up to `highest`, a fraction of the dense network's.
    """

    def __init__(self, groups: Sequence[str], *, gates: Sequence[str] = (), cost: str, highest: float) -> None:
        self._groups, self._cost, self._highest = (*groups, *gates), cost, highest
        self._num_gates = len(gates)
        self._points: list[Point] = []
        self._logs = _Rows(len(self._groups))
        self._objectives = _Rows(2)
        self._fitted: tuple[object, _Fit] | None = None
        self._kernel: tuple[int, Kernel] | None = None

    def __len__(self) -> int:
        """Number of results learned."""
        return len(self._points)

    def learn(self, point: Point) -> None:
        """Take a result; its `keep_ratios` are the ratios that the candidate came to."""
        self._points.append(point)
        self._logs.append(_logs([point], self._groups, self._num_gates)[0])
        error, cost = point.objectives(self._cost)
        self._objectives.append([max(error, LEAST), cost])

    def litter(
        self,
        targets: Sequence[float],
        *,
        generator: np.random.Generator,
        pending: Sequence[Point] = (),
        count: int | None = None,
        count_of_kernel: int | None = None,
    ) -> Litter:
        """`CHILDREN` children for each of `targets`, with the predictions of their results.

        The first `count` results are used (one or more; all by default), and the kernel is fitted to the first
        `count_of_kernel` of them, or to all if these are fewer than `FEW`. The model of one pair of counts is computed
        once. Of `pending`, the proposals under way, whose `accuracy` is ignored, the last `PENDING` count.
        """
        fit = self._fit(len(self) if count is None else count, count_of_kernel)
        front_logs, front_costs = self._logs.array[fit.front], self._objectives.array[fit.front, 1]
        parents: list[int] = []
        children: list[Floats] = []
        for target in targets:
            nearest = nearest_to(front_costs, target)
            parents += [int(nearest[index % len(nearest)]) for index in range(CHILDREN)]
            children.append(_changed(front_logs[nearest], generator, self._num_gates))
        logs, costs = np.vstack(children), np.repeat(targets, CHILDREN)
        objectives, modelled = self._objectives.array[fit.front], None
        if fit.model is not None:
            model, objectives = self._expecting(fit.model, fit.columns, objectives, pending[-PENDING:])
            modelled = _Modelled(model, model.predictions(_inputs(np.log(costs), logs, fit.settings[parents])))
        free = np.ones(len(costs), dtype=bool)
        free[self._taken(logs, costs, pending[-PENDING:])] = False
        return Litter(fit, tuple(parents), logs, costs, free, objectives, modelled)

    def child(self, litter: Litter, *, chosen: Sequence[Point] = ()) -> Point:
        """The child of a litter by which the front is expected to gain the largest area, beside those `chosen` before.

        The accuracy of `chosen` is ignored. A child that is chosen or pending is not chosen again. With fewer than
        `ENOUGH` results the first of the other children is returned.

        The returned point is the predicted result. Its `keep_ratios`, in [`LOWEST`, 1] (0 or 1 for gates), are to be
        projected onto its
        cost.
        """
        fit, gains = litter.fit, np.zeros(len(litter.costs))
        if litter.modelled is not None:
            predictions, expected = litter.modelled.predictions, litter.expected
            deviation = predictions.deviation
            if chosen:
                costs, under_way = self._inputs_of(chosen, fit.columns)
                deviation, errors = litter.modelled.model.beside(predictions, under_way)
                expected = _with_predicted(expected, errors, costs)
            gains = expected_gains(expected, litter.costs, predictions.mean, deviation, highest=self._highest)
        gains[~litter.free] = -1.0
        gains[self._taken(litter.logs, litter.costs, chosen)] = -1.0
        # Rounded, so that the order of a sum rarely decides.
        best = int(gains.round(9).argmax())
        parent = self._points[fit.front[litter.parents[best]]]
        error = 1.0 - parent.accuracy
        if litter.modelled is not None:
            error = min(1.0, float(np.exp(litter.modelled.predictions.mean[best])))
        child = Point(
            trial_id="",
            state=TrialState.WAITING,
            method=parent.method,
            settings=parent.settings,
            keep_ratios=self._ratios(litter.logs[best]),
            accuracy=1.0 - error,
        )
        return child.with_fraction(self._cost, float(litter.costs[best]))

    def _ratios(self, logs: Floats) -> dict[str, float]:
        """The ratios of groups and gates with these logarithms."""
        ratios = {name: round(float(np.exp(log)), 6) for name, log in zip(self._groups, logs, strict=True)}
        gates = self._groups[len(self._groups) - self._num_gates :]
        return ratios | {gate: float(ratios[gate] == 1.0) for gate in gates}

    def _taken(self, logs: Floats, costs: Floats, points: Sequence[Point]) -> IndexArray:
        """Positions of the children with these logarithms of ratios and costs that are among `points`."""
        if not points:
            return np.empty(0, dtype=np.int64)
        known = np.array([point.fraction(self._cost) for point in points])
        which, children = np.nonzero(abs(costs / known[:, None] - 1.0) < _SAME_COST)
        if not len(which):
            return children
        far = abs(logs[children] - _logs(points, self._groups, self._num_gates)[which]).max(axis=1)
        return np.asarray(children[far < _ROUNDED])

    def _fit(self, count: int, count_of_kernel: int | None) -> _Fit:
        """The front and the model of the first `count` results, kept until another one is asked for."""
        if count_of_kernel is None or count_of_kernel < FEW:
            count_of_kernel = count
        key = (count, count_of_kernel)
        if self._fitted is None or self._fitted[0] != key:
            front = self._front(count)
            known, columns, model = self._known(count, front), _Columns([]), None
            if count >= ENOUGH:
                kernel = self._likeliest(count_of_kernel)
                columns = _Columns([self._points[index] for index in known])
                model = GaussianProcess.fitted(*self._values(known, columns), kernel)
            settings = columns.of([self._points[index] for index in front])
            self._fitted = (key, _Fit(front, columns, settings, model))
        return self._fitted[1]

    def _front(self, count: int) -> IndexArray:
        """Positions of the non-dominated results among the first `count`, the cheapest first."""
        objectives = self._objectives.array[:count]
        front = np.array(non_dominated(objectives), dtype=np.int64)
        return front[np.argsort(objectives[front, 1], kind="stable")]

    def _known(self, count: int, front: IndexArray) -> IndexArray:
        """Positions of the results that the model is fitted to, those with the least excess over the front first."""
        errors, costs = self._objectives.array[:count].T
        least = errors[front][np.searchsorted(costs[front], costs, side="right") - 1]
        return np.argsort(errors / least, kind="stable")[:LEARNED]

    def _likeliest(self, count: int) -> Kernel:
        """The kernel under which the first `count` results are likeliest."""
        if self._kernel is None or self._kernel[0] != count:
            known = self._known(count, self._front(count))
            inputs, values = self._values(known, _Columns([self._points[index] for index in known]))
            kernel = max(KERNELS, key=lambda kernel: GaussianProcess.fitted(inputs, values, kernel).likelihood)
            self._kernel = (count, kernel)
        return self._kernel[1]

    def _values(self, known: IndexArray, columns: _Columns) -> tuple[Floats, Floats]:
        """Inputs and values of the model, shapes `(N, D)` and `(N,)`."""
        errors, costs = self._objectives.array[known].T
        settings = columns.of([self._points[index] for index in known])
        return _inputs(np.log(costs), self._logs.array[known], settings), np.log(errors)

    def _expecting(
        self, model: GaussianProcess, columns: _Columns, front: Floats, pending: Sequence[Point]
    ) -> tuple[GaussianProcess, Floats]:
        """The model and the front, rows of error and cost, once the proposals under way have come out as predicted."""
        if not pending:
            return model, front
        costs, under_way = self._inputs_of(pending, columns)
        extended, errors = model.expecting(under_way)
        return extended, _with_predicted(front, errors, costs)

    def _inputs_of(self, points: Sequence[Point], columns: _Columns) -> tuple[Floats, Floats]:
        """Costs of points, shape `(N,)`, and the inputs of the model for them, shape `(N, D)`."""
        costs = np.array([point.fraction(self._cost) for point in points])
        return costs, _inputs(np.log(costs), _logs(points, self._groups, self._num_gates), columns.of(points))


def _with_predicted(front: Floats, errors: Floats, costs: Floats) -> Floats:
    """The front, rows of error and cost, the cheapest first, with results of predicted logarithms of errors."""
    together = np.vstack([front, np.column_stack([np.exp(errors).clip(LEAST, 1.0), costs])])
    best = together[non_dominated(together)]
    return np.asarray(best[np.argsort(best[:, 1], kind="stable")])


def nearest_to(costs: Floats, target: float) -> IndexArray:
    """Positions of the `PARENTS` costs that are nearest to `target` on a logarithmic scale, the nearest first."""
    return np.argsort(abs(np.log(costs / target)), kind="stable")[:PARENTS]


def targets_in(lowest: float, highest: float, *, generator: np.random.Generator) -> list[float]:
    """`TARGETS` costs that cover the range evenly on a logarithmic scale, in random order."""
    places = (generator.permutation(TARGETS) + generator.random(TARGETS)) / TARGETS
    # Rounded, here and below, for a store that people can read.
    targets = (lowest * (highest / lowest) ** places).round(6).clip(lowest, highest)
    return [float(target) for target in targets]


def expected_gains(front: Floats, costs: Floats, mean: Floats, deviation: Floats, *, highest: float) -> Floats:
    """Expected growth of the area under the `front` by one more result at each of `costs`, shape `(N,)`.

    `front` has rows of error and cost, the cheapest first. The area reaches up to error 1 and the cost `highest`. The
    logarithm of the result's error is normal, with `mean` and `deviation` of shape `(N,)`. Between the costs of two
    members of the front the gain is the difference to the error of the cheaper member.
    """
    edges = np.array([0.0, *front[:, 1], np.inf]).clip(max=highest)
    errors = np.array([1.0, *front[:, 0].clip(min=LEAST)])
    widths = (edges[1:] - np.maximum(edges[:-1], costs[:, None])).clip(min=0.0)
    # Half of the pairs have no width.
    child, member = np.nonzero(widths)
    deviation = np.maximum(deviation, 1e-6)[child]
    error, mean = errors[member], mean[child]
    far = (np.log(error) - mean) / deviation
    below = error * _normal(far) - np.exp(mean + deviation**2 / 2) * _normal(far - deviation)
    gains = widths[child, member] * below.clip(min=0.0)
    return np.asarray(np.bincount(child, weights=gains, minlength=len(costs)), dtype=np.float64)


_GRID = np.linspace(-9.0, 9.0, 4609)
_ON_GRID = np.array([(1.0 + math.erf(value / math.sqrt(2.0))) / 2.0 for value in _GRID])
_SLOPES = np.exp(-(_GRID**2) / 2) / math.sqrt(2 * math.pi)


def _normal(values: Floats) -> Floats:
    """The distribution function of the standard normal, by cubic interpolation: the error is below 1e-12.

    NumPy has no error function, and Python's takes ten times as long for an array.
    """
    step = _GRID[1] - _GRID[0]
    place = (values.clip(_GRID[0], _GRID[-1] - 1e-9) - _GRID[0]) / step
    left = place.astype(np.int64)
    t = place - left
    u = 1.0 - t
    ends = u**2 * (1.0 + 2.0 * t) * _ON_GRID[left] + t**2 * (1.0 + 2.0 * u) * _ON_GRID[left + 1]
    return np.asarray(ends + step * t * u * (u * _SLOPES[left] - t * _SLOPES[left + 1]))


def _changed(parents: Floats, generator: np.random.Generator, num_gates: int = 0) -> Floats:
    """Logarithms of the ratios of `CHILDREN` children, of the `parents` in turn, shape `(CHILDREN, groups)`.

    The last `num_gates` columns are those of gates, of which a child changes one at most.
    """
    count, groups = CHILDREN, parents.shape[1] - num_gates
    changes = generator.normal(0.0, STEP, (count, groups))
    changes *= generator.random(changes.shape) < CHANGED
    # At least one group changes.
    unchanged = np.flatnonzero(~changes.any(axis=1))
    changes[unchanged, generator.integers(groups, size=len(unchanged))] = STEP
    own = parents[np.arange(count) % len(parents)]
    children = np.asarray(np.clip(own[:, :groups] + changes, np.log(LOWEST), 0.0))
    if not num_gates:
        return children
    gates = own[:, groups:].copy()
    which = generator.integers(num_gates, size=count)
    toggled = np.flatnonzero(generator.random(count) < TOGGLED)
    gates[toggled, which[toggled]] = CLOSED - gates[toggled, which[toggled]]
    return np.hstack([children, gates])


def _logs(points: Sequence[Point], groups: Sequence[str], num_gates: int = 0) -> Floats:
    """Logarithms of the points' ratios, shape `(N, groups)`; the last `num_gates` are 0 or `CLOSED`."""
    ratios = np.array([[point.keep_ratios[name] for name in groups] for point in points])
    logs = np.asarray(np.log(np.maximum(ratios, LOWEST)))
    if num_gates:
        logs[:, -num_gates:] = np.where(ratios[:, -num_gates:] > 0, 0.0, CLOSED)
    return logs


class _Rows:
    """Rows of numbers to which others are appended, in constant time on average."""

    def __init__(self, columns: int) -> None:
        self._buffer = np.zeros((64, columns))
        self._count = 0

    def append(self, row: Sequence[float] | Floats) -> None:
        if self._count == len(self._buffer):
            self._buffer = np.concatenate([self._buffer, np.zeros_like(self._buffer)])
        self._buffer[self._count] = row
        self._count += 1

    @property
    def array(self) -> Floats:
        """All rows, shape `(N, columns)`."""
        return self._buffer[: self._count]


@dataclass(frozen=True)
class _Fit:
    """The front of some results, and the model of the best of them; no model while there are too few."""

    front: IndexArray
    columns: _Columns
    settings: Floats
    """The columns of the front."""
    model: GaussianProcess | None


@dataclass(frozen=True)
class _Modelled:
    """A model that expects the proposals under way, and what it predicts for children."""

    model: GaussianProcess
    predictions: Predictions


@dataclass(frozen=True)
class Litter:
    """Children of one front, of which several are tried one after another."""

    fit: _Fit
    parents: tuple[int, ...]
    """Position of each child's parent on the front."""
    logs: Floats
    """Logarithms of the ratios, shape `(N, groups)`."""
    costs: Floats
    """Targets of the children, shape `(N,)`."""
    free: npt.NDArray[np.bool_]
    """True for a child that is not under way, shape `(N,)`."""
    expected: Floats
    """The front with the predicted results of the proposals under way: rows of error and cost, the cheapest first."""
    modelled: _Modelled | None
    """None while there are too few results for a model."""


def _inputs(cost: Floats, ratios: Floats, settings: Floats) -> Floats:
    """Columns of the model: logarithms of costs, logarithms of ratios minus their mean (the cost says it), settings."""
    return np.column_stack([cost, ratios - ratios.mean(axis=1, keepdims=True), settings])


class _Columns:
    """Methods and hyper-parameters as columns: numbers scaled to [0, 1], 0.5 where missing; an indicator for each other
    value. Range and values are those of `points`."""

    def __init__(self, points: Sequence[Point]) -> None:
        recipes = [_recipe(point) for point in points]
        self._ranges: dict[str, tuple[float, float]] = {}
        self._kinds: dict[str, list[str]] = {}
        for name in sorted({name for recipe in recipes for name in recipe}):
            values = [recipe[name] for recipe in recipes if name in recipe]
            numbers = [float(value) for value in values if isinstance(value, int | float)]
            if len(numbers) == len(values):
                self._ranges[name] = (min(numbers), max(max(numbers) - min(numbers), 1e-12))
            else:
                self._kinds[name] = sorted({str(recipe.get(name)) for recipe in recipes})

    def of(self, points: Sequence[Point]) -> Floats:
        """The columns of points, shape `(N, columns)`."""
        recipes = [_recipe(point) for point in points]
        columns: list[list[float]] = []
        for name, (lowest, extent) in self._ranges.items():
            values = [recipe.get(name) for recipe in recipes]
            columns.append([(v - lowest) / extent if isinstance(v, int | float) else 0.5 for v in values])
        for name, kinds in self._kinds.items():
            told = [str(recipe.get(name)) for recipe in recipes]
            columns += [[float(value == kind) for value in told] for kind in kinds]
        return np.array(columns, dtype=np.float64).reshape(-1, len(points)).T


def _recipe(point: Point) -> dict[str, Setting]:
    return {**point.settings, "": point.method}
