"""Section `methods`: every method on the device, its scores and choices against those of the CPU."""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch

from acceptance.bench import Bench
from acceptance.networks import RESNET20, cifar_job, make_subject, proposal
from acceptance.parity import compared, described
from raprune.methods import method_named
from raprune.models.precision import forward_in
from raprune.records import Setting
from raprune.training.evaluate import evaluate

Settings = Mapping[str, Setting]

SCORED: dict[str, Settings] = {
    "random": {},
    "l1": {},
    "l2": {},
    "fpgm": {},
    "activation": {},
    "apoz": {},
    "taylor": {},
    "thinet": {},
    "lasso": {},
    "reconstruction": {},
    "local_bn": {"sparse_epochs": 0.0},
    "slimming": {"sparse_epochs": 0.0},
}
"""Methods that train nothing with these settings: their scores can be compared."""


def run(bench: Bench) -> None:
    """Compare all methods with the reference; without a reference, record their accuracies."""
    subject = make_subject(bench, cifar_job(bench, RESNET20, images=bench.sizes.methods))
    # The reference is exact float32.
    with forward_in("float32", torch.device(bench.device)):
        for name, settings in SCORED.items():
            began = time.perf_counter()
            pruned = subject.pruner.cut_and_repair(proposal(name, settings=settings))
            scores = subject.pruner.scoring.scores(method_named(name)(**settings), proposal(name).seed)
            accuracy = evaluate(pruned.model, subject.workload.validation).accuracy
            seconds = time.perf_counter() - began
            bench.scores |= described(name, scores, pruned.candidate.kept, accuracy, subject.graph)
            parity = compared(name, bench.reference, bench.scores)
            if parity is None:
                bench.record(f"{name}: accuracy after repair", 100 * accuracy, "%", text=f"{seconds:.1f} s")
                continue
            bench.check(
                f"{name}: as on the CPU",
                parity.holds,
                f"scores differ by {parity.scores:.1e}, {parity.same:.1%} same channels, accuracy {accuracy:.2%} "
                f"differs by {100 * parity.accuracy:.2f} points, {seconds:.1f} s",
            )
    if bench.on_gpu:
        found = {_taylor(bench) for _ in range(2)}
        bench.record("taylor twice from the start", text="same candidate" if len(found) == 1 else "two candidates")


def _taylor(bench: Bench) -> str:
    """Return the id of the candidate that `taylor` comes to, with nothing cached."""
    subject = make_subject(bench, cifar_job(bench, RESNET20, images=bench.sizes.methods))
    return subject.pruner.cut_and_repair(proposal("taylor")).candidate.id
