"""How far predicted latencies are from whole networks: `uv run python jobs/benchmarks/latency.py`.

ResNet-20 and ResNet-56 on 32 pixels, ResNet-18 and MobileNetV2 on 64, with batches of 1 and 32; one thread, or a GPU
where there is one. For each, the table is measured as a search measures it and set against networks that it never saw.
Their error is what `raprune search --budget-latency` prints. Then networks that were cut to a share of the latency, by
equal ratios, are measured beside the dense one.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from bar import show
from torch import nn
from torchvision import models

from raprune.channels.cut import cut
from raprune.channels.graph import ChannelGraph
from raprune.channels.trace import trace
from raprune.cost.conditions import table_key
from raprune.cost.flops import CostModel, Counts
from raprune.cost.latency import LatencyTable
from raprune.cost.measure import measure_table, measure_whole
from raprune.errors import BudgetError
from raprune.models.cifar_resnet import CifarResNet
from raprune.pruning.allocate import allocate
from raprune.pruning.target import Target
from raprune.records import Candidate
from raprune.spec.budget import Budget
from raprune.spec.job import LatencySpec
from raprune.store.folder import Store
from raprune.store.scores import Statistics

NETWORKS = ("resnet20", "resnet56", "resnet18", "mobilenet_v2")
VECTORS = 10_000
ASKED = (0.8, 0.65, 0.5)
"""Shares of the dense network's latency."""


def build(name: str) -> tuple[nn.Module, int]:
    """The network, and the height and width of its images."""
    if name in ("resnet20", "resnet56"):
        return CifarResNet(int(name.removeprefix("resnet"))), 32
    return models.get_model(name, weights=None, num_classes=10), 64


def really(
    asked: float,
    model: nn.Module,
    cost: CostModel,
    graph: ChannelGraph,
    spec: LatencySpec,
    device: str,
    multiple_of: int,
) -> str:
    """What a network that is predicted to take this share of the time takes, and its share of the FLOPs."""
    try:
        widths = allocate(
            "uniform", cost, Target(budget=Budget(latency=asked), multiple_of=multiple_of), scores={}, keep_ratios={}
        )
    except BudgetError:
        return f"{asked:.0%} out of reach"
    kept = {name: tuple(range(int(n))) for name, n in zip(cost.group_names, widths, strict=True)}
    time_ms, dense_ms = measure_whole(
        [cut(model, graph, Candidate("uniform", kept))], model, graph, spec, device=device
    )
    return f"{asked:.0%} is {time_ms / dense_ms:.0%} at {int(cost.flops(widths)) / cost.dense_flops:.0%} of the FLOPs"


def front(cost: CostModel, count: int, multiple_of: int) -> list[Counts]:
    """Widths as of the networks of a front: at targets spread over the FLOPs, with other ratios in each block."""
    random = np.random.default_rng(1)
    low = int(cost.flops(cost.smallest(multiple_of=multiple_of))) / cost.dense_flops
    found = []
    for flops in np.geomspace(max(0.08, 1.1 * low), 0.9, count):
        ratios = dict(zip(cost.group_names, random.uniform(0.4, 1.0, len(cost.group_names)).tolist(), strict=True))
        target = Target(budget=Budget(flops=float(flops)), multiple_of=multiple_of)
        found.append(allocate("ratios", cost, target, scores={}, keep_ratios=ratios))
    return found


def compare(
    vectors: list[Counts], model: nn.Module, cost: CostModel, graph: ChannelGraph, spec: LatencySpec, device: str
) -> None:
    """Predicted against measured times of whole networks: median and worst error, and the rank correlation."""
    models = [
        cut(model, graph, Candidate("f", {g: tuple(range(int(n))) for g, n in zip(cost.group_names, v, strict=True)}))
        for v in vectors
    ]
    measured = np.array(measure_whole(models, model, graph, spec, device=device)[:-1])
    predicted = cost.latency_ms(np.stack(vectors))
    errors = 100 * np.abs(predicted / measured - 1)
    ranks = np.stack([np.argsort(np.argsort(times)) for times in (predicted, measured)]).astype(np.float64)
    spearman = float(np.asarray(np.corrcoef(ranks))[0, 1])
    name = f"  {len(vectors)} networks of a front"
    show(f"{name}: median error", figure=float(np.median(errors)), bar=5, unit="%", more_is_better=False)
    show(f"{name}: worst error", figure=float(errors.max()), bar=15, unit="%", more_is_better=False)
    show(f"{name}: Spearman", figure=spearman, bar=0.97, unit="", more_is_better=True)
    print("  " + ", ".join(f"{p:.3g}/{m:.3g}" for p, m in zip(predicted, measured, strict=True)) + " ms", flush=True)


def measured(
    model: nn.Module, graph: ChannelGraph, spec: LatencySpec, device: str, multiple_of: int
) -> dict[str, npt.NDArray[Any]]:
    """Measure the table, as arrays."""
    return measure_table(model, graph, spec, device=device, multiple_of=multiple_of).to_arrays()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=NETWORKS, help=f"default {' '.join(NETWORKS)}")
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=(1, 32), help="default 1 32")
    parser.add_argument("--widths", type=int, default=6, help="widths of a layer that are timed (default 6)")
    parser.add_argument("--precision", default="float32", help="float32 or bfloat16 (default float32)")
    runtimes = ("eager", "compile", "onnxruntime", "tensorrt")
    parser.add_argument("--runtime", choices=runtimes, default="eager", help="default eager")
    parser.add_argument("--multiple-of", type=int, default=1, help="widths are multiples of this (default 1)")
    parser.add_argument("--repeats", type=int, default=20, help="timings of each layer and network (default 20)")
    parser.add_argument("--pixels", type=int, help="height and width of the images (default: 32 or 64)")
    parser.add_argument(
        "--asked", nargs="*", type=float, default=ASKED, help="shares of the latency (default 0.8 0.65 0.5)"
    )
    parser.add_argument("--statistics", help="folder for tables, from which an interrupted run continues")
    parser.add_argument("--front", type=int, default=0, help="networks of a front that are compared (default none)")
    parser.add_argument("--mode", choices=("graph", "eager"), help="default: graph on a GPU, eager on a CPU")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for name in arguments.networks:
        for batch_size in arguments.batch_sizes:
            torch.manual_seed(0)
            model, size = build(name)
            size = arguments.pixels or size
            model = model.to(device).eval()
            graph = trace(model, torch.randn(1, 3, size, size, device=device))
            spec = LatencySpec(
                batch_size=batch_size,
                widths=arguments.widths,
                precision=arguments.precision,
                mode=arguments.mode,
                runtime=arguments.runtime,
                repeats=arguments.repeats,
            )
            started = time.perf_counter()
            known = Statistics(Store(arguments.statistics) if arguments.statistics else None)
            arrays = known.once(
                table_key(graph, spec, device=device, multiple_of=arguments.multiple_of),
                partial(measured, model, graph, spec, device, arguments.multiple_of),
            )
            table = LatencyTable.from_arrays(arrays)
            seconds = time.perf_counter() - started
            cost = CostModel(graph, table)
            widths = np.random.default_rng(0).integers(1, cost.num_channels + 1, (VECTORS, len(cost.num_channels)))
            started = time.perf_counter()
            cost.latency_ms(widths)
            rate = VECTORS / (time.perf_counter() - started)
            show(
                f"{name}, batch {batch_size}: median error on {table.accuracy.networks} networks",
                figure=100 * table.accuracy.median_error,
                bar=10,
                unit="%",
                more_is_better=False,
            )
            lowest = float(cost.latency_ms(cost.smallest())) / table.dense_ms
            print(
                f"  worst {table.accuracy.worst_error:.1%}; corrected by {table.corrected_by} networks; "
                f"dense {table.dense_ms:.3g} ms, lowest {lowest:.1%} of it; "
                f"{len(table.times_ms)} shapes for {len(table.tables)} operations in {seconds:.0f} s; "
                f"{rate:,.0f} vectors/s",
                flush=True,
            )
            print(
                "  "
                + "; ".join(
                    really(asked, model, cost, graph, spec, device, arguments.multiple_of) for asked in arguments.asked
                ),
                flush=True,
            )
            if arguments.front:
                compare(front(cost, arguments.front, arguments.multiple_of), model, cost, graph, spec, device)


if __name__ == "__main__":
    main()
