"""Stopwatches for calls on a device: wall time, CPU time, CUDA events, CUDA graphs."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch

from raprune.cost.latency import Floats
from raprune.errors import ModelError, UsageError
from raprune.spec.job import LatencySpec

_LOG = logging.getLogger(__name__)

OPERATION_S = 0.1
"""Maximum time for all timings of one size of an operation."""

SHORT_MS, UNTIMED = 20.0, 2
"""Time of a call below which each of its timings follows so many calls that are not timed, where several calls take
turns: those between leave other weights in the caches. Of 19 networks of 0.1 ms in ONNX Runtime, times as fractions of
the dense network's were up to 31 % off those of networks that ran alone; 6 % after two untimed calls."""

WARM_UP_S = 0.5
"""Time for which a GPU works before it is timed."""
COPIES = 20
"""Number of runs of an operation in one CUDA graph: one alone takes less time than the events around it."""
UNCAPTURED = 3
"""Number of runs of a call before its capture."""


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
        return statistics.median(self._timings([timed], Repeats(most=repeats, limit_s=OPERATION_S))[0]) / copies

    def medians(self, several: Sequence[Callable[[], object]], repeats: Repeats) -> Floats:
        """Return the median milliseconds of each call. Calls take turns, so that other load affects all calls alike."""
        timed = self._ready(several, copies=1)
        for call in timed:
            call()
        timings = self._timings(timed, repeats, warm=len(timed) > 1)
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

    def _timings(
        self, several: Sequence[Callable[[], object]], repeats: Repeats, *, warm: bool = False
    ) -> list[list[float]]:
        timings: list[list[float]] = [[] for _ in several]
        spent_ms, limit_ms = 0.0, 1e3 * repeats.limit_s * len(several)
        while len(timings[0]) < repeats.most and (len(timings[0]) < repeats.least or spent_ms < limit_ms):
            for call, of_one in zip(several, timings, strict=True):
                for _ in range(UNTIMED if warm and (not of_one or of_one[-1] < SHORT_MS) else 0):
                    call()
                of_one.append(self.milliseconds(call))
                spent_ms += of_one[-1]
        return timings


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
