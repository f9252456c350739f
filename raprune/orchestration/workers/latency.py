"""Latency on the workers' device: the table and first candidates before the search, the front's networks after it.

All are measured while no other task of the run works, on a whole GPU. Where there is none, a task of the size of a
trial measures the table, and a task that has a whole node to itself measures the networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from torch import nn

from raprune.channels.cut import cut
from raprune.channels.graph import ChannelGraph
from raprune.cost.conditions import table_key, usable_cpus
from raprune.cost.latency import LatencyTable
from raprune.cost.measure import measure_table
from raprune.cost.reported import measure_reported
from raprune.data.dataset import Dataset
from raprune.errors import RapruneError
from raprune.methods import method_named
from raprune.orchestration.cluster.connect import node_resources
from raprune.orchestration.cluster.placement import Placement, place_timing
from raprune.orchestration.remote import answer, task_on
from raprune.orchestration.tasks import Shared
from raprune.orchestration.workers.trials import Equipment
from raprune.pruning import artifact
from raprune.pruning.first_candidates import Corrected, corrected_once, first_proposals
from raprune.pruning.preparation import Prepared, stored_table
from raprune.pruning.workload import task_network
from raprune.records import Candidate, Proposal, Trial
from raprune.results.front import listed
from raprune.results.rows import candidates
from raprune.results.timings import LATENCY_FILE, Times
from raprune.spec.job import SearchSpec
from raprune.store.folder import Store
from raprune.store.networks import find_network
from raprune.store.scores import Arrays, Statistics

ALONE_S = 30.0
"""Maximum time to wait for a whole node or GPU, if others use the cluster as well."""


@dataclass(frozen=True)
class Subject:
    """The dense network whose latency is measured, without weights: latency does not depend on them."""

    spec: SearchSpec
    graph: ChannelGraph
    placement: Placement
    num_classes: int
    image_shape: tuple[int, int, int]

    @classmethod
    def of(cls, spec: SearchSpec, prepared: Prepared, placement: Placement) -> Subject:
        data: Dataset = prepared.data
        return cls(spec, prepared.graph, placement, data.num_classes, data.image_shape)

    def model(self) -> nn.Module:
        """The network on the workers' device."""
        model = task_network(self.spec, num_classes=self.num_classes, image_shape=self.image_shape)
        return model.to(self.placement.device).eval()


@dataclass(frozen=True)
class MeasuredTable:
    """A network's latency table."""

    arrays: Arrays
    is_new: bool
    """True if it was measured now, false if it was read from the folder of statistics."""


def latency_table(subject: Subject, store: Store) -> tuple[LatencyTable, bool]:
    """The latency table, and true if it is new: the run's own, else that of the folder of statistics, else measured.

    Raises:
        ModelError: if no table holds for the network.
    """
    # A resumed run keeps the table that it began with, on any machine.
    own = stored_table(store)
    if own is not None:
        return own, False
    # A trial may have a part of a GPU, on which other users' kernels would be timed as well.
    run = _run_alone if subject.placement.gpus > 0 else _run
    measured: MeasuredTable = run(_measure_table, subject)
    return LatencyTable.from_arrays(measured.arrays), measured.is_new


def first_candidates(
    subject: Subject, shared: Shared, methods: Sequence[str], *, recorded: Sequence[Trial]
) -> Corrected | None:
    """Time the first candidates of the search, which may correct its table; None for a run with trials or corrections.

    `recorded` trials were made by the table as it is.
    """
    proposals = first_proposals(subject.spec, methods)
    if shared.latency is None or shared.latency.correction is not None or recorded or not proposals:
        return None
    found: Corrected = _run_alone(_time_first, subject, [shared], proposals)
    return found


def _time_first(subject: Subject, shared: list[Shared], proposals: Sequence[Proposal]) -> Corrected:
    return corrected_once(Equipment.of(shared[0]).pruner, subject.spec, proposals)


def measure_front(subject: Subject, store: Store, trials: Sequence[Trial]) -> None:
    """Write `report/latency.json`, unless it is there: the `Times` of the networks of `front.listed`."""
    rows = listed(candidates(trials), store.record())
    if rows and not store.exists(LATENCY_FILE):
        shown = store.trials({row.trial_id for row in rows})
        times: Times = _run_alone(_measure_front, subject, store, shown)
        store.write_json(LATENCY_FILE, times.to_json())


def _measure_table(subject: Subject) -> MeasuredTable:
    model, spec = subject.model(), subject.spec
    device = subject.placement.device
    statistics = Statistics(Store(spec.statistics_folder))
    step = spec.search.multiple_of or 1
    key = table_key(subject.graph, spec.latency, device=device, multiple_of=step)
    arrays = statistics.once(
        key,
        lambda: measure_table(model, subject.graph, spec.latency, device=device, multiple_of=step).to_arrays(),
    )
    return MeasuredTable(arrays, is_new=key in statistics.computed)


def _measure_front(subject: Subject, store: Store, trials: Sequence[Trial]) -> Times:
    model, spec = subject.model(), subject.spec
    return measure_reported(
        {trial.network: _network(trial, model, subject.graph, store) for trial in trials},
        model,
        subject.graph,
        spec.latency,
        device=subject.placement.device,
        # A container or a batch system may give fewer than the node has.
        threads=min(subject.placement.threads, usable_cpus()),
        largest=spec.search.batch_size,
        budgeted=spec.budget.limits_latency,
    )


def _network(trial: Trial, model: nn.Module, graph: ChannelGraph, store: Store) -> nn.Module:
    """A network as fast as the trial's; with the trial's weights only if its method may have changed the layers."""
    if method_named(trial.proposal.method).has_path():
        folder = find_network(store, trial)
        assert folder is not None, "a network that was trained is stored"
        return artifact.load_from(model, store, folder)
    return cut(model, graph, Candidate("timed", trial.channels.kept, identity=trial.channels.identity))


def _run_alone(work: Any, subject: Subject, *arguments: Any) -> Any:
    """The result of a task that has a whole node or GPU to itself, or of a trial's size if none becomes free."""
    whole = replace(subject, placement=place_timing(node_resources(), subject.placement))
    group = placement_group([whole.placement.resources])
    strategy = PlacementGroupSchedulingStrategy(group)
    try:
        if group.wait(ALONE_S):
            # If the node is lost, no other node may be as large.
            return _run(work, whole, *arguments, scheduling_strategy=strategy, max_retries=0)
    except RapruneError as error:
        if not isinstance(error.__cause__, ray.exceptions.RayError):
            raise
    finally:
        remove_placement_group(group)
    return _run(work, subject, *arguments)


def _run(work: Any, subject: Subject, *arguments: Any, **options: Any) -> Any:
    """The result of a task with the resources of the subject's placement; `options` as for `task_on`."""
    return answer(
        task_on(subject.placement, work, **options).remote(subject, *arguments),
        lost="The worker that measures latency was lost",
        hint="It may have run out of memory: a smaller latency.batch_size or latency.report_batch needs less.",
    )
