"""Measurement of the times of operations and of whole networks on a device, and of the latency table."""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import nn

from raprune.channels.cut import cut
from raprune.channels.graph import ChannelGraph
from raprune.cost.flops import CostModel, Counts
from raprune.cost.latency import KINDS, Floats, LatencyTable, PredictionError, fitted, monotone
from raprune.cost.operations import SizedCall, calls, filled, follow
from raprune.errors import ModelError, UsageError
from raprune.models.memory_format import layout_for
from raprune.models.precision import half_precision
from raprune.records import Candidate
from raprune.results.timings import Times, Timing
from raprune.spec.job import LatencySpec
from raprune.store.scores import key_of

_LOG = logging.getLogger(__name__)

PROBES = 5
"""Number of networks of other widths that show which sizes follow which axes."""
FITTED = 8
"""Number of whole networks, besides the dense one, for the fit of scales and offset."""
HELD_OUT = 10
"""Number of whole networks that the predictions are compared with."""
MATRIX = ("addmm", "baddbmm", "bmm", "convolution", "mm", "scaled_dot")
"""Parts of the names of operations of the kind `matrix`."""

_OPERATION_S, _NETWORK_S = 0.1, 3.0
"""Maximum time for all timings of one size of an operation, and of one network."""

WARM_UP_S = 0.5
"""Time for which a GPU works before it is timed."""
COPIES = 20
"""Number of runs of an operation in one CUDA graph: one alone takes less time than the events around it."""
UNCAPTURED = 3
"""Number of runs of a call before its capture."""

FILLING = {"cpu": 64, "cuda": 256}
"""Maximum number of images in a batch that fills a device."""
FILLING_FLOPS = 10**10
"""Maximum FLOPs of such a batch for each CPU thread, which take a few tenths of a second."""


@dataclass(frozen=True, kw_only=True)
class Repeats:
    """Number of timings of a call: at most `most`, and no more after `limit_s` once there are `least`."""

    most: int
    limit_s: float
    """Time of all timings of a call."""
    least: int = 3


@dataclass(frozen=True)
class CapturedCall:
    """A call as a CUDA graph, whose kernels run without waiting for Python."""

    graph: torch.cuda.CUDAGraph
    call: Callable[[], object]
    """The captured call: it keeps the memory alive that the graph reads."""
    copies: int
    """Number of times that the graph runs the call."""

    @classmethod
    def of(cls, call: Callable[[], object], *, copies: int, pool: Any = None) -> Self:
        """Capture `call` so many times. Graphs whose outputs nobody reads may share the memory `pool`.

        Raises:
            ModelError: if an operation of the call cannot be captured.
        """
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            # Libraries choose their kernels and allocate workspaces in the first calls.
            for _ in range(UNCAPTURED):
                call()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=pool):
                for _ in range(copies):
                    call()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise ModelError(
                f"The network cannot be timed as a CUDA graph: {error}",
                hint='It waits for the GPU within its forward pass. Set latency.mode = "eager".',
            ) from error
        return cls(graph, call, copies)

    def __call__(self) -> None:
        self.graph.replay()


@dataclass(frozen=True)
class Stopwatch:
    """Stopwatch for calls on a device, with as many CPU threads as `torch.set_num_threads` has set."""

    device: torch.device
    clock: Callable[[], float] | None = None
    """Clock for a CPU, in seconds. None: the clock that `milliseconds` chooses."""
    mode: str = "eager"
    """`graph`: calls are captured and replayed as CUDA graphs; else `eager`."""
    strict: bool = False
    """True: a call that cannot be captured is an error; else it is timed eagerly."""

    def warm_up(self, call: Callable[[], object]) -> None:
        """Run a call on a GPU until its clock has risen; an idle GPU runs at a fraction of it."""
        until = time.perf_counter() + WARM_UP_S
        while self.device.type == "cuda" and time.perf_counter() < until:
            call()
            torch.cuda.synchronize(self.device)

    def milliseconds(self, call: Callable[[], object]) -> float:
        """Return the milliseconds of one call: by events on a GPU, by CPU time for one CPU thread, else by wall time.

        The CPU time of a thread does not include the work of other processes; several threads have no such time.
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
        """Return the median milliseconds of at most `repeats` calls; two untimed calls go first."""
        [timed] = self._ready([call], copies=COPIES)
        copies = timed.copies if isinstance(timed, CapturedCall) else 1
        for _ in range(2):
            timed()
        return statistics.median(self._timings([timed], Repeats(most=repeats, limit_s=_OPERATION_S))[0]) / copies

    def medians(self, several: Sequence[Callable[[], object]], repeats: Repeats) -> Floats:
        """Return the median milliseconds of each call. Calls take turns, so that other load affects all calls alike."""
        timed = self._ready(several, copies=1)
        for call in timed:
            call()
        timings = self._timings(timed, repeats)
        return np.array([statistics.median(of_one) for of_one in timings])

    def _ready(self, several: Sequence[Callable[[], object]], *, copies: int) -> Sequence[Callable[[], object]]:
        if self.mode != "graph":
            return several
        pool = torch.cuda.graph_pool_handle()
        try:
            return [CapturedCall.of(call, copies=copies, pool=pool) for call in several]
        except ModelError as error:
            if self.strict:
                raise
            _LOG.info("Timing without CUDA graphs: %s", error)
            return several

    def _timings(self, several: Sequence[Callable[[], object]], repeats: Repeats) -> list[list[float]]:
        timings: list[list[float]] = [[] for _ in several]
        spent_ms, limit_ms = 0.0, 1e3 * repeats.limit_s * len(several)
        while len(timings[0]) < repeats.most and (len(timings[0]) < repeats.least or spent_ms < limit_ms):
            for call, of_one in zip(several, timings, strict=True):
                of_one.append(self.milliseconds(call))
                spent_ms += of_one[-1]
        return timings


class TimedNetwork:
    """A network prepared for timing: evaluation mode, one batch, and the memory format in which it runs fastest."""

    def __init__(self, model: nn.Module, graph: ChannelGraph, spec: LatencySpec, *, device: str) -> None:
        self.graph = graph
        self.device = torch.device(device)
        self.precision = precision_of(spec, self.device)
        self._dtype = torch.bfloat16 if self.precision == "bfloat16" else torch.float32
        self._model = model
        x = filled((spec.batch_size, *graph.input_shape), torch.float32, self.device)
        self._layout = layout_for(model, x[:1])
        self.x = x.to(self._dtype).contiguous(memory_format=self._layout)

    def placed(self, model: nn.Module) -> nn.Module:
        """Move `model` to the device, memory format and precision of the measurement; the dense network is copied."""
        whole = cut(model, self.graph, Candidate("whole", {})) if model is self._model else model
        return whole.to(self.device, self._dtype).to(memory_format=self._layout).eval()

    def narrowed(self, cost: CostModel, widths: Counts) -> nn.Module:
        """Return the network with the first channels of each group; the choice of channels does not affect the time."""
        kept = {name: tuple(range(int(n))) for name, n in zip(cost.group_names, widths, strict=True)}
        return self.placed(cut(self._model, self.graph, Candidate("widths", kept)))

    def call(self, model: nn.Module) -> Callable[[], object]:
        """Return a function that runs one batch through a network of `placed`."""
        return lambda: model(self.x)


def measure_table(
    model: nn.Module, graph: ChannelGraph, spec: LatencySpec, *, device: str, seed: int = 0
) -> LatencyTable:
    """Measure the latency table of `model` on `device`, and its error for whole networks; `graph` is the model's trace.

    Raises:
        ModelError: if the network runs other operations at other widths.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(spec.threads)
    try:
        subject, cost = TimedNetwork(model, graph, spec, device=device), CostModel(graph)
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
    """Measure the milliseconds of a batch through each of `models`, and last through the dense `model`, in turns.

    The `models` are cut from `model`. `stopwatch` and `repeats` replace those of the latency table.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(spec.threads)
    try:
        subject = TimedNetwork(model, graph, spec, device=device)
        timed = [subject.call(subject.placed(one)) for one in (*models, model)]
        with torch.inference_mode():
            stopwatch = stopwatch or stopwatch_of(spec, subject.device)
            stopwatch.warm_up(timed[-1])
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
    """Measure the times of the named networks, cut from `model`, for a report.

    The times are wall times of one image and of a batch that fills the device, on `threads` CPU threads. With
    `budgeted` they include the times under the conditions of `spec`, which are those of the latency table. A batch
    size that is chosen here is at most `largest`.
    """
    watch = stopwatch or replace(stopwatch_of(spec, torch.device(device)), clock=time.perf_counter)
    # A front has a dozen networks or more, and other load of the machine comes in bursts: time short calls often.
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
    """Return the number of images that fill the device, a power of two of at most `largest`.

    The number follows from `flops`, the FLOPs of the dense network for one image, not from a measurement, which a busy
    machine would distort. On a CPU a large network gets fewer images, because one image keeps the threads busy.
    """
    kind = torch.device(device).type
    most = min(largest, FILLING[kind])
    if kind == "cpu":
        most = min(most, threads * FILLING_FLOPS // flops)
    return 1 << (max(1, most).bit_length() - 1)


def _fitting(measure: Callable[[int], Timing], batch_size: int) -> Timing:
    """Time a batch of `batch_size` images; halve the batch until it fits into the device's memory."""
    while batch_size > 1:
        with contextlib.suppress(torch.OutOfMemoryError):
            return measure(batch_size)
        batch_size //= 2
    return measure(1)


def conditions(spec: LatencySpec, *, device: str) -> dict[str, Any]:
    """Return the conditions of the timings as plain data: the device's name, the batch size, the precision."""
    where = torch.device(device)
    name = device_name(where)
    if where.type == "cpu":
        name = f"{name}, {spec.threads} thread{'s' * (spec.threads > 1)}"
    return {"device": name, "batch_size": spec.batch_size, "precision": precision_of(spec, where)}


def table_key(graph: ChannelGraph, spec: LatencySpec, *, device: str, seed: int = 0) -> str:
    """Return the key of this network's table for this device in the statistics. Weights do not affect the key."""
    content = {
        "architecture": graph.architecture,
        "factors": [factor.to_json() for factor in graph.factors],
        # The batch of the report does not affect the table.
        "spec": spec.model_dump(mode="json", exclude={"report_batch", "mode"}),
        "device": device_name(torch.device(device)),
        "torch": torch.__version__,
        "seed": seed,
    }
    if torch.device(device).type == "cuda":
        content |= {"mode": mode_of(spec, torch.device(device)), "libraries": _gpu_libraries()}
    return key_of("latency", content)


def stopwatch_of(spec: LatencySpec, device: torch.device) -> Stopwatch:
    """Return the stopwatch of the latency table.

    Raises:
        UsageError: as `mode_of`.
    """
    return Stopwatch(device, mode=mode_of(spec, device), strict=spec.mode == "graph")


def mode_of(spec: LatencySpec, device: torch.device) -> str:
    """Return how networks are timed on `device`: `graph` or `eager`.

    Raises:
        UsageError: if the job asks for CUDA graphs on a CPU.
    """
    if spec.mode == "graph" and device.type != "cuda":
        raise UsageError(
            f'latency.mode is "graph", but latency is measured on the {device.type.upper()}, which has no CUDA graphs.',
            hint='Remove latency.mode or set it to "eager"; or give trials a GPU (resources.gpus_per_trial).',
        )
    return spec.mode or ("graph" if device.type == "cuda" else "eager")


def precision_of(spec: LatencySpec, device: torch.device) -> str:
    """Return the precision of the timings on `device`: `float32` or `bfloat16`."""
    if spec.precision == "auto":
        return "bfloat16" if half_precision(device) is torch.bfloat16 else "float32"
    return spec.precision


def _gpu_libraries() -> list[str]:
    """Return the versions of what chooses and runs the kernels: CUDA, cuDNN and the driver."""
    driver = Path("/proc/driver/nvidia/version")
    return [
        str(torch.version.cuda),
        str(torch.backends.cudnn.version()),
        driver.read_text().partition("\n")[0] if driver.exists() else "",
    ]


def device_name(device: torch.device) -> str:
    """Return the device's product name."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def usable_cpus() -> int:
    """Return the number of CPUs that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _operation_times(subject: TimedNetwork, cost: CostModel, spec: LatencySpec, seed: int) -> LatencyTable:
    """Measure the times of all operations: the table before the calibration."""
    operations = _sized(subject, cost, seed)
    stopwatch = stopwatch_of(spec, subject.device)
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
                except Exception:  # an operation that runs inside the network may refuse tensors of ones
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
        accuracy=PredictionError(0.0, 0.0, 0),
        **conditions(spec, device=subject.device.type),
        unknown=tuple(
            f"{op.call.operation} in {op.call.module}"
            for op, table in zip(operations, tables, strict=True)
            if not op.known or table in failed
        ),
    )


def _sized(subject: TimedNetwork, cost: CostModel, seed: int) -> list[SizedCall]:
    generator = np.random.default_rng(seed)
    # An axis of width 1 has no place in the memory format, and other operations would run.
    least = np.minimum(2, cost.num_channels)
    vectors = [cost.num_channels, *(generator.integers(least, cost.num_channels + 1) for _ in range(PROBES))]
    runs = [calls(subject.narrowed(cost, widths), subject.x) for widths in vectors]
    operations = follow(runs, cost.sizes(np.stack(vectors)))
    if operations is None:
        raise ModelError(
            "budget.latency (--budget-latency): this network runs other operations at other widths, so a table of "
            "operation times cannot predict its latency.",
            hint="Use --budget-flops or --budget-params for this network.",
        )
    return operations


def _times(
    stopwatch: Stopwatch, operation: SizedCall, grids: Sequence[Floats], dense_sizes: Sequence[float], repeats: int
) -> Floats:
    """Measure the milliseconds at every point of the grids, shape `(W1, W2)`; the size is 1 where there is no axis."""
    shape = tuple(len(grid) for grid in grids)
    times = np.zeros((*shape, 1, 1)[:2])
    for index in np.ndindex(*shape):
        sizes = [float(grid[i]) for grid, i in zip(grids, index, strict=True)]
        times[(*index, 0, 0)[:2]] = stopwatch.median(operation.made(sizes, dense_sizes), repeats=repeats)
    return times


def _grid(graph: ChannelGraph, cost: CostModel, factor: int, count: int) -> Floats:
    """Return at most `count` possible sizes of an axis, spaced evenly from one channel per group to all channels."""
    axis = graph.factors[factor]
    coefficients = [c for c in (*axis.coefficients.values(), *(c for *_, c in axis.products)) if c]
    step = int(np.gcd.reduce(coefficients))
    low, high = (cost.sizes(widths)[factor] for widths in (np.ones_like(cost.num_channels), cost.num_channels))
    steps = round((high - low) / step)
    return np.unique(high - step * np.round(np.linspace(0, steps, min(count, steps + 1))))


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
    raw: LatencyTable, subject: TimedNetwork, cost: CostModel, spec: LatencySpec, seed: int
) -> LatencyTable:
    """Return the table with scales and offset fitted to whole networks, and its error for other whole networks."""
    generator = np.random.default_rng([seed, 1])
    # The fit includes the narrowest network, because it decides whether a budget can be reached.
    vectors = np.stack([cost.smallest(), *(_some_widths(cost, generator) for _ in range(FITTED - 1 + HELD_OUT))])
    models = [subject.narrowed(cost, widths) for widths in (*vectors, cost.num_channels)]
    with torch.inference_mode():
        measured = stopwatch_of(spec, subject.device).medians(
            [subject.call(m) for m in models], Repeats(most=spec.repeats, limit_s=_NETWORK_S)
        )
    dense_ms = float(measured[-1])
    *scales, offset = fitted(raw.sums(cost.sizes(vectors[:FITTED])), measured[:FITTED]).tolist()
    table = replace(raw, scales=tuple(scales), offset_ms=offset, dense_ms=dense_ms)
    held_out = measured[FITTED:-1]
    errors = np.abs(table.predict(cost.sizes(vectors[FITTED:])) / held_out - 1)
    return replace(table, accuracy=PredictionError(float(np.median(errors)), float(errors.max()), HELD_OUT))


def _some_widths(cost: CostModel, generator: np.random.Generator) -> Counts:
    """Draw a width vector of a narrow to a wide network; the groups' fractions differ by up to a factor of 3."""
    fraction = generator.uniform(0.15, 1.0) * generator.uniform(0.5, 1.5, len(cost.num_channels))
    return np.clip(np.round(fraction * cost.num_channels), 1, cost.num_channels).astype(np.int64)
