"""Measurement of the times of operations and of whole networks on a device, and of the latency table."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from raprune.channels.graph import ChannelGraph
from raprune.cost.conditions import conditions
from raprune.cost.flops import CostModel, Counts
from raprune.cost.latency import KINDS, Floats, LatencyTable, PredictionError, fitted
from raprune.cost.operations import SizedCall, follow
from raprune.cost.steps import find_step
from raprune.cost.stopwatch import Repeats, Stopwatch
from raprune.cost.timed import TimedNetwork, timed_network
from raprune.errors import ModelError
from raprune.spec.job import LatencySpec, Multiple

PROBES, MOST_PROBES = 5, 24
"""Number of networks of other widths that show which sizes follow which axes, and the maximum if groups would stay
alike in all of them."""
CORRECTED = 0.1
"""Median error above which it is measured once more, by further networks, after the fit to all of the first."""
PASSES, PASSES_S = 3, 30.0
"""Maximum number of passes over all operations, and the time after which no other pass begins."""
LEAST_REPEATS = 3
"""Minimum number of timings of an operation in a pass."""
_NETWORK_S = 3.0
"""Maximum time for all timings of one network."""
OFTEN = Repeats(most=200, least=7, limit_s=0.5)
"""Timings of a network by a `WholeTimer` in a round."""
_STEP_S, _STEP_REPEATS = 0.5, 5
"""This time, and the factor of the number of timings, where the step of the widths is looked for: half a step of a
small network is a few percent."""


def measure_table(
    model: nn.Module, graph: ChannelGraph, spec: LatencySpec, *, device: str, seed: int = 0, multiple_of: Multiple = 1
) -> LatencyTable:
    """Measure the latency table of `model` on `device`, and its error for whole networks; `graph` is the model's trace.

    Only widths that are multiples of `multiple_of` are timed; with "auto", of the step at which the latency of this
    network falls (`find_step`).

    Raises:
        UsageError: if the runtime of `spec` is not installed.
        ModelError: if the network runs other operations at other widths.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(spec.threads)
    try:
        subject, cost = timed_network(model, graph, spec, device=device), CostModel(graph)
        if multiple_of == "auto":
            often = Repeats(most=_STEP_REPEATS * spec.repeats, limit_s=_STEP_S)
            step = find_step(cost, partial(_whole_ms, subject, cost, repeats=often))
        else:
            step = multiple_of
        raw = _operation_times(subject, cost, spec, seed, step)
        return replace(_calibrated(raw, subject, cost, spec, seed, step), step=step)
    finally:
        torch.set_num_threads(threads)


def measure_whole(
    models: Sequence[nn.Module],
    model: nn.Module,
    graph: ChannelGraph,
    spec: LatencySpec,
    *,
    device: str,
    stopwatch: Stopwatch | None = None,
    repeats: Repeats | None = None,
) -> list[float]:
    """Measure the milliseconds of a batch through each of `models`, and last through the dense `model`, in turns.

    The `models` are cut from `model`. `stopwatch` and `repeats` replace those of the latency table.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(spec.threads)
    try:
        subject = timed_network(model, graph, spec, device=device)
        placed = [subject.placed(one) for one in (*models, model)]
        repeats = repeats or Repeats(most=spec.repeats, limit_s=_NETWORK_S)
        return subject.medians(placed, repeats, stopwatch)
    finally:
        torch.set_num_threads(threads)


WholeTimer = Callable[[Sequence[nn.Module]], list[float]]
"""Measures the milliseconds of a batch through each of the networks that were cut from one dense network, and last
through the dense one."""


def whole_timer(model: nn.Module, graph: ChannelGraph, spec: LatencySpec, *, device: str) -> WholeTimer:
    """Return a timer of networks that are cut from `model`, which is prepared for the runtime only once.

    Raises:
        UsageError, ModelError: as `timed_network`.
    """
    subject = timed_network(model, graph, spec, device=device)

    def milliseconds(models: Sequence[nn.Module]) -> list[float]:
        threads = torch.get_num_threads()
        torch.set_num_threads(spec.threads)
        try:
            return subject.least_medians([subject.placed(one) for one in (*models, model)], OFTEN)
        finally:
            torch.set_num_threads(threads)

    return milliseconds


def _operation_times(
    subject: TimedNetwork, cost: CostModel, spec: LatencySpec, seed: int, multiple_of: int
) -> LatencyTable:
    """Measure the times of all operations: the table before the calibration."""
    operations = _sized(subject, cost, seed, multiple_of)
    known: dict[tuple[Any, ...], int] = {}
    distinct: list[tuple[SizedCall, list[Floats]]] = []
    tables: list[int] = []
    for operation in operations:
        own = [_grid(subject.graph, cost, factor, spec.widths, multiple_of) for factor in operation.factors]
        key = (operation.signature, tuple(tuple(grid) for grid in own))
        if key not in known:
            known[key] = len(distinct)
            distinct.append((operation, own))
        tables.append(known[key])
    measured = _grid_times(subject, distinct, cost.sizes(cost.num_channels))
    failed = {number for number, times in enumerate(measured) if np.isnan(times).any()}
    times = [np.zeros_like(of_one) if number in failed else of_one for number, of_one in enumerate(measured)]
    grids = [own for _, own in distinct]
    padded_grids, padded_times = _padded(grids, times)
    return LatencyTable(
        grids=padded_grids,
        times_ms=padded_times,
        tables=np.array(tables, dtype=np.int64),
        factors=np.array([(*op.factors, -1, -1)[:2] for op in operations], dtype=np.int64).reshape(-1, 2),
        kinds=np.array([KINDS.index("matrix" if subject.is_matrix(op) else "other") for op in operations]),
        modules=tuple(op.call.module for op in operations),
        scales=(1.0,) * len(KINDS),
        offset_ms=0.0,
        dense_ms=np.inf,
        accuracy=PredictionError(0.0, 0.0, 0),
        **conditions(spec, device=subject.device.type),
        unknown=tuple(
            f"{op.call.operation} in {op.call.module}"
            for op, table in zip(operations, tables, strict=True)
            if not op.known or table in failed
        ),
    )


def _sized(subject: TimedNetwork, cost: CostModel, seed: int, multiple_of: int) -> list[SizedCall]:
    vectors = _probes(cost, np.random.default_rng(seed), multiple_of)
    runs = [subject.operations(subject.narrowed(cost, widths)) for widths in vectors]
    operations = follow(runs, cost.sizes(np.stack(vectors)))
    if operations is None:
        raise ModelError(
            "budget.latency (--budget-latency): this network runs other operations at other widths, so a table of "
            "operation times cannot predict its latency.",
            hint="Use --budget-flops or --budget-params for this network.",
        )
    return operations


def _probes(cost: CostModel, generator: np.random.Generator, multiple_of: int) -> list[Counts]:
    """Return the dense widths and those of probes, in which no two groups keep the same fractions throughout.

    An operation between two groups of 32 channels that have 16 in all probes would seem to follow one of them alone.
    """
    # An axis of width 1 has no place in the memory format, and other operations would run.
    least = np.minimum(2, cost.num_channels)
    vectors = [cost.num_channels]
    while len(vectors) <= PROBES or (len(vectors) <= MOST_PROBES and _are_alike(np.stack(vectors), least)):
        vectors.append(_to_steps(generator.integers(least, cost.num_channels + 1), cost, multiple_of))
    return vectors


def _are_alike(vectors: Counts, least: Counts) -> bool:
    """True if the widths of two groups have the same ratios, or the same differences, in all vectors."""
    may_change = vectors[:, vectors[0] > least].astype(np.float64)
    for series in (may_change / may_change[0], may_change - may_change[0]):
        if len(np.unique(series, axis=1).T) < series.shape[1]:
            return True
    return False


def _to_steps(widths: Counts, cost: CostModel, multiple_of: int) -> Counts:
    """Round widths to the nearest multiple, but neither below one step nor above the dense network."""
    if multiple_of == 1:
        return widths
    nearest = np.maximum((widths + multiple_of // 2) // multiple_of, 1) * multiple_of
    return np.where(widths == cost.num_channels, widths, np.minimum(nearest, cost.num_channels))


def _grid_times(
    subject: TimedNetwork, distinct: Sequence[tuple[SizedCall, Sequence[Floats]]], dense: Floats
) -> list[Floats]:
    """Measure the milliseconds of each operation at every point of its grids, each of shape `(W1, W2)`.

    The size is 1 where there is no axis. Operations at the same index of their grids are timed after one another, so
    that the weights of one are not in the caches because the same operation ran just before. The timings of a point
    are spread over passes, of which the fastest counts: other load of the machine comes in bursts, and a burst in a
    single pass looks like a step of the hardware.
    """
    started = time.monotonic()
    times = _pass_over_grids(subject, distinct, dense)
    for _ in range(PASSES - 1):
        if time.monotonic() - started > PASSES_S:
            break
        again = _pass_over_grids(subject, distinct, dense)
        times = [np.minimum(one, other) for one, other in zip(times, again, strict=True)]
    return times


def _pass_over_grids(
    subject: TimedNetwork, distinct: Sequence[tuple[SizedCall, Sequence[Floats]]], dense: Floats
) -> list[Floats]:
    times = [np.zeros((*(len(grid) for grid in own), 1, 1)[:2]) for _, own in distinct]
    at_index: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for number, (_, own) in enumerate(distinct):
        for index in np.ndindex(*(len(grid) for grid in own)):
            at_index[index].append(number)
    for index, numbers in at_index.items():
        sized = []
        for number in numbers:
            operation, own = distinct[number]
            sizes = [float(grid[i]) for grid, i in zip(own, index, strict=True)]
            sized.append((operation, sizes, [float(dense[factor]) for factor in operation.factors]))
        repeats = max(LEAST_REPEATS, -(-subject.spec.repeats // PASSES))
        for number, time_ms in zip(numbers, subject.times(sized, repeats=repeats), strict=True):
            times[number][(*index, 0, 0)[:2]] = time_ms
    return times


def _grid(graph: ChannelGraph, cost: CostModel, factor: int, count: int, multiple_of: int) -> Floats:
    """Return at most `count` possible sizes of an axis, spaced evenly from one channel per group to all channels.

    With `multiple_of` they are sizes at multiples: between them the time may have steps that no width of the job meets.
    """
    axis = graph.factors[factor]
    coefficients = [c for c in (*axis.coefficients.values(), *(c for *_, c in axis.products)) if c]
    step = int(np.gcd.reduce(coefficients)) * multiple_of
    narrowest = np.minimum(multiple_of, cost.num_channels)
    low, high = (cost.sizes(widths)[factor] for widths in (narrowest, cost.num_channels))
    steps = int((high - low) // step)
    return np.unique(np.r_[low, high - step * np.round(np.linspace(0, steps, min(count, steps + 1)))])


def _padded(grids: list[list[Floats]], times: list[Floats]) -> tuple[Floats, Floats]:
    """Pad all grids and times to one size by repeating their last entries."""
    size = max((len(grid) for own in grids for grid in own), default=1)
    padded = np.zeros((len(grids), 2, size))
    for own, row in zip(grids, padded, strict=True):
        for axis, grid in enumerate(own):
            row[axis] = np.pad(grid, (0, size - len(grid)), mode="edge")
    filled = [np.pad(t, [(0, size - n) for n in t.shape], mode="edge") for t in times]
    return padded, np.stack(filled)


def _calibrated(
    raw: LatencyTable, subject: TimedNetwork, cost: CostModel, spec: LatencySpec, seed: int, multiple_of: int
) -> LatencyTable:
    """Return the table with scales and offset fitted to whole networks, and its error for other whole networks.

    The error is that of a fit to the first networks for the others; then all of them fit the scales. Where the error is
    above `CORRECTED`, it is measured once more after that, by further networks.
    """
    generator = np.random.default_rng([seed, 1])
    fitted_to, held_out = subject.num_fitted, subject.num_held_out

    def drawn(count: int) -> Counts:
        return np.stack([_to_steps(_some_widths(cost, generator), cost, multiple_of) for _ in range(count)])

    # The fit includes the narrowest network, because it decides whether a budget can be reached, and the dense one.
    narrowest = cost.smallest(multiple_of=multiple_of)
    vectors = np.concatenate([narrowest[None], drawn(fitted_to - 1 + held_out)])
    *measured, dense_ms = _whole_ms(subject, cost, [*vectors, cost.num_channels])
    whole = cost.num_channels[None]
    of_fit = np.array([*measured[:fitted_to], dense_ms])
    first = _fitted(raw, cost, np.concatenate([vectors[:fitted_to], whole]), of_fit, float(dense_ms))
    accuracy = _error(first, cost, vectors[fitted_to:], np.array(measured[fitted_to:]))
    table = _fitted(raw, cost, np.concatenate([vectors, whole]), np.array([*measured, dense_ms]), float(dense_ms))
    if accuracy.median_error <= CORRECTED:
        return replace(table, accuracy=accuracy)
    others = drawn(held_out)
    found = _whole_ms(subject, cost, list(others))
    return replace(table, accuracy=_error(table, cost, others, found), corrected_by=len(vectors))


def _whole_ms(
    subject: TimedNetwork, cost: CostModel, vectors: Sequence[Counts], *, repeats: Repeats | None = None
) -> Floats:
    """Measure the milliseconds of whole networks."""
    models = [subject.narrowed(cost, widths) for widths in vectors]
    return np.array(subject.least_medians(models, repeats or Repeats(most=subject.spec.repeats, limit_s=_NETWORK_S)))


def _fitted(raw: LatencyTable, cost: CostModel, vectors: Counts, measured: Floats, dense_ms: float) -> LatencyTable:
    *scales, offset = fitted(raw.sums(cost.sizes(vectors)), measured).tolist()
    return replace(raw, scales=tuple(scales), offset_ms=offset, dense_ms=dense_ms)


def _error(table: LatencyTable, cost: CostModel, vectors: Counts, measured: Floats) -> PredictionError:
    errors = np.abs(table.predict(cost.sizes(vectors)) / measured - 1)
    return PredictionError(float(np.median(errors)), float(errors.max()), len(vectors))


def _some_widths(cost: CostModel, generator: np.random.Generator) -> Counts:
    """Draw a width vector of a narrow to a wide network; the groups' fractions differ by up to a factor of 3."""
    fraction = generator.uniform(0.15, 1.0) * generator.uniform(0.5, 1.5, len(cost.num_channels))
    return np.clip(np.round(fraction * cost.num_channels), 1, cost.num_channels).astype(np.int64)
