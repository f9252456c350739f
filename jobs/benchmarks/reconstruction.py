"""Removing half of the channels by reconstruction error: `uv run python jobs/benchmarks/reconstruction.py`.

A 3x3 layer of 64 channels in and out on correlated maps, greedy removal of 32, in one run and on one thread:

* raprune: the inverse Gram matrix once, then scores and removals in closed form (`removal` of the method's file, as far
  as half of the channels);
* brute force: at each step a least-squares solve (Cholesky of the remaining Gram matrix) for every channel still there.

Both begin with the same Gram matrix, which is not timed. They must remove the same channels in the same order.
"""

from __future__ import annotations

import os

# Before NumPy and PyTorch are imported: their BLAS reads this once.
os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))

import argparse
import statistics
import time

import torch
from bar import show
from torch import Tensor
from torch.nn import functional

from raprune.methods.reconstruction import Solution, removal

TAPS = 9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--channels", type=int, default=64, help="in and out (default 64)")
    parser.add_argument("--images", type=int, default=24, help="of 16x16 pixels (default 24)")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of the closed form (default 5)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    channels, half = arguments.channels, arguments.channels // 2
    gram, weight = layer(channels, arguments.images)
    columns = torch.arange(channels * TAPS).reshape(channels, TAPS)

    seconds = []
    for _ in range(1 + arguments.repeats):
        started = time.perf_counter()
        order, errors = removal([Solution(gram[None], weight[None], columns, ridge=0.0)], half)
        seconds.append(time.perf_counter() - started)
    fast = statistics.median(seconds[1:])

    started = time.perf_counter()
    slow_order, slow_error = by_brute_force(gram, weight, columns, half)
    slow = time.perf_counter() - started

    print(f"{channels} channels, 3x3: closed form {fast:.4f} s, brute force {slow:.2f} s for {half} removals")
    show("error after the removals, relative difference", figure=abs(errors[-1] / slow_error - 1), bar=1e-9, unit="",
         more_is_better=False)  # fmt: skip
    show("removals in the same order", figure=sum(a == b for a, b in zip(order, slow_order, strict=True)), bar=half,
         unit=f"of {half}", more_is_better=True)  # fmt: skip
    show("closed form against brute force", figure=slow / fast, bar=100, unit="x faster", more_is_better=True)


def layer(channels: int, images: int) -> tuple[Tensor, Tensor]:
    """The Gram matrix of 3x3 patches of correlated maps, and weights; float64."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    mix = normal(channels, channels // 2, 3, 3) / (channels / 2 * TAPS) ** 0.5
    maps = functional.relu(functional.conv2d(normal(images, channels // 2, 18, 18), mix))
    maps = maps + 0.05 * normal(*maps.shape)
    patches = functional.unfold(maps, 3, padding=1).transpose(1, 2).flatten(0, 1)
    return patches.T @ patches, normal(channels * TAPS, channels)


def by_brute_force(gram: Tensor, weight: Tensor, columns: Tensor, count: int) -> tuple[list[int], float]:
    """Greedy removal with a fresh least-squares solve for every channel at every step; the order and the error."""
    cross, energy = gram @ weight, float((weight * (gram @ weight)).sum())
    left, order, error = list(range(len(columns))), [], 0.0
    for _ in range(count):
        errors = []
        for channel in left:
            own = columns[[c for c in left if c != channel]].flatten()
            factor = torch.linalg.cholesky(gram[own[:, None], own])
            explained = torch.linalg.solve_triangular(factor, cross[own], upper=False).square().sum()
            errors.append(energy - float(explained))
        error = min(errors)
        order.append(left.pop(errors.index(error)))
    return order, error


if __name__ == "__main__":
    main()
