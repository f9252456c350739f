"""A run under way: the records in its folder, and the lines that the user reads on the way."""

from __future__ import annotations

import time
import uuid
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from rich.console import Console

from raprune.checks.symptoms import symptoms
from raprune.cost.latency import TABLE, LatencyTable
from raprune.data import ignored, sorted_stream
from raprune.data.dataset import Dataset, Split
from raprune.errors import StoreError, UsageError
from raprune.models.given import given_model
from raprune.orchestration.cluster.connect import machine, node_resources
from raprune.orchestration.cluster.placement import Trainings, TrainPlacement, place_training
from raprune.pruning.artifact import versions
from raprune.pruning.first_candidates import Corrected
from raprune.pruning.preparation import DENSE, Prepared
from raprune.pruning.workload import WeightArrays
from raprune.report.terminal import print_front
from raprune.results.stages import Stages
from raprune.results.test_split import TEST_FILE, SplitAccuracies, read_test
from raprune.sampling import warm_start
from raprune.sampling.space import SearchSpace
from raprune.sampling.warm_start import Earlier
from raprune.spec import automatic
from raprune.spec.job import SearchSpec
from raprune.store import learning_curves
from raprune.store.folder import Store
from raprune.store.learning_curves import write_curve
from raprune.store.record import DataRecord, DenseRecord, GraphRecord, ProofRecord, RunRecord
from raprune.store.retry import Patience
from raprune.training.tasks import task_named


@dataclass(frozen=True)
class Run:
    """A run under way: the job, the prepared network and data, and the store."""

    spec: SearchSpec
    store: Store
    prepared: Prepared
    console: Console
    stages: Stages
    session: str = field(default_factory=lambda: uuid.uuid4().hex)
    """Tells this driver from earlier drivers of the same run."""


def under_way(run: Run) -> Run:
    """The run, once its folder exists: from now on its store waits for a filesystem that is away."""

    def say(why: str | None) -> None:
        run.console.print(why or "The store answers again.", markup=False, highlight=False)

    return replace(run, store=run.store.patient(Patience(total_s=run.spec.resources.store_patience_s), say))


def place_group(run: Run, networks: int, batch_size: int, left_out: Collection[str] = ()) -> TrainPlacement | None:
    """The groups that train so many networks of the run on the living nodes; None: the search's own workers train.

    `left_out`: ids of nodes that get no worker, unless the group that the job asks for does not fit elsewhere.

    Raises:
        UsageError: as `place_training`.
    """
    data = run.prepared.data
    # A data set that is smaller than a batch is one batch.
    size = min(batch_size, data.num_train)
    trainings = Trainings(networks=networks, batch_size=size, image_size=max(data.image_shape[1:]))
    elsewhere = node_resources(but=left_out)
    try:
        placed = place_training(elsewhere, run.spec.resources, trainings)
    except UsageError:
        if not left_out:
            raise
        return place_training(node_resources(), run.spec.resources, trainings)
    return None if placed is None else replace(placed, left_out=tuple(sorted(left_out)))


def check_group(run: Run) -> None:
    """Refuse a group that the job asks for and that cannot be, before any work.

    Raises:
        UsageError: as `place_training`.
    """
    dense = [run.spec.dense.batch_size] if run.spec.weights is None else []
    place_group(run, 1, min([run.spec.finalists.train.batch_size, *dense]))


def describe(run: Run) -> RunRecord:
    """The content of `run.json` before the dense network is known."""
    graph, cost, data, proof = run.prepared.graph, run.prepared.cost, run.prepared.data, run.prepared.proof
    return RunRecord(
        # Without credentials that the URI may hold: whoever resumes gives them again.
        spec=run.spec.model_dump(mode="json") | {"output": run.store.name},
        state="searching",
        created_at=time.time(),
        started_at=time.time(),
        versions=dict(versions()),
        machine=machine(),
        metric=task_named(run.spec.task).metric,
        data=_summary(data),
        architecture=graph.architecture,
        weights_hash=None,
        dense=DenseRecord(
            val_accuracy=None,
            val_loss=None,
            val_images=len(data.validation),
            flops=cost.dense_flops,
            macs=cost.dense_flops // 2,
            params=cost.dense_params,
            memory_bytes=cost.dense_memory or None,
        ),
        graph=GraphRecord(
            groups={group.name: group.num_channels for group in graph.groups},
            frozen=tuple((f.module, f.num_channels, f.reason) for f in graph.frozen),
            notes=tuple(graph.notes),
            proof=ProofRecord(permutation_error=proof.permutation_error, cut_error=proof.cut_error),
        ),
    )


def _summary(data: Dataset) -> DataRecord:
    def size(split: Split | None) -> int:
        return 0 if split is None else len(split)

    return DataRecord(
        name=data.name,
        fingerprint=data.fingerprint,
        train=data.num_train,
        validation=size(data.validation),
        test=size(data.test),
        num_classes=data.num_classes,
        chance=data.chance,
        mean=tuple(data.mean),
        std=tuple(data.std),
        normalisation=data.origin,
    )


def check_unchanged(store: Store, described: RunRecord, prepared: Prepared, console: Console) -> None:
    for what, before, now in (
        ("data", described.data.fingerprint, prepared.data.fingerprint),
        ("network", *_networks(described, prepared)),
    ):
        if before != now:
            raise StoreError(
                f"{store.name}: the {what} changed since the run began (fingerprint {before}, now {now}).",
                hint=f"Bring the {what} back as it was, or begin a new run with another --output.",
            )
    installed = versions()
    changed = [
        f"{name} {was} -> {installed.get(name)}"
        for name, was in described.versions.items()
        if installed.get(name) != was
    ]
    if changed:
        console.print(f"Versions changed since the run began: {', '.join(changed)}.", markup=False)


def _networks(described: RunRecord, prepared: Prepared) -> tuple[str | None, str]:
    """The network that the run began with and the network of the job, in the same words."""
    if described.architecture is not None and "-" in described.architecture:
        return described.architecture, prepared.graph.architecture
    # A run from before has a digest of the code's text, comments included: its groups and costs are compared instead.
    dense, cost = described.dense or DenseRecord(), prepared.cost
    before = f"{described.graph.groups}, {dense.flops} FLOPs, {dense.params} parameters"
    return before, f"{prepared.graph.widths}, {cost.dense_flops} FLOPs, {cost.dense_params} parameters"


def identity(prepared: Prepared, weights: str | None) -> warm_start.Identity:
    """Network and data of the job, with the hash of the dense network's weights."""
    return warm_start.Identity(prepared.graph.architecture, prepared.data.fingerprint, weights)


def earlier_trials(run: Run, space: SearchSpace) -> Earlier | None:
    """Trials of other runs that the search starts with: read once, then stored with the run."""
    if not run.spec.warm_start:
        return None
    if not run.store.exists(warm_start.FILE):
        now = identity(run.prepared, run.store.record().weights_hash)
        taken = warm_start.reused(warm_start.read(run.spec.warm_start, now), run.spec, space, now)
        run.store.write_json(warm_start.FILE, warm_start.to_json(taken))
        names = [Store(uri).name for uri in run.spec.warm_start]
        run.console.print(warm_start.told(taken, names), markup=False, highlight=False)
    return warm_start.from_json(run.store.read_json(warm_start.FILE))


def stored_weights(store: Store) -> WeightArrays | None:
    """The dense network's weights in the run's folder; None if it has none yet."""
    from safetensors.numpy import load

    return dict(load(store.read_bytes(DENSE))) if store.exists(DENSE) else None


def store_dense(run: Run, dense: Any) -> None:
    from safetensors.numpy import save

    if dense.history:
        write_curve(run.store, learning_curves.DENSE, [epoch.row() for epoch in dense.history])
    run.store.write_bytes(DENSE, save(dense.weights))
    known = run.store.record().dense or DenseRecord()
    measured = {
        "val_accuracy": dense.validation.accuracy,
        "val_loss": dense.validation.loss,
        "train_accuracy": dense.training.value,
        "train_images": dense.training.images,
    }
    run.store.note(
        {"weights_hash": dense.weights_hash, "dense": known.to_json() | measured, "pace": asdict(dense.pace)}
    )
    warn_of_symptoms(run)


def warn_of_symptoms(run: Run) -> None:
    """Print symptoms of the dense network that were not printed before; `run.json` keeps all of them."""
    described = run.store.record()
    found = symptoms(described, read_test(run.store, ()))
    for sentence in found:
        if sentence not in described.warnings:
            run.console.print(f"Warning: {sentence}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    run.store.note({"warnings": found})


def keep_table(run: Run) -> None:
    """Store the latency table with the run, so that a resumed run uses the same one."""
    from safetensors.numpy import save

    table = run.prepared.cost.table
    if table is not None and not run.store.exists(TABLE):
        run.store.write_bytes(TABLE, save(table.to_arrays()))
        run.store.note({"latency": table.describe()})


def keep_correction(run: Run, found: Corrected) -> None:
    """Say how near the first candidates came to the table, and store the table that they corrected."""
    from safetensors.numpy import save

    run.console.print(found.sentence, markup=False, highlight=False)
    if found.table.correction is not None:
        run.store.write_bytes(TABLE, save(found.table.to_arrays()))
        run.store.note({"latency": found.table.describe()})


def say_job(console: Console, spec: SearchSpec, prepared: Prepared) -> None:
    cost, graph, metric = prepared.cost, prepared.graph, task_named(spec.task).metric
    asked = [
        f"keep at most {value:.0%} of the {name} ({value * dense:,.0f})"
        for name, value, dense in (
            ("FLOPs", spec.budget.flops, cost.dense_flops),
            ("parameters", spec.budget.params, cost.dense_params),
            ("peak bytes of activations of an image", spec.budget.memory, cost.dense_memory),
        )
        if value is not None
    ]
    if spec.budget.latency is not None:
        asked.append(f"keep at most {spec.budget.latency:.0%} of the latency")
    if spec.budget.latency_ms is not None:
        asked.append(f"a latency of at most {spec.budget.latency_ms:g} ms per batch")
    if spec.min_accuracy is not None:
        asked.append(f"a validation {metric} of {spec.min_accuracy:.2%} or more")
    if spec.max_drop is not None:
        asked.append(f"at most {100 * spec.max_drop:g} points less {metric}")
    console.print(
        f"{spec.model.name} on {spec.data.name}: {cost.dense_flops:,} FLOPs ({cost.dense_flops // 2:,} MACs), "
        f"{cost.dense_params:,} parameters, {len(graph.groups)} groups of channels. Asked for: {'; '.join(asked)}.",
        markup=False,
        highlight=False,
    )
    given = given_model(spec.model)
    if given is not None:
        console.print(given.travels, markup=False, highlight=False)
    console.print(f"Normalisation: {prepared.data.normalisation}.", markup=False, highlight=False)
    if prepared.data.calibration is not None:
        console.print(
            f"Methods look at calibration images without labels, of which there are "
            f"{len(prepared.data.calibration):,}.",
            markup=False,
            highlight=False,
        )
    if "train" in prepared.data.unlabelled:
        console.print(
            "Training images have no labels: methods look at none, and finalists learn from the dense network alone.",
            markup=False,
            highlight=False,
        )
    for warning in (ignored(spec.data, prepared.data), sorted_stream(prepared.data)):
        if warning is not None:
            console.print(f"Warning: {warning}", style="yellow", markup=False, highlight=False)
    if prepared.data.drawn is not None:
        console.print(
            "Training items are drawn anew in each epoch, with the transforms of their data set.",
            markup=False,
            highlight=False,
        )
    for subject, decision in automatic.told(spec, prepared.spec, prepared.traits).items():
        console.print(f"{subject.capitalize()}: {decision}.", markup=False, highlight=False)


def say_latency(run: Run, table: LatencyTable, *, is_new: bool) -> None:
    origin = "measured" if is_new else "read"
    accuracy = table.accuracy
    run.console.print(
        f"Latency of a batch of {table.batch_size} on {table.device} ({table.precision}, {table.runtime}): the dense "
        f"network takes {table.dense_ms:.3g} ms. Table of layer times {origin}; on {accuracy.networks} other networks "
        f"its median error is {accuracy.median_error:.1%}, the worst {accuracy.worst_error:.1%}."
        + (f" Layers are timed at multiples of {table.step} channels." if table.step > 1 else "")
        + (
            f" The times of {table.corrected_by} whole networks corrected it, as its error was above 10 % at first."
            if table.corrected_by
            else ""
        ),
        markup=False,
        highlight=False,
    )


def say_statistics(run: Run, gathered: Any) -> None:
    read = len(gathered.arrays) - len(gathered.computed)
    told = {"folder": Store(run.spec.statistics_folder).name, "computed": sorted(gathered.computed), "read": read}
    run.store.note({"statistics": told})
    line = f"Statistics in {told['folder']}: {len(gathered.computed)} computed, {read} read."
    run.console.print(line, markup=False, highlight=False)


def note_finetunings(run: Run, number: int) -> None:
    """Write the number of all fine-tunings, once the finalists are chosen."""
    run.store.note({"finetunings": number})


def note_left_out(run: Run, told: Sequence[str]) -> None:
    """Write a sentence for each node that was given no further workers; the sentences of earlier drivers stay."""
    if told:
        run.store.note({"left_out": [*run.store.record().left_out, *told]})


def finish(run: Run, accuracies: SplitAccuracies) -> None:
    """Write the accuracies on the test split, the report, and that the run is finished; print the front."""
    from raprune.report.html import write_report  # loads matplotlib: a second that a search need not begin with

    test = run.prepared.data.test
    if accuracies and test is not None:
        run.store.write_json(TEST_FILE, replace(accuracies, images=len(test)).to_json())
    warn_of_symptoms(run)
    ended = {"state": "finished", "finished_at": time.time()}
    # The state last: a run that ends before this is resumed, and its report written again.
    write_report(run.store, run=run.store.record().model_copy(update=ended))
    run.stages.end()
    run.store.note(ended | {"stages": run.stages.now().to_json()["stages"]})
    print_front(run.store.uri, console=run.console)
