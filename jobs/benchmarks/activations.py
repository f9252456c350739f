"""Peak activation memory, predicted and measured: `uv run python jobs/benchmarks/activations.py [-o FILE]`.

Ten torchvision networks, one image, whole and cut to random widths around half and a quarter. *Predicted* is the closed
form of the trace. *Storages* is the peak of the storages that live in a forward pass of the cut network. *Allocator* is
the peak of what PyTorch's allocator gave out in that pass, by its profiler: it includes the scratch memory of kernels
that they take from PyTorch, and not what oneDNN allocates for itself. The image is part of each figure.
"""

from __future__ import annotations

import argparse
import gc
from pathlib import Path

import numpy as np
import torch
from bar import show
from torch import nn
from torchvision import models

from raprune.channels.cut import cut
from raprune.channels.evaluating import evaluating
from raprune.channels.proof import prove
from raprune.channels.trace import trace
from raprune.cost.flops import CostModel, Counts
from raprune.cost.memory import LiveTensors
from raprune.records import Candidate

NETWORKS = (
    *("resnet18", "resnet50", "vgg11_bn", "densenet121", "googlenet", "mobilenet_v2", "mobilenet_v3_large"),
    *("efficientnet_b0", "shufflenet_v2_x1_0", "convnext_tiny"),
)
SIZE = 224
FRACTIONS = (1.0, 0.5, 0.25)
MIB = 2**20
BAR = 10.0


def storages(model: nn.Module, x: torch.Tensor) -> int:
    """Peak bytes of the storages that live at the same time."""
    with evaluating(model), torch.no_grad(), LiveTensors() as live:
        model(x.clone())
    return live.peak


def allocated(model: nn.Module, x: torch.Tensor) -> int:
    """Peak bytes that PyTorch's allocator gave out, and the image."""
    gc.collect()
    with (
        evaluating(model),
        torch.no_grad(),
        torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile,
    ):
        model(x)
    assert profile.profiler is not None and profile.profiler.kineto_results is not None
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return int(np.cumsum([0, *changes]).max()) + x.nbytes


def some(cost: CostModel, fraction: float) -> Counts:
    """Widths around a fraction of the dense network's."""
    if fraction == 1.0:
        return cost.num_channels
    drawn = fraction * np.random.default_rng(0).uniform(0.5, 1.5, len(cost.num_channels)) * cost.num_channels
    return np.clip(np.round(drawn), 1, cost.num_channels).astype(np.int64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, help="file for the table in Markdown")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        "| network | widths | predicted, MiB | storages, MiB | error | allocator, MiB | error |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    worst, worst_allocated = 0.0, 0.0
    for name in NETWORKS:
        torch.manual_seed(0)
        model, x = models.get_model(name, weights=None).eval(), torch.randn(1, 3, SIZE, SIZE)
        graph = prove(model, trace(model, x), x).graph
        cost = CostModel(graph)
        for fraction in FRACTIONS:
            widths = some(cost, fraction)
            kept = {group: tuple(range(int(n))) for group, n in zip(cost.group_names, widths, strict=True)}
            network = cut(model, graph, Candidate("some", kept))
            predicted = int(cost.memory_bytes(widths))
            found = (storages(network, x), allocated(network, x))
            errors = [100 * (predicted / size - 1) for size in found]
            worst, worst_allocated = max(worst, abs(errors[0])), max(worst_allocated, abs(errors[1]))
            cells = (f"{size / MIB:.2f} | {error:+.1f} %" for size, error in zip(found, errors, strict=True))
            lines.append(f"| {name} | {fraction:.0%} | {predicted / MIB:.2f} | {' | '.join(cells)} |")
            print(lines[-1], flush=True)
    if arguments.output:
        title = "# Peak activation memory, predicted and measured"
        about = f"One image of {SIZE} pixels, float32. [activations.py](activations.py) says what is compared."
        arguments.output.write_text("\n".join([title, "", about, "", *lines, ""]))
    show("worst error against storages", figure=worst, bar=BAR, unit="%", more_is_better=False)
    print(f"worst error against the allocator, with the scratch memory of kernels: {worst_allocated:.0f} %")


if __name__ == "__main__":
    main()
