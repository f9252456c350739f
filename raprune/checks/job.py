"""`raprune check`: a job or a user's method is checked step by step, and each step that passes is printed."""

from __future__ import annotations

import time
from dataclasses import replace

import torch
from rich.console import Console

from raprune.channels.gates import with_gates
from raprune.channels.graph import ChannelGraph
from raprune.channels.proof import Proof, prove
from raprune.channels.trace import trace
from raprune.checks.contract import checks_of, examine
from raprune.checks.diagnosis import accuracy_on_training, accuracy_on_validation, better_normalisation
from raprune.checks.inspect import Inspection
from raprune.checks.memory import described, too_small, workers_a_card
from raprune.checks.symptoms import cannot_classify
from raprune.checks.task import check_task
from raprune.cost.flops import CostModel
from raprune.data import ignored, sorted_stream
from raprune.data.dataset import Dataset
from raprune.data.residence import device_memory
from raprune.data.standard import stand_in
from raprune.data.targets import ANY, COLUMNS
from raprune.errors import MethodError, ModelError, RapruneError
from raprune.methods import method_named
from raprune.models.traits import traits_of
from raprune.pruning.memory import worker_memory
from raprune.pruning.preparation import Steps, check_output, job_data, prepare, without_excluded, without_excluded_gates
from raprune.pruning.workload import Workload, build_workload
from raprune.sampling.warm_start import Identity, read
from raprune.spec import automatic
from raprune.spec.job import SearchSpec
from raprune.store.folder import Store
from raprune.training.tasks.task import in_float32


def check(spec: SearchSpec, *, console: Console) -> None:
    """Run the checks that a search of `spec` runs before it starts, and print a line for each step that passes.

    Raises:
        RapruneError: at the first step that fails; the hint says what to do.
    """
    check_output(Store(spec.output))
    steps = _Printed(spec, console)
    try:
        prepared = prepare(spec, steps)
    except RapruneError:
        steps.estimate_without_files()
        raise
    if spec.warm_start:
        graph, data = prepared.graph, prepared.data
        read(spec.warm_start, Identity(graph.architecture, data.fingerprint, prepared.given_weights))
        runs = f"{len(spec.warm_start)} run{'s' * (len(spec.warm_start) > 1)}"
        console.print(f"ok  warm start: {runs}", markup=False, highlight=False)


class _Printed(Steps):
    """Printer of a line for each step that passes; it also checks that the network can be trained and classifies."""

    def __init__(self, spec: SearchSpec, console: Console) -> None:
        self._spec = spec
        self._console = console
        self._are_names_known = False
        self._workload: Workload | None = None
        self._graph: ChannelGraph | None = None

    def named(self, spec: SearchSpec) -> None:
        self._are_names_known = True
        if spec.methods:
            self._print("methods", ", ".join(spec.methods))
        if spec.allocations:
            self._print("allocations", ", ".join(spec.allocations))

    def loaded(self, data: Dataset) -> None:
        self._print("data", _describe(data))
        self._print("normalisation", str(data.normalisation))
        self._warn(ignored(self._spec.data, data))
        self._warn(sorted_stream(data))

    def built(self, workload: Workload) -> None:
        self._workload = workload
        data = workload.data
        self._print("network", f"{self._spec.model.name} gives {_outputs(workload)}")
        _check_trains(workload)
        self._print("training", "the loss has a gradient")
        check_task(workload)
        if self._spec.task != "classification":
            self._print("task", f"{self._spec.task}, judged by {workload.task.metric}; its sums add up")
        if self._spec.weights is not None:
            validation, training = accuracy_on_validation(workload), accuracy_on_training(workload)
            self._print(
                "weights",
                f"{validation.value:.2%} on the validation split{_guess(data)}, "
                f"{training.value:.2%} on {training.images:,} training images",
            )
            if data.chance is not None:
                self._warn(cannot_classify(validation, training, chance=data.chance, has_weights=True))
            with self._console.status("trying the common normalisations"):
                better = better_normalisation(workload)
            self._warn(better)

    def traced(self, proof: Proof) -> None:
        self._graph = proof.graph
        go, stay = len(proof.graph.groups), len(proof.graph.frozen)
        removable = f"{go:,} group{'s' * (go != 1)} can be pruned"
        self._print("channels", f"{removable}, {stay:,} layer{'s' * (stay != 1)} must stay whole")

    def decided(self, spec: SearchSpec) -> None:
        assert self._workload is not None, "an earlier step"
        traits = traits_of(self._workload.model, self._workload.data)
        for subject, decision in automatic.told(self._spec, spec, traits).items():
            self._print(subject, decision)
        self._decided = spec

    def reached(self, cost: CostModel) -> None:
        self._print("budget", _describe_budget(self._spec))
        assert self._workload is not None and self._graph is not None, "earlier steps"
        with self._console.status("estimating the memory of a GPU"):
            self._print_memory(self._workload, self._graph, self._decided)

    def estimate_without_files(self) -> None:
        """Print the memory of a job whose data or weights cannot be read, if the sizes of its data are well known."""
        data = stand_in(self._spec.data)
        if not self._are_names_known or self._workload is not None or data is None:
            return
        untrained = self._spec.model_copy(update={"model": self._spec.model.model_copy(update={"weights": None})})
        try:
            workload = build_workload(untrained, data=data, device="cpu")
            graph = without_excluded(trace(workload.model, workload.example_input()), self._spec.exclude)
            traits = traits_of(workload.model, data)
            spec = automatic.decided(self._spec, num_train=data.num_train, widths=graph.widths, traits=traits)
            self._warn(f"Data or weights cannot be read (below). The estimate assumes {_describe(data)}.")
            self._print_memory(workload, graph, spec)
        except RapruneError:
            # The error that `check` ends with is about the job as it is.
            return

    def _print_memory(self, workload: Workload, graph: ChannelGraph, spec: SearchSpec) -> None:
        workers = workers_a_card(spec.resources)
        if not workers:
            return
        memory = worker_memory(workload, graph, spec)
        card = device_memory(torch.device("cuda")) if torch.cuda.is_available() else None
        first, *rest = described(memory, workers=workers, card=card)
        self._print("GPU memory", first)
        for line in rest:
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)
        self._warn(too_small(workers * memory.needed, card))

    def _print(self, step: str, text: str) -> None:
        self._console.print(f"ok  {step}: {text}", markup=False, highlight=False)

    def _warn(self, doubt: object) -> None:
        """Print a warning about a step that passes but looks suspicious; print nothing for None."""
        if doubt is not None:
            self._console.print(f"!   {doubt}", style="yellow", markup=False, highlight=False, soft_wrap=True)


def check_method(name: str, *, console: Console) -> None:
    """Check a method against the contract on small networks, and print a line for each check.

    Raises:
        UsageError: if there is no such method.
        MethodError: if a check fails.
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
            f"{name}: {failed} of {len(checks_of(kind))} checks failed.",
            hint="raprune/methods/method.py describes each hook; raprune/checks/contract has the checks.",
        )


def inspect_job(spec: SearchSpec) -> Inspection:
    """Inspect the job's network on images of the shape of the job's data."""
    workload = build_workload(spec, data=job_data(spec), device="cpu")
    return _inspect(workload, spec)


def _inspect(workload: Workload, spec: SearchSpec) -> Inspection:
    example = workload.example_input()
    started = time.perf_counter()
    graph = trace(workload.model, example)
    seconds = time.perf_counter() - started
    proof = prove(workload.model, without_excluded(graph, spec.exclude), example, seed=spec.seed)
    gated = with_gates(workload.model, proof.graph, example, seed=spec.seed)
    gated = without_excluded_gates(gated, workload.model, spec.exclude)
    return Inspection(spec.model.name, replace(proof, graph=gated), seconds)


def _outputs(workload: Workload) -> str:
    """Description of the network's outputs."""
    count = workload.data.num_classes
    if workload.spec.task == "classification":
        return f"{count} logits for one image"
    return f"outputs that {workload.spec.task} takes"


def _guess(data: Dataset) -> str:
    return "" if data.chance is None else f" (a constant guess has {data.chance:.2%})"


def _check_trains(workload: Workload) -> None:
    x, y = next(workload.sample(2, torch.Generator()).batches(2))
    parameters = [p for p in workload.model.parameters() if p.requires_grad]
    loss = workload.task.loss(in_float32(workload.task.run(workload.model, x, y)), y)
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True) if loss.requires_grad else []
    if not any(gradient is not None and bool(gradient.isfinite().all()) for gradient in gradients):
        raise ModelError(
            "The network cannot be trained: no parameter has a finite gradient.",
            hint="Check whether its forward pass runs under torch.no_grad(), and whether its parameters require a "
            "gradient.",
        )


def _describe_budget(spec: SearchSpec) -> str:
    """Describe the limits that can be reached, and those that are not known yet."""
    limits = (
        ("FLOPs", spec.budget.flops),
        ("parameters", spec.budget.params),
        ("activation memory", spec.budget.memory),
    )
    asked = [f"{100 * fraction:.4g} % of the {name}" for name, fraction in limits if fraction is not None]
    known = [f"{' and '.join(asked)} can be reached"] if asked else []
    if spec.budget.flops is not None and "budget" not in spec.model_fields_set:
        known[0] += " (the default)"
    if spec.budget.limits_latency:
        known.append("latency is measured when the search begins")
    return "; ".join(known) or "no budget is given; the search looks for the cheapest network that is accurate enough"


def _describe(data: Dataset) -> str:
    shape = "x".join(str(size) for size in data.image_shape)
    test = "no" if data.test is None else f"{len(data.test):,}"
    train = f"{data.num_train:,} training"
    if data.stream is not None:
        train += f" (streamed, {len(data.train):,} of them in memory)"
    told = f"{train}, {len(data.validation):,} validation and {test} test images of {shape}, {_counted(data)}"
    return told if data.calibration is None else f"{told}; methods look at {len(data.calibration):,} without labels"


def _counted(data: Dataset) -> str:
    return f"{data.num_classes} {'numbers each' if data.form in (COLUMNS, ANY) else 'classes'}"
