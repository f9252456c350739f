"""Whether a job's data and network fit together, and whether a method does as it must: said step by step."""

from __future__ import annotations

import time

import torch
from rich.console import Console
from torch import nn

from raprune.allocate import check_reachable
from raprune.contract import checks_of, examine
from raprune.cost import CostModel
from raprune.data import load_data
from raprune.data.dataset import Dataset
from raprune.errors import MethodError, ModelError
from raprune.evaluate import evaluate
from raprune.inspection import Inspection
from raprune.methods import method_named
from raprune.preparation import without_excluded
from raprune.spec import SearchSpec
from raprune.tracing import trace
from raprune.tracing.proof import prove
from raprune.workload import Workload, build_workload


def check(spec: SearchSpec, *, console: Console) -> None:
    """Goes through everything that a search of `spec` would need, and prints a line for each step that holds.

    Raises:
        RapruneError: at the first step that does not, with what to do.
    """

    def holds(text: str) -> None:
        console.print(f"ok  {text}", markup=False, highlight=False)

    for name in spec.methods:
        method_named(name)
    holds(f"methods: {', '.join(spec.methods)}")
    data = load_data(spec.data, seed=spec.seed)
    holds(f"data: {_describe(data)}")
    workload = build_workload(spec, data=data, device="cpu")
    holds(f"network: {spec.model.name} gives {data.num_classes} logits for one image")
    _check_trains(workload)
    holds("training: the loss has a gradient")
    if spec.model.weights is not None:
        dense = evaluate(workload.model, workload.validation, batch_size=spec.search.eval_batch_size)
        holds(f"weights: {dense.accuracy:.2%} on the validation split (chance is {1 / data.num_classes:.2%})")
    found = _inspect(workload, spec)
    if not found.graph.groups:
        raise ModelError("Nothing can be pruned in this network.", hint="`raprune inspect` says what stays and why.")
    holds(f"channels: {len(found.graph.groups)} groups that can go, {len(found.graph.frozen)} layers that stay")
    limits = {"min_channels": spec.search.min_channels, "multiple_of": spec.search.multiple_of}
    check_reachable(CostModel(found.graph), spec.budget, **limits)
    holds("budget: can be reached")


def check_method(name: str, *, console: Console) -> None:
    """Holds a method to the contract on small networks, and prints a line for each check.

    Raises:
        UsageError: if there is no such method.
        MethodError: if a check does not hold.
    """
    kind, failed = method_named(name), 0
    for finding in examine(kind):
        failed += finding.problem is not None
        said = "ok  " if finding.problem is None else "no  "
        console.print(said + finding.check, markup=False, highlight=False)
        if finding.problem is not None:
            console.print(f"    {finding.problem}", markup=False, highlight=False)
    if failed:
        raise MethodError(
            f"{name}: {failed} of {len(checks_of(kind))} checks do not hold.",
            hint="raprune/methods/method.py says what each hook must do; raprune/contract/checks.py is what was run.",
        )


def inspect_job(spec: SearchSpec) -> Inspection:
    """What can be pruned in the job's network, on images of the shape of its data."""
    workload = build_workload(spec, data=load_data(spec.data, seed=spec.seed), device="cpu")
    return _inspect(workload, spec)


def _inspect(workload: Workload, spec: SearchSpec) -> Inspection:
    example = workload.example_input()
    started = time.perf_counter()
    graph = trace(workload.model, example)
    seconds = time.perf_counter() - started
    graph = without_excluded(graph, spec.exclude)
    return Inspection(spec.model.name, prove(workload.model, graph, example, seed=spec.seed), seconds)


def _check_trains(workload: Workload) -> None:
    x, y = next(workload.train.batches(2))
    parameters = [p for p in workload.model.parameters() if p.requires_grad]
    loss = nn.functional.cross_entropy(workload.model(x), y)
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True) if loss.requires_grad else []
    if not any(gradient is not None and bool(gradient.isfinite().all()) for gradient in gradients):
        raise ModelError(
            "The network cannot be trained: no parameter has a finite gradient.",
            hint="Its forward pass may run under torch.no_grad(), or its parameters may not require a gradient.",
        )


def _describe(data: Dataset) -> str:
    shape = "x".join(str(size) for size in data.image_shape)
    test = "no" if data.test is None else f"{len(data.test):,}"
    train = f"{data.num_train:,} training"
    if data.stream is not None:
        train += f" (streamed, {len(data.train):,} of them held)"
    return f"{train}, {len(data.validation):,} validation and {test} test images of {shape}, {data.num_classes} classes"
