"""Statistics that candidates share, computed once before the search by tasks on the whole cluster.

Statistics that are in their folder already are read. The rest is computed by tasks: a method's training phase by one
task, its scores by as many as there are workers, each for a part of the groups. Scores for settings that only the
sampler chooses are computed by the worker that needs them first, and stored in the same folder.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch
from ray.actor import ActorHandle

from raprune.channels.graph import ChannelGraph
from raprune.data.dataset import Dataset
from raprune.methods import Method, method_named
from raprune.orchestration.cluster.placement import Placement
from raprune.orchestration.progress import Teller, watched
from raprune.orchestration.remote import answer, task_on
from raprune.orchestration.workers.streaming import RayReader
from raprune.pruning.prune import Pruner
from raprune.pruning.workload import WeightArrays, build_workload
from raprune.results.stages import PHASES, SCORES, OnWork, Stages
from raprune.spec.job import SearchSpec
from raprune.store.folder import Store
from raprune.store.retry import Patience
from raprune.store.scores import Arrays, Statistics


@dataclass(frozen=True)
class Inputs:
    """Inputs of a task that computes statistics; the arrays are in the object store, once on each node."""

    spec: SearchSpec
    graph: ChannelGraph
    placement: Placement
    data: list[ray.ObjectRef[Dataset]]
    """One reference each, in a list so that it is fetched by the task."""
    weights: list[ray.ObjectRef[WeightArrays]]
    coordinator: ActorHandle[Any]
    """Receives the progress of the tasks."""


@dataclass(frozen=True)
class Gathered:
    """All statistics that are known before the search."""

    arrays: dict[str, Arrays]
    computed: list[str]
    """Keys of the statistics that were computed now; the others were read."""


@dataclass(frozen=True)
class Missing:
    """Statistics that candidates share and that are not computed yet."""

    phases: list[Method]
    """Methods whose training phase is to be done."""
    scores: dict[str, Method]
    """Methods that are to be scored, by the key of their scores."""


def gather(inputs: Inputs, methods: Sequence[str], stages: Stages) -> Gathered:
    """The training phases and scores of `methods`, with their default settings and those that the job fixes.

    Raises:
        ModelError: if a method's training phase diverges.
    """
    pruner = _pruner(inputs, {}, device="cpu")
    statistics, known = pruner.statistics, {}
    made = named(inputs.spec, methods)
    lacking = _missing(pruner, made)
    if lacking.phases:
        epochs = sum(math.ceil(epochs_of(method)) for method in lacking.phases)
        with stages.stage(PHASES, total=epochs, unit="epochs"), _watched(inputs, stages, "network-"):
            for method in lacking.phases:
                key = pruner.phases.key(method)
                statistics.put(key, _get(_task(_train, inputs).remote(inputs, method, key)))
    for method in phases(made):
        known[pruner.phases.key(method)] = statistics.get(pruner.phases.key(method)) or {}
    if lacking.scores:
        groups = len(lacking.scores) * len(inputs.graph.groups)
        with stages.stage(SCORES, total=groups, unit="groups"), _watched(inputs, stages, "scores-"):
            _score_all(inputs, statistics, lacking.scores, known)
    for method in made:
        if not method.seeded:
            known[pruner.scoring.key(method)] = statistics.get(pruner.scoring.key(method)) or {}
    if inputs.graph.gates:
        _measure_blocks(inputs, pruner, made, known, stages)
    return Gathered(known, list(statistics.computed))


def _score_all(
    inputs: Inputs, statistics: Statistics, unscored: Mapping[str, Method], known: Mapping[str, Arrays]
) -> None:
    reference = ray.put(dict(known))
    pending: dict[str, list[Any]] = {}
    for key, method in unscored.items():
        parts = _parts(inputs.graph, method, inputs.placement.workers)
        pending[key] = [
            _task(_score, inputs).remote(inputs, method, names, reference, f"{key}/{number}")
            for number, names in enumerate(parts)
        ]
    for key, tasks in pending.items():
        scores = {name: values for task in tasks for name, values in _get(task).items()}
        statistics.put(key, {group.name: scores[group.name] for group in inputs.graph.groups})


def _measure_blocks(
    inputs: Inputs, pruner: Pruner, methods: Sequence[Method], known: dict[str, Arrays], stages: Stages
) -> None:
    """Measure the damage of leaving out blocks, once for all methods with the same repair, then their references."""
    statistics, scoring = pruner.statistics, pruner.scoring
    cutting = [method for method in methods if not method.has_path()]
    for work, wanted in (
        (_blocks, {scoring.blocks_key(method): method for method in cutting}),
        (_references, {scoring.references_key(method): method for method in cutting}),
    ):
        lacking = {key: method for key, method in wanted.items() if statistics.get(key) is None}
        if lacking:
            reference = ray.put(dict(known))
            with stages.stage(SCORES, total=len(lacking), unit="measurements of blocks"):
                tasks = {key: _task(work, inputs).remote(inputs, method, reference) for key, method in lacking.items()}
                for key, task in tasks.items():
                    statistics.put(key, _get(task))
                    stages.step()
        known.update({key: statistics.get(key) or {} for key in wanted})


def _watched(inputs: Inputs, stages: Stages, prefix: str) -> AbstractContextManager[None]:
    """Keeps the current stage up to date from the progress of tasks whose names begin with `prefix`."""
    works: Any = inputs.coordinator.works

    def look() -> None:
        stages.hear([work for key, work in ray.get(works.remote()).items() if key.startswith(prefix)])

    return watched(look)


def warm_up(placement: Placement) -> None:
    """Start processes for all workers and have them import their modules, which takes seconds, while the run starts.

    Only without GPUs: Ray gives each task on a GPU a process of its own.
    """
    if placement.gpus == 0:
        for _ in range(placement.workers):
            task_on(placement, _come_up).remote()


def named(spec: SearchSpec, methods: Sequence[str]) -> list[Method]:
    """The methods of these names, with their default settings and those that the job fixes."""
    return [method_named(name)(**spec.settings.get(name, {})) for name in methods]


def phases(methods: Sequence[Method]) -> list[Method]:
    """The methods that have the dense network trained for them, one for each such training."""
    return list({method.regularize(): method for method in methods if method.regularize() is not None}.values())


def epochs_of(method: Method) -> float:
    """Epochs of the method's training phase; 0 where it has none."""
    regularizer = method.regularize()
    return 0.0 if regularizer is None else regularizer.epochs


def missing(inputs: Inputs, methods: Sequence[Method]) -> Missing:
    """Statistics that `methods` need and that are not computed yet."""
    return _missing(_pruner(inputs, {}, device="cpu"), methods)


def _missing(pruner: Pruner, methods: Sequence[Method]) -> Missing:
    scores = {pruner.scoring.key(method): method for method in methods if not method.seeded}
    return Missing(
        phases=[m for m in phases(methods) if pruner.statistics.get(pruner.phases.key(m)) is None],
        scores={key: method for key, method in scores.items() if pruner.statistics.get(key) is None},
    )


def statistics_store(spec: SearchSpec) -> Store:
    """The folder of shared statistics, which the driver made; operations wait for it as for the run's folder."""
    return Store(spec.statistics_folder, patience=Patience(total_s=spec.resources.store_patience_s))


def _task(work: Any, inputs: Inputs) -> Any:
    return task_on(inputs.placement, work)


def _come_up() -> None:
    """Do nothing: unpickling this function imports the modules that the next task needs."""


def _train(inputs: Inputs, method: Method, key: str) -> Arrays:
    """The weights that the method's training phase gives."""
    pruner = _pruner(inputs, {}, device=inputs.placement.device, on_work=Teller(inputs.coordinator, key))
    pruner.phases.base(method)
    return pruner.statistics.get(pruner.phases.key(method)) or {}


def _score(inputs: Inputs, method: Method, names: list[str], known: dict[str, Arrays], key: str) -> Arrays:
    """The scores of the groups of these names; `key` names the task to the coordinator."""
    pruner = _pruner(inputs, known, device=inputs.placement.device, on_work=Teller(inputs.coordinator, key))
    return pruner.scoring.part(method, inputs.graph.only(names), inputs.spec.seed)


def _blocks(inputs: Inputs, method: Method, known: dict[str, Arrays]) -> Arrays:
    """The damage of leaving out blocks."""
    return _pruner(inputs, known, device=inputs.placement.device).scoring.block_damage(method)


def _references(inputs: Inputs, method: Method, known: dict[str, Arrays]) -> Arrays:
    """The predicted and the measured damage of some widths."""
    return _pruner(inputs, known, device=inputs.placement.device).scoring.references(method)


def _pruner(inputs: Inputs, known: dict[str, Arrays], *, device: str, on_work: OnWork | None = None) -> Pruner:
    torch.set_num_threads(inputs.placement.threads)
    workload = build_workload(
        inputs.spec,
        data=ray.get(inputs.data[0]),
        device=device,
        weights=ray.get(inputs.weights[0]),
        reader=RayReader(inputs.placement.workers),
        card_share=inputs.placement.card_share,
    )
    statistics = Statistics(statistics_store(inputs.spec), known)
    return Pruner(workload, inputs.graph, inputs.spec, statistics=statistics, on_work=on_work)


def _parts(graph: ChannelGraph, method: Method, count: int) -> list[list[str]]:
    """The groups' names in at most `count` parts of about equal work for `method`; one, where it looks at no images."""
    count = 1 if method.data_free else min(count, len(graph.groups))
    parts: list[list[str]] = [[] for _ in range(count)]
    work = np.zeros(count)
    for group in sorted(graph.groups, key=lambda group: -group.num_channels):
        least = int(work.argmin())
        parts[least].append(group.name)
        # Solving grows with the cube of the channels.
        work[least] += float(group.num_channels) ** 3
    return parts


def _get(reference: Any) -> Any:
    return answer(
        reference,
        lost="The worker that computes what candidates share was lost",
        hint="It may have run out of memory; `raprune resume` computes what is missing, on more memory.",
    )
