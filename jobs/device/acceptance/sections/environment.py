"""Section `environment`: the ceilings of the card, so that all other figures can be read against them."""

from __future__ import annotations

import os

import torch

from acceptance.bench import Bench
from acceptance.machine import processes_on_card
from raprune.models.precision import forward_in

PRODUCTS = (("bfloat16", torch.bfloat16, 8192), ("float32", torch.float32, 8192), ("float64", torch.float64, 4096))
"""Name, type and size of the products of matrices."""
COPY_TB_S, BFLOAT16_TFLOP_S = 2.5, 600.0
"""Rates that a sound H100 reaches."""


def run(bench: Bench) -> None:
    """Measure copy, products of matrices, launches and transfers; a card that misses these bars is not sound."""
    bench.record("CPUs that this process may use", len(os.sched_getaffinity(0)))
    dry, device = bench.sizes.dry, bench.device
    is_hopper = bench.on_gpu and any(name in torch.cuda.get_device_name() for name in ("H100", "H200"))
    source = torch.ones(2**20 if dry else 2**30, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    rate = 2 * source.numel() / bench.seconds(lambda: target.copy_(source), repeats=20) / 1e12
    if is_hopper:
        bench.at_least("copy on the device", rate, COPY_TB_S, "TB/s")
    else:
        bench.record("copy on the device", rate, "TB/s")
    for name, kind, size in PRODUCTS:
        rate = product_rate(bench, kind, 64 if dry else size)
        if is_hopper and name == "bfloat16":
            bench.at_least(f"product in {name}", rate, BFLOAT16_TFLOP_S, "TFLOP/s")
        else:
            bench.record(f"product in {name}", rate, "TFLOP/s")
    with forward_in("tf32", torch.device(device)):
        bench.record("product in TF32", product_rate(bench, torch.float32, 64 if dry else 8192), "TFLOP/s")
    small = torch.zeros(8, device=device)
    small.add_(1)
    bench.record("host time of an operation", 1e6 * bench.seconds(lambda: small.add_(1), repeats=2000), "us")
    images = torch.ones(2**10 if dry else 38_500_000, dtype=torch.uint8)
    there = torch.empty_like(images, device=device)
    hosts = {"pageable": images} | ({"pinned": images.pin_memory()} if bench.on_gpu else {})
    for name, host in hosts.items():
        there.copy_(host)
        seconds = bench.seconds(lambda host=host: there.copy_(host, non_blocking=True), repeats=5)  # type: ignore[misc]
        bench.record(f"copy from {name} memory", images.numel() / seconds / 1e9, "GB/s")
    if bench.on_gpu:
        memory = processes_on_card().get(os.getpid())
        bench.record("memory of this process on the card", memory, "MiB", text="" if memory else "not shown here")


def product_rate(bench: Bench, kind: torch.dtype, size: int) -> float:
    """Return the TFLOP/s of a product of two square matrices of normal random numbers."""
    matrix = torch.randn(size, size, device=bench.device).to(kind)
    torch.mm(matrix, matrix)
    return 2 * size**3 / bench.seconds(lambda: torch.mm(matrix, matrix), repeats=5) / 1e12
