"""What candidates share, computed once before the search and spread over the cluster.

What the folder of statistics holds already is read. The rest is computed by tasks: a method's training phase by one,
its scores by as many as there are workers, each for a part of the groups. Settings that only the sampler comes upon are
computed by the worker that needs them first, and kept in the same folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch

from raprune.data.dataset import Dataset
from raprune.methods import Method, method_named
from raprune.orchestration.placement import Placement
from raprune.orchestration.remote import answer
from raprune.orchestration.streaming import RayReader
from raprune.outage import Patience
from raprune.prune import Pruner
from raprune.spec import SearchSpec
from raprune.statistics import Arrays, Statistics
from raprune.store import Store
from raprune.tracing.graph import ChannelGraph
from raprune.workload import WeightArrays, build_workload


@dataclass(frozen=True)
class Inputs:
    """What a task that computes statistics needs; the arrays are in the object store, once on each node."""

    spec: SearchSpec
    graph: ChannelGraph
    placement: Placement
    data: list[ray.ObjectRef[Dataset]]
    """One reference each, in a list so that it is fetched by the task."""
    weights: list[ray.ObjectRef[WeightArrays]]


@dataclass(frozen=True)
class Gathered:
    """All that is known before the search."""

    arrays: dict[str, Arrays]
    computed: list[str]
    """Keys of what was computed now; the others were read."""


def gather(inputs: Inputs, methods: Sequence[str]) -> Gathered:
    """The training phases and scores of `methods`, with their default settings and those that the job fixes.

    Raises:
        ModelError: if a method's training phase diverges.
    """
    pruner = _pruner(inputs, {}, device="cpu")
    statistics, known = pruner.statistics, {}
    made = named(inputs.spec, methods)
    for method in made:
        if method.regularize() is not None:
            key = pruner.base_key(method)
            if statistics.get(key) is None:
                statistics.put(key, _get(_task(_train, inputs).remote(inputs, method)))
            known[key] = statistics.get(key) or {}
    pending: dict[str, list[Any]] = {}
    for method in made:
        key = pruner.score_key(method)
        if not method.seeded and key not in pending and statistics.get(key) is None:
            reference = ray.put(known)
            pending[key] = [
                _task(_score, inputs).remote(inputs, method, names, reference)
                for names in _parts(inputs.graph, method, inputs.placement.workers)
            ]
    for key, parts in pending.items():
        scores = {name: values for part in parts for name, values in _get(part).items()}
        statistics.put(key, {group.name: scores[group.name] for group in inputs.graph.groups})
    for method in made:
        if not method.seeded:
            known[pruner.score_key(method)] = statistics.get(pruner.score_key(method)) or {}
    return Gathered(known, list(statistics.computed))


def named(spec: SearchSpec, methods: Sequence[str]) -> list[Method]:
    """The methods of these names, with their default settings and those that the job fixes."""
    return [method_named(name)(**spec.settings.get(name, {})) for name in methods]


def phases(methods: Sequence[Method]) -> list[Method]:
    """Those that have the dense network trained for them, one for each such training."""
    return list({method.regularize(): method for method in methods if method.regularize() is not None}.values())


def missing_phases(inputs: Inputs, methods: Sequence[Method]) -> list[Method]:
    """Those of `phases` whose training nobody has done yet."""
    pruner = _pruner(inputs, {}, device="cpu")
    return [method for method in phases(methods) if pruner.statistics.get(pruner.base_key(method)) is None]


def statistics_store(spec: SearchSpec) -> Store:
    """The folder of shared statistics, which the driver made; it is waited for as the run's is."""
    return Store(spec.statistics_folder, patience=Patience(total_s=spec.resources.store_patience_s))


def _task(work: Any, inputs: Inputs) -> Any:
    placement = inputs.placement
    return ray.remote(work).options(num_cpus=placement.cpus, num_gpus=placement.gpus, max_retries=2)


def _train(inputs: Inputs, method: Method) -> Arrays:
    """The weights that the method's training phase gives."""
    pruner = _pruner(inputs, {}, device=inputs.placement.device)
    pruner.base(method)
    return pruner.statistics.get(pruner.base_key(method)) or {}


def _score(inputs: Inputs, method: Method, names: list[str], known: dict[str, Arrays]) -> Arrays:
    """The scores of the groups of these names."""
    pruner = _pruner(inputs, known, device=inputs.placement.device)
    return pruner.score_part(method, inputs.graph.only(names), inputs.spec.seed)


def _pruner(inputs: Inputs, known: dict[str, Arrays], *, device: str) -> Pruner:
    torch.set_num_threads(inputs.placement.threads)
    workload = build_workload(
        inputs.spec,
        data=ray.get(inputs.data[0]),
        device=device,
        weights=ray.get(inputs.weights[0]),
        reader=RayReader(inputs.placement.workers),
    )
    statistics = Statistics(statistics_store(inputs.spec), known)
    return Pruner(workload, inputs.graph, inputs.spec, statistics=statistics)


def _parts(graph: ChannelGraph, method: Method, count: int) -> list[list[str]]:
    """The groups' names in at most `count` parts of about equal work for `method`; one, where it looks at no images."""
    count = 1 if method.data_free else min(count, len(graph.groups))
    if any(method.priced_at(group.num_channels) for group in graph.groups):
        # What is behind a group is repaired for its prices: less and less from the network's front to its end.
        names = [group.name for group in graph.groups]
        return [names[part::count] for part in range(count)]
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
