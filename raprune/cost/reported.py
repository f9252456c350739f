"""Measurement of the times of a report: whole networks, for one image and for a batch that fills the device."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import nn

from raprune.channels.graph import ChannelGraph
from raprune.cost.compiled import COMPILE, TENSORRT
from raprune.cost.conditions import precision_of, timed_device, timed_device_name
from raprune.cost.flops import CostModel
from raprune.cost.measure import measure_whole
from raprune.cost.stopwatch import Repeats, Stopwatch, stopwatch_of
from raprune.cost.waiting import waited_s
from raprune.results.timings import Times, Timing
from raprune.spec.job import LatencySpec

FILLING = {"cpu": 64, "cuda": 256}
"""Maximum number of images in a batch that fills a device."""
FILLING_FLOPS = 10**10
"""Maximum FLOPs of such a batch for each CPU thread, which take a few tenths of a second."""


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
    `budgeted` they include the times under the conditions of `spec`, which are those of the latency table; beside these
    a runtime that compiles networks is not used. A batch size that is chosen here is at most `largest`.
    """
    watch = stopwatch or replace(stopwatch_of(spec, torch.device(timed_device(spec, device))), clock=time.perf_counter)
    # A front has a dozen networks or more, and other load of the machine comes in bursts: time short calls often.
    often = Repeats(most=10 * spec.repeats, least=7, limit_s=0.1)

    def under(conditions: LatencySpec, watch: Stopwatch | None = watch) -> Timing:
        began, waited_before = time.perf_counter(), waited_s()
        *times_ms, dense_ms = measure_whole(
            list(models.values()), model, graph, conditions, device=device, stopwatch=watch, repeats=often
        )
        where = torch.device(timed_device(conditions, device))
        waited = None
        if where.type == "cpu" and conditions.target is None and waited_before is not None:
            could_work_s = (time.perf_counter() - began) * conditions.threads
            waited = min(1.0, max(0.0, (waited_s() or 0.0) - waited_before) / could_work_s)
        return Timing(
            device=timed_device_name(conditions, device),
            threads=conditions.threads if where.type == "cpu" else None,
            precision=precision_of(conditions, where),
            batch_size=conditions.batch_size,
            dense_ms=dense_ms,
            candidates=dict(zip(models, times_ms, strict=True)),
            runtime=conditions.runtime,
            waited=waited,
        )

    def on_all_threads(batch_size: int) -> Timing:
        changes: dict[str, object] = {"batch_size": batch_size, "threads": threads}
        if budgeted and spec.runtime in (COMPILE, TENSORRT):
            # A compilation of each network for each batch size would take longer than the search.
            changes["runtime"] = "eager"
        return under(spec.model_copy(update=changes))

    chosen = filling_batch(
        CostModel(graph).dense_flops, device=timed_device(spec, device), threads=threads, largest=largest
    )
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
