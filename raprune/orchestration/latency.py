"""Latency on the workers' device: the table before the search, whole networks of the front after it.

Both are measured by a task of the size of a trial, while nothing else of the run works.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from torch import nn

from raprune import artifact
from raprune.candidate import Candidate
from raprune.data.dataset import Dataset
from raprune.front import Row, front
from raprune.latency import LatencyTable
from raprune.methods import method_named
from raprune.models import build_model
from raprune.orchestration.placement import Placement
from raprune.orchestration.remote import answer
from raprune.preparation import Prepared, stored_table
from raprune.report import LATENCY_FILE
from raprune.spec import SearchSpec
from raprune.statistics import Arrays, Statistics
from raprune.store import Store
from raprune.surgery import cut
from raprune.timing import conditions, measure_table, measure_whole, table_key
from raprune.tracing.graph import ChannelGraph
from raprune.trial import Stage, Trial


@dataclass(frozen=True)
class Subject:
    """The dense network whose latency is measured, without weights: they do not matter to it."""

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
        model = build_model(self.spec.model, num_classes=self.num_classes, image_shape=self.image_shape)
        return model.to(self.placement.device).eval()


@dataclass(frozen=True)
class Measured:
    """A network's latency table."""

    arrays: Arrays
    is_new: bool
    """Whether it was measured now; else it was read from the folder of statistics."""


def latency_table(subject: Subject, store: Store) -> tuple[LatencyTable, bool]:
    """The run's own table where its store has one, else the folder's of statistics, else a new one; and if it is new.

    Raises:
        ModelError: if no table holds for the network.
    """
    # A run that is resumed goes on with the table that it began with, on whatever machine.
    own = stored_table(store)
    if own is not None:
        return own, False
    measured: Measured = _run(_measure_table, subject)
    return LatencyTable.from_arrays(measured.arrays), measured.is_new


def measure_front(subject: Subject, store: Store, trials: Sequence[Trial]) -> None:
    """Write `report/latency.json`, unless it is there: measured times of the front's networks and the dense one.

    Its content: `{"device", "batch_size", "precision", "dense_ms", "candidates": {id: milliseconds}}`.
    """
    rows = front(trials, subject.spec.budget)
    if rows and not store.exists(LATENCY_FILE):
        kept = {trial.candidate.id: trial.candidate.kept for trial in trials if trial.candidate is not None}
        store.write_json(LATENCY_FILE, _run(_measure_front, subject, store, rows, kept))


def _measure_table(subject: Subject) -> Measured:
    model, spec = subject.model(), subject.spec
    device = subject.placement.device
    statistics = Statistics(Store(spec.statistics_folder))
    key = table_key(subject.graph, spec.latency, device=device)
    arrays = statistics.once(key, lambda: measure_table(model, subject.graph, spec.latency, device=device).to_arrays())
    return Measured(arrays, is_new=key in statistics.computed)


def _measure_front(
    subject: Subject, store: Store, rows: Sequence[Row], kept: Mapping[str, Mapping[str, tuple[int, ...]]]
) -> dict[str, Any]:
    model, spec = subject.model(), subject.spec
    models = [_network(row, kept[row["candidate"]], model, subject.graph, store) for row in rows]
    *times, dense_ms = measure_whole(models, model, subject.graph, spec.latency, device=subject.placement.device)
    return {
        **conditions(spec.latency, device=subject.placement.device),
        "dense_ms": dense_ms,
        "candidates": {row["candidate"]: time_ms for row, time_ms in zip(rows, times, strict=True)},
    }


def _network(
    row: Row, kept: Mapping[str, tuple[int, ...]], model: nn.Module, graph: ChannelGraph, store: Store
) -> nn.Module:
    """As fast as the row's network; with its weights only where these may have put other layers into it."""
    if method_named(row["method"]).has_path():
        name = row["candidate"] if row["stage"] == Stage.FINETUNE else row["trial_id"]
        return artifact.load_from(model, store, f"models/{name}")
    return cut(model, graph, Candidate("timed", kept))


def _run(work: Any, subject: Subject, *arguments: Any) -> Any:
    """What a task of a trial's size gives."""
    placement = subject.placement
    task = ray.remote(work).options(num_cpus=placement.cpus, num_gpus=placement.gpus, max_retries=2)
    return answer(
        task.remote(subject, *arguments),
        lost="The worker that measures latency was lost",
        hint="It may have run out of memory: a smaller latency.batch_size needs less.",
    )
