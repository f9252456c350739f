"""Everything that can be refused before any work: the job's names, data, network, channel graph and budget."""

from __future__ import annotations

import tempfile
from dataclasses import Field, dataclass, fields, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from safetensors.numpy import load
from torch import nn

from raprune.channels.cache import cached_trace
from raprune.channels.gates import with_gates
from raprune.channels.graph import ChannelGraph
from raprune.channels.proof import Proof, prove
from raprune.channels.trace import trace
from raprune.cost.compiled import COMPILE, TENSORRT, check_compiler, check_tensorrt
from raprune.cost.flops import CostModel
from raprune.cost.latency import TABLE, LatencyTable
from raprune.cost.onnx_networks import check_float32, check_onnx_runtime
from raprune.cost.timing_target import given_token
from raprune.data import load_data
from raprune.data.dataset import Dataset
from raprune.data.normalisation import Normalisation
from raprune.errors import BudgetError, ModelError, StoreError, UsageError
from raprune.methods import method_named
from raprune.models.normalisation import usual_normalisation
from raprune.models.traits import traits_of
from raprune.pruning.allocate import ALLOCATIONS, check_reachable
from raprune.pruning.answers import answered, check_labels, unlabelled_images
from raprune.pruning.workload import WeightArrays, Workload, build_workload, hash_of
from raprune.records import Setting
from raprune.results.stages import LOAD_DATA, LOAD_NETWORK, PROVE, Stages
from raprune.spec import automatic
from raprune.spec.job import SearchSpec
from raprune.spec.recipes import Traits
from raprune.store.folder import Store
from raprune.store.record import DataRecord, RunRecord
from raprune.store.scores import Statistics
from raprune.training.tasks import task_named

DENSE = "models/dense/weights.safetensors"
"""File of the dense network's weights in a run's folder."""


@dataclass(frozen=True)
class Prepared:
    """A job that can run."""

    spec: SearchSpec
    """The job with all that it left open decided."""
    data: Dataset
    weights: WeightArrays
    """Weights of the dense network: given, or random and to be trained."""
    proof: Proof
    cost: CostModel
    traits: Traits | None = None
    """The properties by which recipes were chosen; None for a run that had begun."""
    teacher: WeightArrays | None = None
    """Weights of the teacher, where that is not the dense network."""

    @property
    def graph(self) -> ChannelGraph:
        return self.proof.graph

    @property
    def given_weights(self) -> str | None:
        """Hash of the dense network's weights; None where it is still to be trained."""
        return hash_of(self.weights) if self.spec.weights else None


class Steps:
    """The steps of `prepare`, told one by one as soon as each holds. A subclass does what it wants with them."""

    def named(self, spec: SearchSpec) -> None:
        """Called once the methods, their settings and the allocations are known to exist."""

    def loaded(self, data: Dataset) -> None:
        """Called once the data has been read."""

    def built(self, workload: Workload) -> None:
        """Called once the network, with its weights, has run on an image of the data."""

    def traced(self, proof: Proof) -> None:
        """Called once the network is traced and has channels that can be removed."""

    def decided(self, spec: SearchSpec) -> None:
        """Called once every field that the job left open is decided."""

    def reached(self, cost: CostModel) -> None:
        """Called once the budget is known to be within reach."""


class InStages(Steps):
    """Steps of the preparation, shown as stages of a run."""

    def __init__(self, stages: Stages) -> None:
        self._stages = stages

    def named(self, spec: SearchSpec) -> None:
        self._stages.begin(LOAD_DATA)

    def loaded(self, data: Dataset) -> None:
        self._stages.begin(LOAD_NETWORK)

    def built(self, workload: Workload) -> None:
        self._stages.begin(PROVE)


def prepare(spec: SearchSpec, steps: Steps | None = None, *, recorded: RunRecord | None = None) -> Prepared:
    """The job of `spec`, checked; `steps` hears of each step that holds.

    `recorded` describes a run that has begun: its images are normalised as they were.

    Raises:
        UsageError: if a name, a field or a file is wrong, or the budget is out of reach.
        DataError, ModelError: if data or network do not work.
    """
    steps = steps or Steps()
    _check_names(spec)
    steps.named(spec)
    data = job_data(spec, recorded)
    check_labels(spec, data)
    steps.loaded(data)
    # On the CPU: the driver may have no GPU.
    workload = build_workload(spec, data=data, device="cpu")
    if data.unlabelled:
        data = workload.data = answered(workload)
    steps.built(workload)
    # The cache is found by the files of the code, and a notebook's cell is in no file.
    traced = trace if spec.model.given is not None else cached_trace
    graph = without_excluded(traced(workload.model, workload.example_input()), spec.exclude)
    proof = prove(workload.model, graph, workload.example_input(), seed=spec.seed)
    if spec.search.depth:
        gated = with_gates(workload.model, proof.graph, workload.example_input(), seed=spec.seed)
        proof = replace(proof, graph=without_excluded_gates(gated, workload.model, spec.exclude))
    if not proof.graph.groups:
        reasons = "; ".join(sorted({f.reason for f in proof.graph.frozen})[:3])
        raise ModelError(
            f"model.name {spec.model.name!r}: no channel of this network can go: {reasons or 'it has no layers'}.",
            hint="`raprune inspect` names every layer that stays and why.",
        )
    steps.traced(proof)
    # A run that has begun has its recipes, or it is from before there were any.
    traits = traits_of(workload.model, data) if recorded is None else None
    spec = automatic.decided(
        spec,
        num_train=data.num_train,
        widths=proof.graph.widths,
        traits=traits,
        unlabelled=unlabelled_images(data),
    )
    cost = CostModel(proof.graph)
    spec = spec.model_copy(update={"budget": spec.budget.traced(cost.dense_memory * spec.latency.batch_size)})
    check_policies(spec, data)
    steps.decided(spec)
    _check_budget(cost, spec)
    steps.reached(cost)
    return Prepared(spec, data, workload.weights(), proof, cost, traits, workload.teacher_weights())


def check_policies(spec: SearchSpec, data: Dataset) -> None:
    """Refuse a policy for float images, unless the transforms of a data set of items change them.

    Raises:
        UsageError: with the field that names the policy.
    """
    if not data.has_floats or data.drawn is not None:
        return
    trainings = {"finalists.train": spec.finalists.train.policy}
    if spec.weights is None:
        trainings["dense"] = spec.dense.policy
    for where, policy in trainings.items():
        if policy not in (None, "none"):
            raise UsageError(
                f"{where}.policy {policy!r}: the images are floats, and its operations change pixels from 0 to 255.",
                hint="Leave it out, give uint8 images, or put the policy into the transforms of a data set of items. "
                "Shifts, crops, mirroring, erasing, mixup and cutmix take floats.",
            )


def with_fast_widths(asked: SearchSpec, spec: SearchSpec, cost: CostModel) -> SearchSpec:
    """The job `spec` where its trials run on GPUs: with widths in multiples of 8 if `asked` leaves that open.

    The convolutions of GPUs are made for such widths, and a search on few different widths meets few shapes that their
    libraries do not know yet. Unchanged where the budget is out of reach in steps of 8, or latency is to set the step.
    """
    if asked.search.multiple_of is not None or spec.search.multiple_of == "auto":
        return spec
    fast = spec.model_copy(update={"search": spec.search.model_copy(update={"multiple_of": automatic.FAST_MULTIPLE})})
    try:
        _check_budget(cost, fast)
    except BudgetError:
        return spec
    return fast


def job_data(spec: SearchSpec, recorded: RunRecord | None = None) -> Dataset:
    """The data set of the job, normalised by its figures, else by those of its run, else as its weights need it.

    Raises:
        UsageError, DataError: as `load_data`.
    """
    default = usual_normalisation(spec.model) if recorded is None else _recorded_normalisation(recorded.data)
    statistics = Statistics(Store(spec.statistics_folder)) if spec.data.stream else None
    form = task_named(spec.task).targets
    return load_data(spec.data, seed=spec.seed, default=default, statistics=statistics, form=form)


def check_same_data(data: Dataset, described: RunRecord) -> None:
    """Compare the data with the fingerprint that the run recorded.

    Raises:
        StoreError: if it changed.
    """
    now, before = data.fingerprint, described.data.fingerprint
    if before not in (None, now):
        raise StoreError(
            f"the data changed since the run began (fingerprint {before}, now {now}).",
            hint="Bring the data back as they were.",
        )


def _recorded_normalisation(data: DataRecord) -> Normalisation | None:
    """The figures of a run; None for one that was written when they were not recorded, and measured."""
    if data.mean is None or data.std is None or data.normalisation is None:
        return None
    return Normalisation(mean=data.mean, std=data.std, origin=data.normalisation)


def with_table(spec: SearchSpec, prepared: Prepared, table: LatencyTable) -> tuple[SearchSpec, Prepared]:
    """The job once latency is known: its budget is a fraction of the dense network's, its costs have the table.

    A step that the job left to the measurement is that of the table, or the largest half, quarter ... of it that the
    budget leaves within reach.

    Raises:
        BudgetError: if the latency is out of reach.
    """
    assert spec.budget.limits_latency, "a table is measured for a budget"
    spec = spec.model_copy(update={"budget": spec.budget.measured(table.dense_ms)})
    prepared = replace(prepared, cost=CostModel(prepared.graph, table))
    if spec.search.multiple_of == "auto":
        spec = _with_step(spec, prepared.cost, table.step)
    _check_budget(prepared.cost, spec)
    return spec, prepared


def _with_step(spec: SearchSpec, cost: CostModel, step: int) -> SearchSpec:
    spec = spec.model_copy(update={"search": spec.search.model_copy(update={"multiple_of": step})})
    if step > 1:
        try:
            _check_budget(cost, spec)
        except BudgetError:
            return _with_step(spec, cost, step // 2)
    return spec


def stored_table(store: Store) -> LatencyTable | None:
    """The latency table of the run in `store`, where it has one."""
    return LatencyTable.from_arrays(load(store.read_bytes(TABLE))) if store.exists(TABLE) else None


def _check_budget(cost: CostModel, spec: SearchSpec) -> None:
    check_reachable(cost, spec.budget, min_channels=spec.search.min_channels, multiple_of=spec.search.step)


def _check_names(spec: SearchSpec) -> None:
    """Look up the names of methods, their settings and allocations, before any work.

    Raises:
        UsageError: if one does not exist or is not valid.
    """
    task = task_named(spec.task)
    for name in spec.methods:
        method_named(name)
    if spec.latency.runtime == COMPILE:
        check_compiler()
    if spec.latency.runtime == TENSORRT:
        check_tensorrt()
    if spec.latency.runtime == "onnxruntime":
        check_onnx_runtime()
        check_float32(spec.latency.precision)
        if spec.latency.target is not None:
            given_token()
    elif spec.latency.target is not None:
        raise UsageError(
            f"latency.target {spec.latency.target}: a timing worker takes ONNX files, and latency.runtime is "
            f'"{spec.latency.runtime}".',
            hint='Set latency.runtime = "onnxruntime".',
        )
    if spec.budget.limits_memory and "maxout" in spec.methods:
        raise UsageError(
            "budget.memory (--budget-memory): not with the method maxout, whose units the closed form does not know.",
            hint="Use --budget-flops or --budget-params with it, or leave it out of --methods.",
        )
    features = spec.finalists.train.features
    asks = features not in (None, 0)
    if spec.teacher.name and asks:
        raise UsageError(
            f"finalists.train.features {features} with teacher.name (--teacher) {spec.teacher.name!r}: feature maps "
            "are compared channel by channel, and only the dense network has the channels of a finalist.",
            hint="Set finalists.train.features=0, or leave --teacher out.",
        )
    if spec.teacher.name and not (task.distils or task.maps):
        raise UsageError(
            f"teacher.name (--teacher) {spec.teacher.name!r} with task (--task) {spec.task!r}: its finalists learn "
            "from the targets alone.",
            hint="Leave --teacher out.",
        )
    if asks and features != "auto" and not task.maps:
        raise UsageError(
            f"finalists.train.features {features} with task (--task) {spec.task!r}: its finalists learn from the "
            "targets alone.",
            hint="Set finalists.train.features=0.",
        )
    if spec.budget.limits_latency and "maxout" in spec.methods:
        raise UsageError(
            "budget.latency (--budget-latency): not with the method maxout, whose maximum over channels no table of "
            "layer times knows.",
            hint="Use --budget-flops or --budget-params with it, or leave it out of --methods.",
        )
    for name, settings in spec.settings.items():
        known = {field.name: field for field in fields(method_named(name))}
        for key, value in settings.items():
            where = f"settings.{name}.{key}"
            if key not in known:
                valid = ", ".join(sorted(known)) or "none, this method has no hyper-parameters"
                raise UsageError(f"{where}: the method has no such hyper-parameter.", hint=f"Valid: {valid}.")
            _check_setting(where, value, known[key])
    for name in spec.allocations:
        if name not in ALLOCATIONS:
            raise UsageError(
                f"allocation {name!r}: no such allocation. Valid: {', '.join(sorted(ALLOCATIONS))}.",
                hint="`raprune methods` says what each one does; a search that names none chooses among all.",
            )


def _check_setting(where: str, value: Setting, field: Field[Any]) -> None:
    choices = field.metadata.get("search", {}).get("choices")
    if choices is not None and value not in choices:
        raise UsageError(f"{where} {value!r}: not one of {', '.join(map(repr, choices))}.", hint="Give one of these.")
    kind = type(field.default)
    # A whole number is a number too; a truth value is not, though Python says so.
    if type(value) is not kind and not (kind is float and type(value) is int):
        raise UsageError(
            f"{where} {value!r}: not of the kind of its default, {field.default!r}.",
            hint="`raprune methods` says what each hyper-parameter is.",
        )


def check_output(store: Store) -> None:
    """Refuse an output that holds a run or cannot be written.

    Raises:
        StoreError: with what to do instead.
    """
    if store.is_run():
        raise StoreError(
            f"{store.name}: holds a run already.",
            hint=f"Resume it: raprune resume {store.name}   Or give a new one another --output.",
        )
    check_writable(store)


def check_writable(store: Store) -> None:
    """Refuse a local folder that cannot be made or written.

    Raises:
        StoreError: with what to do instead.
    """
    if "://" in store.uri:
        return
    folder = next(p for p in (Path(store.uri), *Path(store.uri).parents) if p.exists())
    if not folder.is_dir():
        raise StoreError(f"output (--output) {store.name}: {folder} is a file.", hint="Give another --output.")
    try:
        # What permissions say is not all: a file system may be read-only or full.
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"raprune")
    except OSError as error:
        raise StoreError(
            f"output (--output) {store.name}: nothing can be written in {folder}: {error.strerror}.",
            hint="Give another --output, make room, or change the folder's permissions.",
        ) from None


def without_excluded(graph: ChannelGraph, patterns: tuple[str, ...]) -> ChannelGraph:
    """The graph without the groups that touch a module of one of these glob patterns.

    Raises:
        UsageError: if a pattern matches no module with channels that could go.
    """
    reasons: dict[str, str] = {}
    for pattern in patterns:
        matching = [
            group.name
            for group in graph.groups
            if any(_matches(pattern, name) for name in (group.name, *(m.parameter for m in group.members)))
        ]
        if not matching and not any(_matches(pattern, frozen.module) for frozen in graph.frozen):
            names = ", ".join(group.name for group in graph.groups[:8])
            raise UsageError(
                f"exclude (--exclude) {pattern!r}: matches no layer whose channels could go.",
                hint=f"Layers of this network are {names}{', ...' if len(graph.groups) > 8 else ''}.",
            )
        reasons |= dict.fromkeys(matching, f"excluded by {pattern!r}")
    return graph.without(reasons)


def without_excluded_gates(graph: ChannelGraph, model: nn.Module, patterns: tuple[str, ...]) -> ChannelGraph:
    """The graph without the gates that have a module of one of these glob patterns in them, or are in such a module."""

    def is_excluded(gate: str) -> bool:
        own = [f"{gate}.{name}".rstrip(".") for name, _ in model.get_submodule(gate).named_modules()]
        return any(_matches(pattern, name) for pattern in patterns for name in own)

    return replace(graph, gates=tuple(gate for gate in graph.gates if not is_excluded(gate)))


def _matches(pattern: str, name: str) -> bool:
    """True if the pattern matches this module or parameter, or a module that contains it."""
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[:i]), pattern) for i in range(1, len(parts) + 1))
