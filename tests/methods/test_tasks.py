"""Every method on every built-in task: finite scores, a cut, and a network that runs; and repairs that repair."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from raprune.channels.cut import cut
from raprune.channels.inputs import call, tensors_in
from raprune.channels.trace import trace
from raprune.data import load_data
from raprune.methods import METHODS, Cut
from raprune.pruning.prune import Pruner
from raprune.pruning.workload import build_workload
from raprune.records import Candidate, Proposal, Setting
from raprune.spec.budget import Budget
from raprune.training.tasks import TASKS
from raprune.training.tasks.task import Calibration, in_float32
from tests.task_networks import job

SHORT: dict[str, dict[str, Setting]] = {
    "slimming": {"sparse_epochs": 0.5},
    "local_bn": {"sparse_epochs": 0.5},
    "auto_balanced": {"epochs": 0.5, "last_epochs": 0.5, "steps": 2},
    "binary_search": {"finetune_epochs": 0.5},
    "maxout": {"epochs": 0.5, "weight_rounds": 1},
}
"""Settings of methods that train, for trainings of a few steps."""
LEAST_SQUARES = ("reconstruction", "thinet", "lasso")
"""Methods whose repair fits the outputs of the dense network."""


@cache
def pruner(task: str) -> Pruner:
    spec = job(task)
    workload = build_workload(spec, data=load_data(spec.data, seed=0, form=TASKS[task]().targets), device="cpu")
    graph = trace(workload.model, workload.example_input())
    return Pruner(workload, graph, spec)


def outputs(model: nn.Module, images: Tensor) -> Tensor:
    """All numbers that the network gives for images, a detector those of its heads for all anchors."""
    with torch.no_grad():
        return torch.cat([tensor.flatten() for tensor in tensors_in(call(model, images))])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "task", [pytest.param(task, marks=[pytest.mark.nightly] if task == "detection" else []) for task in TASKS]
)
def test_method_on_a_task_scores_and_cuts(task: str, method: str) -> None:
    made = pruner(task)
    workload, graph = made.workload, made.graph
    batches = list(workload.sample(24, torch.Generator().manual_seed(0)).batches(8))
    if not METHODS[method].has_path():
        calibration = Calibration(workload.task, lambda: batches)
        scores = METHODS[method]().score(workload.model, graph, calibration, seed=0)
        assert {name: len(values) for name, values in scores.items()} == {g.name: g.num_channels for g in graph.groups}
        assert all(np.isfinite(values).all() for values in scores.values())
    settings = SHORT.get(method, {})
    asked = Proposal(number=0, method=method, settings=settings, allocation="uniform", target=Budget(flops=0.6), seed=0)
    trial, small, _ = made.prune(asked)
    assert trial.metrics is not None and trial.candidate is not None
    assert trial.metrics.flops_fraction <= 0.6 and trial.metrics.accuracy <= 1
    images, targets = batches[0]
    with torch.no_grad():
        assert workload.task.fits(in_float32(small(images)), images, workload.data.num_classes)
        assert workload.task.loss(in_float32(workload.task.run(small, images, targets)), targets).isfinite()


@pytest.mark.parametrize("method", LEAST_SQUARES)
@pytest.mark.parametrize("task", TASKS)
def test_least_squares_brings_the_outputs_closer_to_those_of_the_dense_network(task: str, method: str) -> None:
    made = pruner(task)
    dense = made.workload.model
    # Heads of a detector too, which run once for each map.
    graph = made.graph
    batches = list(made.workload.sample(24, torch.Generator().manual_seed(0)).batches(8))
    scores = METHODS[method]().score(dense, graph, lambda: batches, seed=0)
    best = {name: np.argsort(-values, kind="stable")[: round(0.6 * len(values))] for name, values in scores.items()}
    kept = {name: tuple(sorted(channels.tolist())) for name, channels in best.items()}
    small = cut(dense, graph, Candidate("by hand", kept))
    images = torch.cat([x for x, _ in batches])
    wanted = outputs(dense, images)
    before = float((outputs(small, images) - wanted).norm())
    METHODS[method]().repair(small, lambda: batches, Cut(dense, graph, kept))
    assert float((outputs(small, images) - wanted).norm()) < 0.97 * before
