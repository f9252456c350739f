"""Width vectors that the cost model prices in a second: `uv run python jobs/benchmarks/cost_model.py`.

FLOPs and parameters of 100,000 random width vectors of torchvision's ResNet-50 at 224 pixels; one thread.
"""

from __future__ import annotations

import os

# Before NumPy is imported: its BLAS reads this once.
os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))

import argparse

import numpy as np
import torch
from bar import medians, show, times_by_turns
from torchvision import models

from raprune.channels.trace import trace
from raprune.cost.flops import CostModel


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=int, default=100_000, help="width vectors a call (default 100,000)")
    parser.add_argument("--repeats", type=int, default=5, help="timed calls of each (default 5)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cost = CostModel(trace(models.resnet50().eval(), torch.randn(1, 3, 224, 224)))
    rng = np.random.default_rng(0)
    widths = rng.integers(1, cost.num_channels + 1, size=(arguments.vectors, len(cost.group_names)))
    seconds = times_by_turns([lambda: cost.flops(widths), lambda: cost.params(widths)], repeats=arguments.repeats)
    flops, params = (arguments.vectors / median for median in medians(seconds))
    for name, rate in (("FLOPs", flops), ("parameters", params), ("both", 1 / (1 / flops + 1 / params))):
        show(
            f"ResNet-50 ({len(cost.group_names)} groups), {name}",
            figure=rate,
            bar=1e5,
            unit="vectors/s",
            more_is_better=True,
        )


if __name__ == "__main__":
    main()
