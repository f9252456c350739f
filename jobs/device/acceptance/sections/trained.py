"""Section `trained`: the methods that train, for a part of an epoch."""

from __future__ import annotations

import math
import time

from acceptance.bench import Bench
from acceptance.networks import RESNET20, cifar_job, make_subject, proposal
from acceptance.sections.methods import Settings

TRAINED: dict[str, Settings] = {
    "auto_balanced": {"steps": 2, "epochs": 0.1, "last_epochs": 0.2},
    "maxout": {"epochs": 0.2, "weight_rounds": 1},
    "binary_search": {"finetune_epochs": 0.02, "images": 500},
    "slimming": {"sparse_epochs": 0.1},
    "local_bn": {"sparse_epochs": 0.1, "beta": "measured"},
}
"""Method -> settings with which it trains for a few seconds."""
BUDGET = 0.5


def run(bench: Bench) -> None:
    """Check that each comes to its budget with a finite loss."""
    subject = make_subject(bench, cifar_job(bench, RESNET20, images=bench.sizes.methods))
    for name, settings in TRAINED.items():
        began = time.perf_counter()
        results = list(subject.pruner.results(proposal(name, flops=BUDGET, settings=settings)))
        metrics = results[-1].trial.metrics
        assert metrics is not None, "a network that was made has metrics"
        bench.check(
            name,
            metrics.flops_fraction <= BUDGET and math.isfinite(metrics.loss),
            f"{len(results)} networks, accuracy {metrics.accuracy:.2%} at {metrics.flops_fraction:.1%} of the FLOPs, "
            f"{time.perf_counter() - began:.1f} s",
        )
