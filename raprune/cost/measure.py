"""Times of a network's operations and of whole networks on a device, and the latency table that they make."""

from __future__ import annotations

import contextlib
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from raprune.channels.cut import cut
from raprune.channels.graph import ChannelGraph
from raprune.cost.flops import CostModel, Counts
from raprune.cost.latency import KINDS, Accuracy, Floats, LatencyTable, fitted, monotone
from raprune.cost.operations import SizedCall, calls, follow
from raprune.errors import ModelError
from raprune.models.memory_format import layout_for
from raprune.records import Candidate
from raprune.results.timings import Times, Timing
from raprune.spec.job import LatencySpec
from raprune.store.scores import key_of

PROBES = 5
"""Networks of other widths that tell which sizes follow which axes."""
FITTED = 8
"""Whole networks, beside the dense one, that scales and offset are fitted to."""
HELD_OUT = 10
"""Whole networks that the predictions are set against."""
MATRIX = ("addmm", "baddbmm", "bmm", "convolution", "mm", "scaled_dot")
"""Parts of the names of operations of that kind."""

_OPERATION_S, _NETWORK_S = 0.1, 3.0
"""Time after which a size, or a network, is timed no more often."""

FILLING = {"cpu": 64, "cuda": 256}
"""Images that fill a device, at most."""
FILLING_FLOPS = 10**10
"""FLOPs of a batch for each CPU thread, at most: a few tenths of a second."""


@dataclass(frozen=True, kw_only=True)
class Repeats:
    """Number of timings of a call."""

    most: int
    limit_s: float
    """Time of all timings of a call after which there are no more of them, once there are `least`."""
    least: int = 3


@dataclass(frozen=True)
class Stopwatch:
    """Times calls on a device; processor threads as set by `torch.set_num_threads`."""

    device: torch.device
    clock: Callable[[], float] | None = None
    """Seconds on a CPU. None: as `milliseconds` says."""

    def milliseconds(self, call: Callable[[], object]) -> float:
        """Of one call: by events on a GPU; on one processor thread its processor time, which neighbours do not add to.

        With more threads there is no such time, and the clock on the wall counts.
        """
        if self.device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            call()
            end.record()
            end.synchronize()
            return float(begin.elapsed_time(end))
        clock = self.clock or (time.thread_time if torch.get_num_threads() == 1 else time.perf_counter)
        started = clock()
        call()
        return (clock() - started) * 1e3

    def median(self, call: Callable[[], object], *, repeats: int) -> float:
        """Of so many calls, or of fewer where they take long; two go before, untimed."""
        for _ in range(2):
            call()
        return statistics.median(self._timings([call], Repeats(most=repeats, limit_s=_OPERATION_S))[0])

    def medians(self, several: Sequence[Callable[[], object]], repeats: Repeats) -> Floats:
        """Of each of the calls, which take turns, so that what the machine does beside them meets all alike."""
        for call in several:
            call()
        timings = self._timings(several, repeats)
        return np.array([statistics.median(of_one) for of_one in timings])

    def _timings(self, several: Sequence[Callable[[], object]], repeats: Repeats) -> list[list[float]]:
        timings: list[list[float]] = [[] for _ in several]
        spent_ms, limit_ms = 0.0, 1e3 * repeats.limit_s * len(several)
        while len(timings[0]) < repeats.most and (len(timings[0]) < repeats.least or spent_ms < limit_ms):
            for call, of_one in zip(several, timings, strict=True):
                of_one.append(self.milliseconds(call))
                spent_ms += of_one[-1]
        return timings


class Subject:
    """A network as its latency is measured: evaluation mode, one batch, the layout that it runs fastest in."""

    def __init__(self, model: nn.Module, graph: ChannelGraph, spec: LatencySpec, *, device: str) -> None:
        self.graph = graph
        self.device = torch.device(device)
        self.precision = precision_of(spec, self.device)
        self._dtype = torch.bfloat16 if self.precision == "bfloat16" else torch.float32
        self._model = model
        x = torch.ones(spec.batch_size, *graph.input_shape, device=self.device)
        self._layout = layout_for(model, x[:1])
        self.x = x.to(self._dtype).contiguous(memory_format=self._layout)

    def placed(self, model: nn.Module) -> nn.Module:
        """`model` on the device, in the layout and precision of the measurement; of the dense network a copy."""
        whole = cut(model, self.graph, Candidate("whole", {})) if model is self._model else model
        return whole.to(self.device, self._dtype).to(memory_format=self._layout).eval()

    def narrowed(self, cost: CostModel, widths: Counts) -> nn.Module:
        """The network with the first channels of each group: as fast as with any others."""
        kept = {name: tuple(range(int(n))) for name, n in zip(cost.group_names, widths, strict=True)}
        return self.placed(cut(self._model, self.graph, Candidate("widths", kept)))

    def call(self, model: nn.Module) -> Callable[[], object]:
        """One batch through a network of `placed`."""
        return lambda: model(self.x)


def measure_table(
    model: nn.Module, graph: ChannelGraph, spec: LatencySpec, *, device: str, seed: int = 0
) -> LatencyTable:
    """The latency table of `model` (on `device`, with `graph` its trace), and how good it is on whole networks.

    Raises:
        ModelError: if the network runs other operations at other widths.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(spec.threads)
    try:
        subject, cost = Subject(model, graph, spec, device=device), CostModel(graph)
        raw = _operation_times(subject, cost, spec, seed)
        return _calibrated(raw, subject, cost, spec, seed)
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
    """Milliseconds of a batch through each of `models`, cut from `model`, and at last through that; by turns.

    `stopwatch` and `repeats`: others than those of the table.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(spec.threads)
    try:
        subject = Subject(model, graph, spec, device=device)
        timed = [subject.call(subject.placed(one)) for one in (*models, model)]
        with torch.inference_mode():
            stopwatch = stopwatch or Stopwatch(subject.device)
            repeats = repeats or Repeats(most=spec.repeats, limit_s=_NETWORK_S)
            return [float(ms) for ms in stopwatch.medians(timed, repeats)]
    finally:
        torch.set_num_threads(threads)


def measure_reported(
    models: Mapping[str, nn.Module],
    model: nn.Module,
    graph: ChannelGraph,
    spec: LatencySpec,
    *,
    device: str,
    threads: int,
    largest: int,
    budgeted: bool,
    stopwatch: Stopwatch | None = None,
) -> Times:
    """Times of the named networks, cut from `model`, as a report gives them.

    They are those of one image and of a batch that fills the device, on `threads` CPU threads by the clock on the wall;
    with `budgeted` also those under the conditions of `spec`, as the latency table is measured. A batch that is chosen
    here has at most `largest` images.
    """
    watch = stopwatch or Stopwatch(torch.device(device), clock=time.perf_counter)
    # A front has a dozen networks or more, and what the machine does besides comes in bursts: often where it is short.
    often = Repeats(most=10 * spec.repeats, least=7, limit_s=0.1)

    def under(conditions: LatencySpec, watch: Stopwatch | None = watch) -> Timing:
        *times_ms, dense_ms = measure_whole(
            list(models.values()), model, graph, conditions, device=device, stopwatch=watch, repeats=often
        )
        where = torch.device(device)
        return Timing(
            device=device_name(where),
            threads=conditions.threads if where.type == "cpu" else None,
            precision=precision_of(conditions, where),
            batch_size=conditions.batch_size,
            dense_ms=dense_ms,
            candidates=dict(zip(models, times_ms, strict=True)),
        )

    def on_all_threads(batch_size: int) -> Timing:
        return under(spec.model_copy(update={"batch_size": batch_size, "threads": threads}))

    chosen = filling_batch(CostModel(graph).dense_flops, device=device, threads=threads, largest=largest)
    batch = on_all_threads(spec.report_batch) if spec.report_batch else _fitting(on_all_threads, chosen)
    single = [on_all_threads(1)] if batch.batch_size > 1 else []
    return Times(conditions=(*single, batch), budget=under(spec, None) if budgeted else None)


def filling_batch(flops: int, *, device: str, threads: int, largest: int) -> int:
    """Number of images that fill the device, a power of two of at most `largest`.

    It follows from `flops`, those of the dense network for one image, and not from a measurement, which a busy machine
    would bend. On a CPU a large network has fewer images: one keeps the threads busy.
    """
    kind = torch.device(device).type
    most = min(largest, FILLING[kind])
    if kind == "cpu":
        most = min(most, threads * FILLING_FLOPS // flops)
    return 1 << (max(1, most).bit_length() - 1)


def _fitting(measure: Callable[[int], Timing], batch_size: int) -> Timing:
    """The timing of so many images, or of half as many again and again where they do not fit into the device."""
    while batch_size > 1:
        with contextlib.suppress(torch.OutOfMemoryError):
            return measure(batch_size)
        batch_size //= 2
    return measure(1)


def conditions(spec: LatencySpec, *, device: str) -> dict[str, Any]:
    """What timings were taken under: the device's name, images a batch, precision; as plain data."""
    where = torch.device(device)
    name = device_name(where)
    if where.type == "cpu":
        name = f"{name}, {spec.threads} thread{'s' * (spec.threads > 1)}"
    return {"device": name, "batch_size": spec.batch_size, "precision": precision_of(spec, where)}


def table_key(graph: ChannelGraph, spec: LatencySpec, *, device: str, seed: int = 0) -> str:
    """Under which key the statistics hold the table of this network on this device. Weights do not matter to it."""
    content = {
        "architecture": graph.architecture,
        "factors": [[factor.constant, dict(factor.coefficients)] for factor in graph.factors],
        # The table does not hang on what the report measures besides.
        "spec": spec.model_dump(mode="json", exclude={"report_batch"}),
        "device": device_name(torch.device(device)),
        "torch": torch.__version__,
        "seed": seed,
    }
    return key_of("latency", content)


def precision_of(spec: LatencySpec, device: torch.device) -> str:
    """`float32` or `bfloat16`."""
    if spec.precision == "auto":
        return "bfloat16" if device.type == "cuda" else "float32"
    return spec.precision


def device_name(device: torch.device) -> str:
    """What its maker calls it."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def usable_cpus() -> int:
    """Number of CPUs that this process may run on, of those that the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _operation_times(subject: Subject, cost: CostModel, spec: LatencySpec, seed: int) -> LatencyTable:
    """The table before it is calibrated."""
    operations = _sized(subject, cost, seed)
    stopwatch = Stopwatch(subject.device)
    dense = cost.sizes(cost.num_channels)
    known: dict[tuple[Any, ...], int] = {}
    grids: list[list[Floats]] = []
    times: list[Floats] = []
    tables: list[int] = []
    failed: set[int] = set()
    with torch.inference_mode():
        for operation in operations:
            own = [_grid(subject.graph, cost, factor, spec.widths) for factor in operation.factors]
            key = (operation.signature, tuple(tuple(grid) for grid in own))
            if key not in known:
                known[key] = len(grids)
                grids.append(own)
                dense_sizes = [float(dense[factor]) for factor in operation.factors]
                try:
                    measured = _times(stopwatch, operation, own, dense_sizes, spec.repeats)
                except Exception:  # what runs inside a network may refuse to run on tensors of ones
                    measured = np.zeros((*(len(grid) for grid in own), 1, 1)[:2])
                    failed.add(known[key])
                times.append(monotone(measured))
            tables.append(known[key])
    padded_grids, padded_times = _padded(grids, times)
    is_matrix = [any(part in str(op.call.operation) for part in MATRIX) for op in operations]
    return LatencyTable(
        grids=padded_grids,
        times_ms=padded_times,
        tables=np.array(tables, dtype=np.int64),
        factors=np.array([(*op.factors, -1, -1)[:2] for op in operations], dtype=np.int64),
        kinds=np.array([KINDS.index("matrix" if matrix else "other") for matrix in is_matrix], dtype=np.int64),
        modules=tuple(op.call.module for op in operations),
        scales=(1.0,) * len(KINDS),
        offset_ms=0.0,
        dense_ms=np.inf,
        accuracy=Accuracy(0.0, 0.0, 0),
        **conditions(spec, device=subject.device.type),
        unknown=tuple(
            f"{op.call.operation} in {op.call.module}"
            for op, table in zip(operations, tables, strict=True)
            if not op.known or table in failed
        ),
    )


def _sized(subject: Subject, cost: CostModel, seed: int) -> list[SizedCall]:
    generator = np.random.default_rng(seed)
    # Of width 1 an axis has no place in memory, and other operations run.
    least = np.minimum(2, cost.num_channels)
    vectors = [cost.num_channels, *(generator.integers(least, cost.num_channels + 1) for _ in range(PROBES))]
    runs = [calls(subject.narrowed(cost, widths), subject.x) for widths in vectors]
    operations = follow(runs, cost.sizes(np.stack(vectors)))
    if operations is None:
        raise ModelError(
            "budget_latency (--budget-latency): this network runs other operations at other widths, so no table of "
            "operation times holds for it.",
            hint="Use --budget-flops or --budget-params for it.",
        )
    return operations


def _times(
    stopwatch: Stopwatch, operation: SizedCall, grids: Sequence[Floats], dense_sizes: Sequence[float], repeats: int
) -> Floats:
    """Milliseconds at every point of the grids, shape `(W1, W2)`, 1 where there is no axis."""
    shape = tuple(len(grid) for grid in grids)
    times = np.zeros((*shape, 1, 1)[:2])
    for index in np.ndindex(*shape):
        sizes = [float(grid[i]) for grid, i in zip(grids, index, strict=True)]
        times[(*index, 0, 0)[:2]] = stopwatch.median(operation.made(sizes, dense_sizes), repeats=repeats)
    return times


def _grid(graph: ChannelGraph, cost: CostModel, factor: int, count: int) -> Floats:
    """At most `count` sizes that an axis can have, evenly from one channel a group to all."""
    coefficients = [c for c in graph.factors[factor].coefficients.values() if c]
    step = int(np.gcd.reduce(coefficients))
    low, high = (cost.sizes(widths)[factor] for widths in (np.ones_like(cost.num_channels), cost.num_channels))
    steps = round((high - low) / step)
    return np.unique(high - step * np.round(np.linspace(0, steps, min(count, steps + 1))))


def _padded(grids: list[list[Floats]], times: list[Floats]) -> tuple[Floats, Floats]:
    """All grids and times at one size, their last entries repeated."""
    size = max((len(grid) for own in grids for grid in own), default=1)
    padded = np.zeros((len(grids), 2, size))
    for own, row in zip(grids, padded, strict=True):
        for axis, grid in enumerate(own):
            row[axis] = np.pad(grid, (0, size - len(grid)), mode="edge")
    filled = [np.pad(t, [(0, size - n) for n in t.shape], mode="edge") for t in times]
    return padded, np.stack(filled)


def _calibrated(raw: LatencyTable, subject: Subject, cost: CostModel, spec: LatencySpec, seed: int) -> LatencyTable:
    """The table with scales and offset fitted to whole networks, and set against others."""
    generator = np.random.default_rng([seed, 1])
    # The narrowest is among the fitted: whether a budget can be reached hangs on it.
    vectors = np.stack([cost.smallest(), *(_some_widths(cost, generator) for _ in range(FITTED - 1 + HELD_OUT))])
    models = [subject.narrowed(cost, widths) for widths in (*vectors, cost.num_channels)]
    with torch.inference_mode():
        measured = Stopwatch(subject.device).medians(
            [subject.call(m) for m in models], Repeats(most=spec.repeats, limit_s=_NETWORK_S)
        )
    dense_ms = float(measured[-1])
    *scales, offset = fitted(raw.sums(cost.sizes(vectors[:FITTED])), measured[:FITTED]).tolist()
    table = replace(raw, scales=tuple(scales), offset_ms=offset, dense_ms=dense_ms)
    held_out = measured[FITTED:-1]
    errors = np.abs(table.predict(cost.sizes(vectors[FITTED:])) / held_out - 1)
    return replace(table, accuracy=Accuracy(float(np.median(errors)), float(errors.max()), HELD_OUT))


def _some_widths(cost: CostModel, generator: np.random.Generator) -> Counts:
    """From narrow to wide networks, each with groups about as wide as the others or not."""
    share = generator.uniform(0.15, 1.0) * generator.uniform(0.5, 1.5, len(cost.num_channels))
    return np.clip(np.round(share * cost.num_channels), 1, cost.num_channels).astype(np.int64)
