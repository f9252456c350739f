"""Section `latency`: predictions of latency tables against whole networks on the device."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import nn

from acceptance.bench import Bench
from raprune.channels.cache import cached_trace
from raprune.channels.graph import ChannelGraph
from raprune.cost.flops import CostModel, Counts
from raprune.cost.measure import measure_table, measure_whole
from raprune.cost.stopwatch import Repeats, Stopwatch
from raprune.cost.timed import TimedNetwork
from raprune.models import build_model
from raprune.pruning.allocate import allocate
from raprune.pruning.target import Target
from raprune.spec.budget import Budget
from raprune.spec.job import LatencySpec, ModelSpec

MEDIAN_ERROR, WORST = 0.10, 1.15
"""Median relative error of the predictions, and the largest time of a network over its prediction."""
GOAL = 0.6
"""Latency that the narrowed networks are made for, as a fraction of the dense network's."""
CLASSES = 1000


def run(bench: Bench) -> None:
    """Measure a table for each batch size, and compare its predictions with networks made for a latency."""
    sizes = bench.sizes
    shape = (3, sizes.pixels, sizes.pixels)
    model = build_model(ModelSpec(name=sizes.imagenet), num_classes=CLASSES, image_shape=shape).eval()
    graph = cached_trace(model, torch.zeros(1, *shape))
    model = model.to(bench.device)
    for batch in sizes.latency_batches:
        spec = LatencySpec(batch_size=batch, precision="auto", repeats=sizes.repeats, widths=sizes.widths)
        _compare(bench, model, graph, spec)


def _compare(bench: Bench, model: nn.Module, graph: ChannelGraph, spec: LatencySpec) -> None:
    table = measure_table(model, graph, spec, device=bench.device)
    at = f"batch {spec.batch_size}"
    bench.record(f"{at}: dense network", table.dense_ms, "ms", text=table.precision)
    bench.at_most(
        f"{at}: median error of the table",
        table.accuracy.median_error,
        MEDIAN_ERROR,
        "",
        text=f"worst {table.accuracy.worst_error:.1%}, {len(table.unknown)} unknown operations",
    )
    cost = CostModel(graph, table)
    for multiple_of in (1, 8):
        lowest = float(cost.latency_ms(cost.smallest(multiple_of=multiple_of))) / table.dense_ms
        bench.record(f"{at}, multiples of {multiple_of}: lowest latency within reach", lowest, "of the dense network's")
        if lowest >= 1.0:
            # Launches alone, or the noise of a dry run: nothing narrower is faster, so that no time can be asked for.
            continue
        goal = min(1.0, max(GOAL, 1.1 * lowest))
        target = Target(budget=Budget(latency=goal), multiple_of=multiple_of)
        widths = [_narrowed(cost, target, seed) for seed in range(bench.sizes.narrowed)]
        subject = TimedNetwork(model, graph, spec, device=bench.device)
        networks = [subject.narrowed(cost, one) for one in widths]
        measured = measure_whole(networks, model, graph, spec, device=bench.device)
        predicted = [float(cost.latency_ms(one)) for one in widths]
        ratios = [ms / foreseen for ms, foreseen in zip(measured, predicted, strict=False)]
        name = f"{at}, {goal:.0%} of the latency, multiples of {multiple_of}"
        eager, graphed = _own_timings(bench, subject, networks[0])
        bench.at_most(
            f"{name}: slowest over its prediction",
            max(ratios),
            WORST,
            "x",
            text=f"predicted {predicted[0]:.3f} ms, measured {measured[0]:.3f}, op by op {eager:.3f}"
            + (f", as a CUDA graph {graphed:.3f}" if graphed is not None else ""),
        )


def _narrowed(cost: CostModel, target: Target, seed: int) -> Counts:
    """Return random widths within the target."""
    random = np.random.default_rng(seed)
    counts: Mapping[str, int] = dict(zip(cost.group_names, cost.num_channels.tolist(), strict=True))
    scores = {name: np.arange(count, dtype=np.float64) for name, count in counts.items()}
    ratios = {name: float(random.uniform(0.4, 1.0)) for name in counts}
    return allocate("ratios", cost, target, scores=scores, keep_ratios=ratios)


def _own_timings(bench: Bench, subject: TimedNetwork, network: nn.Module) -> tuple[float, float | None]:
    """Return the median milliseconds of a batch, its operations launched one by one, and replayed as a CUDA graph."""
    call, repeats = subject.call(network), Repeats(most=bench.sizes.repeats, limit_s=3.0)
    with torch.inference_mode():
        eager = _median_ms(bench, call, repeats)
        if not bench.on_gpu:
            return eager, None
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            call()
        return eager, _median_ms(bench, graph.replay, repeats)


def _median_ms(bench: Bench, call: Callable[[], object], repeats: Repeats) -> float:
    return float(Stopwatch(torch.device(bench.device)).medians([call], repeats)[0])
