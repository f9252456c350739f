"""Section `proof`: channel graphs and their proof in float64 on the device."""

from __future__ import annotations

import torch

from acceptance.bench import Bench
from raprune.channels.proof import TOLERANCE, prove
from raprune.channels.trace import trace
from raprune.models import build_model
from raprune.spec.job import ModelSpec

CLASSES = 10


def run(bench: Bench) -> None:
    """Check that the device's graph equals the CPU's, and that every group passes the proof."""
    for name, pixels in bench.sizes.proved:
        model = build_model(ModelSpec(name=name), num_classes=CLASSES, image_shape=(3, pixels, pixels)).eval()
        x = torch.randn(1, 3, pixels, pixels)
        on_cpu = trace(model, x)
        model, x = model.to(bench.device), x.to(bench.device)
        graph = trace(model, x)
        proof = prove(model, graph, x)
        bench.check(f"{name}: graph as on the CPU", graph.to_json() == on_cpu.to_json(), f"{len(graph.groups)} groups")
        bench.check(
            f"{name}: proof",
            not proof.frozen and max(proof.permutation_error, proof.cut_error) < TOLERANCE,
            f"errors {proof.permutation_error:.0e} and {proof.cut_error:.0e}, {len(proof.frozen)} frozen, "
            f"{proof.seconds:.1f} s",
        )
