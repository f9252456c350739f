"""Section `candidates`: candidates of ResNet-56 a second, and the memory that their network and data take."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import torch

from acceptance.bench import Bench
from acceptance.networks import RESNET56, Subject, cifar_job, make_subject, proposal
from raprune.methods.reconstruction import Reconstruction
from raprune.pruning.prune import Pruner

RATE = 12.0
"""Candidates a second, of one actor on an H100."""
MEMORY_MB = 80.0
"""Memory of network, calibration and validation images; all training images would take 138 MB."""
MULTIPLES = (1, 8)


def run(bench: Bench) -> None:
    """Time whole candidates, as an actor makes them, with widths free and in multiples of 8."""
    before = torch.cuda.memory_allocated() if bench.on_gpu else 0
    subject = make_subject(bench, cifar_job(bench, RESNET56, images=bench.sizes.cifar))
    subject.pruner.prune(proposal("l1"))
    if bench.on_gpu:
        memory_mb = (torch.cuda.memory_allocated() - before) / 1e6
        bench.at_most("memory of network and images", memory_mb, MEMORY_MB, "MB")
    for multiple_of in MULTIPLES:
        rate = candidates_a_second(bench, subject, "l1", multiple_of)
        name = f"candidates by l1, widths in multiples of {multiple_of}"
        if multiple_of == MULTIPLES[-1]:
            bench.at_least(name, rate, RATE, "a second")
        else:
            bench.record(name, rate, "a second")
    seconds = bench.seconds(lambda: subject.pruner.scoring.scores(Reconstruction(), 0))
    bench.record("scores by reconstruction", seconds, "s")
    rate = candidates_a_second(bench, subject, "reconstruction", MULTIPLES[-1])
    bench.record(f"candidates by reconstruction, multiples of {MULTIPLES[-1]}", rate, "a second")


def candidates_a_second(bench: Bench, subject: Subject, method: str, multiple_of: int) -> float:
    """Return how many candidates of new widths are cut, repaired and evaluated a second; the scores are known."""
    job = cifar_job(bench, RESNET56, images=bench.sizes.cifar, multiple_of=multiple_of)
    pruner = Pruner(subject.workload, subject.graph, job, statistics=subject.pruner.statistics)
    random = np.random.default_rng(0)

    def candidate() -> None:
        ratios = {group.name: float(random.uniform(0.3, 1.0)) for group in subject.graph.groups}
        pruner.prune(replace(proposal(method, allocation="ratios"), keep_ratios=ratios))

    # Two go first, untimed: they compute the scores and load the kernels.
    for _ in range(2):
        candidate()
    bench.wait()
    began = time.perf_counter()
    for _ in range(bench.sizes.candidates):
        candidate()
    bench.wait()
    return bench.sizes.candidates / (time.perf_counter() - began)
