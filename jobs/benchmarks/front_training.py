"""Eight finalists trained at once against one after another: `uv run python jobs/benchmarks/front_training.py`.

Networks of a front may share the batches and the teacher's pass in fine-tuning. This program measures the gain before
anyone builds it. Eight networks from 15 to 50 % of the FLOPs of the dense network are cut by L2 norms; then `--steps`
steps are taken by turns:

* apart: each network draws and augments the batch, asks the teacher, and takes its step, as finalists do today;
* together: one batch and one pass of the teacher, then the step of each network.

The loss is that of distillation alone (softened logits), the optimiser SGD with momentum, precision float32. *Ratio* is
together over apart, by the median turn; the promise that is judged is half. The bound is what a teacher and batches
without any cost would leave. Where the teacher's answers are computed once (training without augmentation), nothing is
left to share but the batch.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from bar import commit, medians, show, times_by_turns
from torch import Tensor, nn

from raprune.channels.cut import rebuild
from raprune.pruning.preparation import prepare
from raprune.pruning.prune import Pruner
from raprune.pruning.workload import Workload, build_workload
from raprune.records import Proposal
from raprune.spec.budget import Budget
from raprune.spec.toml import load_spec
from raprune.training.distillation import logit_loss

JOBS = Path(__file__).parents[1]
FRACTIONS = tuple(float(fraction) for fraction in np.linspace(0.15, 0.5, 8))
"""Fractions of the dense FLOPs of the networks that are trained."""
BATCH = 128
TEMPERATURE = 4.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--job", default="resnet56_cifar10", help="job file in jobs/ (default resnet56_cifar10)")
    parser.add_argument("--steps", type=int, default=4, help="steps of a turn (default 4)")
    parser.add_argument("--turns", type=int, default=5, help="default 5")
    arguments = parser.parse_args()
    spec = load_spec(JOBS / f"{arguments.job}.toml", {"data.max_images": 5000})
    prepared = prepare(spec)
    workload = build_workload(prepared.spec, data=prepared.data, device="cpu", weights=prepared.weights)
    pruner = Pruner(workload, prepared.graph, prepared.spec)
    proposals = (
        Proposal(number=number, method="l2", allocation="uniform", target=Budget(flops=fraction), seed=0)
        for number, fraction in enumerate(FRACTIONS)
    )
    networks = [rebuild(pruner.prune(proposal).model, lambda name, tensor: tensor.clone()) for proposal in proposals]
    finalists = [Finalist(network) for network in networks]
    teacher = workload.model.eval()

    def apart() -> None:
        for finalist in finalists:
            for x in images(workload, arguments.steps):
                finalist.step(x, answered(teacher, x))

    def together() -> None:
        for x in images(workload, arguments.steps):
            answers = answered(teacher, x)
            for finalist in finalists:
                finalist.step(x, answers)

    def alone() -> None:
        known = answered(teacher, next(images(workload, 1)))
        x = torch.zeros_like(next(images(workload, 1)))
        for finalist in finalists:
            for _ in range(arguments.steps):
                finalist.step(x, known)

    by_side = times_by_turns([apart, together, alone], repeats=arguments.turns)
    one_by_one, at_once, bound = medians(by_side)
    ratios = [b / a for a, b in zip(by_side[0], by_side[1], strict=True)]
    print(
        f"{arguments.job}, {len(finalists)} networks, mean {np.mean(FRACTIONS):.0%} of the FLOPs, commit {commit()}: "
        f"apart {one_by_one:.2f} s, together {at_once:.2f} s, steps of the networks alone {bound:.2f} s "
        f"({bound / one_by_one:.2f}); ratios {min(ratios):.2f} to {max(ratios):.2f}"
    )
    show("together over apart", figure=statistics.median(ratios), bar=0.5, unit="", more_is_better=False)


class Finalist:
    """A network in training, and its optimiser."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network.train()
        self.optimiser = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)

    def step(self, x: Tensor, answers: Tensor) -> None:
        """Take a step on images `(B, C, H, W)` towards the teacher's logits `(B, num_classes)`."""
        self.optimiser.zero_grad()
        logit_loss(self.network(x), answers, TEMPERATURE).backward()
        self.optimiser.step()


def images(workload: Workload, count: int) -> Iterator[Tensor]:
    """Yield augmented batches `(B, C, H, W)`, the same ones in each call."""
    batches = workload.training.shuffled(BATCH, torch.Generator().manual_seed(0), workload.augment)
    for _, (x, _) in zip(range(count), batches, strict=False):
        yield x


@torch.no_grad()
def answered(teacher: nn.Module, x: Tensor) -> Tensor:
    """Return the teacher's logits `(B, num_classes)`."""
    logits: Tensor = teacher(x)
    return logits


if __name__ == "__main__":
    os.environ.setdefault("RAPRUNE_DATA", str(Path(__file__).parents[3] / "shared" / "data"))
    main()
