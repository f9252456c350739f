"""One network without Ray: `raprune prune` makes it, `raprune export` writes one that a run found."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from safetensors.numpy import load as load_arrays
from torch import nn

from raprune.cost.conditions import table_key
from raprune.cost.latency import LatencyTable
from raprune.cost.measure import measure_table
from raprune.cost.timed import check_runtime
from raprune.errors import RapruneError, StoreError, UsageError
from raprune.pruning.allocate import LEAST_DAMAGE
from raprune.pruning.answers import AGREEMENT
from raprune.pruning.artifact import load_from, provenance, save, trial_provenance
from raprune.pruning.delivery import RECIPE_FORMAT, check_free, checked, deliver, write_wanted
from raprune.pruning.first_candidates import Corrected, corrected_once
from raprune.pruning.hugging_face import CardFigures
from raprune.pruning.preparation import (
    DENSE,
    InStages,
    Prepared,
    check_same_data,
    check_writable,
    job_data,
    prepare,
    stored_table,
    with_fast_widths,
    with_table,
)
from raprune.pruning.prune import Pruner, Result
from raprune.pruning.record import check_not_trained, is_trained
from raprune.pruning.workload import Workload, build_workload, train_dense
from raprune.records import Candidate, Proposal, Stage, Trial
from raprune.results.exports import ExportProof, keep_proof
from raprune.results.rows import candidates
from raprune.results.stages import (
    EXPORT,
    FINETUNE,
    FIRST_CANDIDATES,
    JUDGE_DENSE,
    LAYER_TIMES,
    LOAD_DATA,
    LOAD_NETWORK,
    PRUNE,
    TRAIN_DENSE,
    Stages,
)
from raprune.results.test_split import read_test
from raprune.spec.job import SearchSpec
from raprune.store.folder import Store
from raprune.store.networks import RECIPE, WEIGHTS, copy_network, find_network
from raprune.store.record import RunRecord
from raprune.store.scores import Statistics
from raprune.training.epoch import Epoch
from raprune.training.evaluate import Evaluation, evaluate


@dataclass(frozen=True)
class Single:
    """One condensed network, and the dense one beside it."""

    trial: Trial
    dense_accuracy: float
    """Validation accuracy of the dense network."""
    result: Result
    pruner: Pruner
    spec: SearchSpec
    """The job with every field decided."""
    warnings: tuple[str, ...] = ()
    """Warnings about the dense network, one sentence or more each."""
    proof: ExportProof | None = None
    """The proof of the exported programs; None if there are none."""
    latency: Corrected | None = None
    """The timing of its widths, and the table that it corrected; None without a budget of latency."""

    @property
    def metric(self) -> str:
        """Name of the task's metric; for images without labels, of the agreement of both networks."""
        workload = self.pruner.workload
        return AGREEMENT if "validation" in workload.data.unlabelled else workload.task.metric

    @property
    def model(self) -> nn.Module:
        """The condensed network, in evaluation mode."""
        return self.result.model


def prune_once(
    spec: SearchSpec,
    *,
    method: str,
    allocation: str,
    folder: str | None = None,
    formats: Sequence[str] = (RECIPE_FORMAT,),
    quantize: str | None = None,
    finetune: bool = False,
    stages: Stages | None = None,
    examine: Callable[[Workload, Evaluation], Sequence[str]] | None = None,
) -> Single:
    """Prune the network of `spec` once, to its budget; with `folder`, write it there in each of `formats`;
    with `quantize`, ONNX in this precision as well.

    A network without weights is trained first. `stages` follows. `examine` gives the warnings about the dense network,
    from its evaluation on the validation split.

    Raises:
        UsageError: if a name or a setting is wrong or the budget is out of reach; nothing was trained then.
        StoreError: if `folder` holds an exported network already or cannot be written.
        ModelError: if a format does not take the network.
    """
    store, wanted = None if folder is None else Store(folder), checked(formats, quantize)
    if store is not None:
        check_free(store, wanted)
        check_writable(store)
    elif wanted.files != (WEIGHTS, RECIPE):
        raise UsageError(
            f"--format {', '.join(formats)}: there is no folder to write to.", hint="Give one: --output FOLDER"
        )
    if spec.search.depth and allocation != LEAST_DAMAGE:
        raise UsageError(
            f"search.depth (--depth) with --allocation {allocation}: only {LEAST_DAMAGE} decides on blocks.",
            hint=f"Give --allocation {LEAST_DAMAGE}, or leave --depth out.",
        )
    steps = spec.finalists.steps if finetune else (1,)
    if len(steps) > 1:
        raise UsageError(
            f"finalists.steps {list(steps)}: one network is made in one way; a search compares several.",
            hint=f"Give one number: --set finalists.steps={steps[-1]}",
        )
    asked = spec.model_copy(update={"methods": (method,), "allocations": (allocation,)})
    stages, device = stages or Stages(), _device()
    check_runtime(spec.latency, device=device)
    prepared, statistics = prepare(asked, InStages(stages)), _statistics(asked)
    spec = prepared.spec if device == "cpu" else with_fast_widths(asked, prepared.spec, prepared.cost)
    workload = build_workload(
        spec, data=prepared.data, device=device, weights=prepared.weights, teacher=prepared.teacher
    )
    if spec.budget.limits_latency:
        stages.begin(LAYER_TIMES)
        spec, prepared = with_table(spec, prepared, _table(workload, prepared, spec, statistics))
    if spec.weights is None:
        stages.begin(TRAIN_DENSE, total=math.ceil(spec.dense.epochs), unit="epochs")
        train_dense(workload, spec, on_epoch=partial(_tell_epoch, stages, workload.task.metric))
    stages.begin(JUDGE_DENSE)
    dense = evaluate(
        workload.model,
        workload.validation,
        task=workload.task,
        batch_size=spec.search.eval_batch_size,
        precision=spec.search.eval_precision,
    )
    warnings = () if examine is None else tuple(examine(workload, dense))
    pruner = Pruner(
        workload,
        prepared.graph,
        spec,
        statistics=statistics,
        latency=prepared.cost.table,
        on_work=lambda work: stages.hear([work]),
    )
    proposal = Proposal(
        number=0,
        method=method,
        settings=spec.settings.get(method, {}),
        allocation=allocation,
        target=spec.budget,
        seed=spec.seed,
    )
    first = None
    if spec.budget.limits_latency:
        stages.begin(FIRST_CANDIDATES)
        first = corrected_once(pruner, spec, [proposal])
        pruner = pruner.knowing(first.table)
    stages.begin(PRUNE)
    if finetune:
        start = pruner.made_again(proposal)
        train = spec.finalists.train.decided()
        stages.begin(FINETUNE, total=math.ceil(train.epochs), unit="epochs")
        tell = partial(_tell_epoch, stages, workload.task.metric)
        asked_for = replace(proposal, cuts=1 if is_trained(proposal) else steps[0])
        result = pruner.finetune(asked_for, proposal, train, start=start, on_epoch=tell)
    else:
        result = pruner.prune(proposal)
    proof = None
    if store is not None:
        if wanted.needs_data:
            stages.begin(EXPORT)
        with tempfile.TemporaryDirectory(prefix="raprune-export-") as temporary:
            _save(Store(temporary), result, pruner, spec)
            figures = CardFigures(dense_validation=dense.accuracy)
            proof = write_wanted(
                wanted, Path(temporary), model=result.model, workload=workload, of=result.trial, figures=figures
            )
            deliver(Path(temporary), store, wanted)
    stages.end()
    return Single(result.trial, dense.accuracy, result, pruner, spec, warnings, proof, first)


def save_single(single: Single, folder: str) -> None:
    """Write recipe and weights of a network to `folder`.

    Raises:
        StoreError: if `folder` holds a recipe already or cannot be written.
    """
    store = Store(folder)
    check_free(store, checked((RECIPE_FORMAT,), None))
    check_writable(store)
    _save(store, single.result, single.pruner, single.spec)


def _tell_epoch(stages: Stages, metric: str, epoch: Epoch) -> None:
    stages.update(done=epoch.reached, detail=epoch.described(metric))


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A network of a run that was written to a folder of its own."""

    network: str
    """Its name in the run."""
    trial_id: str
    val_accuracy: float
    """Value of the metric of this network on the validation split, as the run recorded it."""
    metric: str
    """Name of the task's metric."""
    is_stored: bool
    """True if the run has its weights; else they were made again."""
    files: tuple[str, ...]
    """Names of the files in the folder."""
    proof: ExportProof | None
    """The proof of the exported programs; None if there are none."""


def export(
    run: str,
    name: str,
    folder: str,
    *,
    formats: Sequence[str] = (RECIPE_FORMAT,),
    quantize: str | None = None,
    spec: SearchSpec | None = None,
    stages: Stages | None = None,
    tell: Callable[[str], None] = print,
) -> Exported:
    """Write one network of a run to `folder`, in each of `formats`.

    `name` is the network's, its unambiguous beginning, or a trial's id. A network whose weights are in the run is
    copied; a repaired one without them is made again from the dense network, which gives the same weights. `tell`
    hears of that before it begins, and `stages` follows. `recipe` is `recipe.json` and `weights.safetensors`; `torch`
    and `onnx` are programs, which are proved on validation images and described in `export.json`; `quantize` adds the
    ONNX program in `int8`. `huggingface` is the layout of its Hub. Files appear in `folder` once all are written and
    proved; the proof is also kept in the run, for its report. `spec` is the job of the run with its objects, if network
    or data were objects of a Python session.

    Raises:
        UsageError: if the run has no such network, or several that begin so; if a format is unknown or its libraries
            are not installed.
        StoreError: if the run cannot be read, or `folder` holds such a file already.
        ModelError: if a format does not take the network.
        RapruneError: if data or dense network are needed, and they are not there any more.
    """
    source, target, wanted = Store(run), Store(folder), checked(formats, quantize)
    described, trials = source.record(), source.trials()
    check_free(target, wanted)
    trial = find_trial(source, trials, name)
    spec = spec or SearchSpec.model_validate(described.spec)
    found, stages = find_network(source, trial), stages or Stages()
    proof = None
    with tempfile.TemporaryDirectory(prefix="raprune-export-") as temporary:
        made, workload = Store(temporary), None
        if found is not None:
            copy_network(source, found, made, "")
        else:
            check_not_trained(trial)
            tell(
                f"Making {trial.network} again from the dense network (trial {trial.trial_id}, "
                f"{trial.proposal.method}): its weights are not stored in the run."
            )
            workload = _make_again(source, spec, described, trial, made, stages)
        if wanted.needs_data:
            workload = workload or _workload_of_run(source, spec, described, trial, stages)
            stages.begin(EXPORT)
            model = load_from(workload.model, made, "")
            figures = _figures(source, described, trials, trial)
            proof = write_wanted(wanted, Path(temporary), model=model, workload=workload, of=trial, figures=figures)
        files = deliver(Path(temporary), target, wanted)
    if proof is not None:
        try:
            keep_proof(source, proof)
        except StoreError as error:
            tell(f"The report of the run will not show this export: {error.message}")
    assert trial.metrics is not None, "a complete trial has metrics"
    return Exported(
        network=trial.network,
        trial_id=trial.trial_id,
        val_accuracy=trial.metrics.accuracy,
        metric=described.metric,
        is_stored=found is not None,
        files=files,
        proof=proof,
    )


def _figures(store: Store, described: RunRecord, trials: Sequence[Trial], trial: Trial) -> CardFigures:
    """Accuracies of the network and the dense network, as the run recorded them."""
    test = read_test(store, trials)
    return CardFigures(
        dense_validation=None if described.dense is None else described.dense.val_accuracy,
        test=test.candidates.get(trial.network),
        dense_test=test.dense,
        test_images=test.images,
    )


def find_trial(store: Store, trials: Sequence[Trial], wanted: str) -> Trial:
    """The complete trial whose network is wanted, by its name, the beginning of it, or the trial's id.

    Raises:
        UsageError: if there is no such network, or several.
    """
    complete = {trial.trial_id: trial for trial in trials if trial.counts}
    # Of several trials that came to one candidate, the one that stands for it; then each repeat by its own name.
    named = {row.candidate: complete[row.trial_id] for row in candidates(trials)}
    named |= {trial.network: trial for trial in complete.values() if trial.proposal.stage is Stage.FINETUNE}
    exact = named.get(wanted) or complete.get(wanted)
    beginning = sorted(network for network in named if wanted and network.startswith(wanted))
    if exact is not None or len(beginning) == 1:
        return exact or named[beginning[0]]
    some = ", ".join(beginning or [trial.network for trial in list(complete.values())[-5:]]) or "none yet"
    raise UsageError(
        f"network {wanted!r}: {'several networks' if beginning else 'no network'} of this run "
        f"{'begin' if beginning else 'begins'} so.",
        hint=f"Give one of: {some}"
        if beginning
        else f"`raprune front {store.name}` lists those of the front. Some of the run's: {some}.",
    )


def _make_again(
    store: Store, spec: SearchSpec, described: RunRecord, trial: Trial, target: Store, stages: Stages
) -> Workload:
    """Write the network of a repaired candidate, made from the dense network once more; return the run's workload."""
    try:
        pruner = _pruner_of_run(store, spec, described, stages)
        stages.begin(PRUNE)
        model = pruner.repaired_again(trial)
    except RapruneError as error:
        raise RapruneError(
            f"{trial.network} cannot be made again: {error.message}",
            hint=f"{error.hint} The networks in {store.name}/models need no data.",
        ) from error
    _save(target, Result(trial, model), pruner, spec)
    return pruner.workload


def _workload_of_run(store: Store, spec: SearchSpec, described: RunRecord, trial: Trial, stages: Stages) -> Workload:
    """Dense network and data of a run, for the proof of a program of its network."""
    try:
        stages.begin(LOAD_DATA)
        data = job_data(spec, described)
        check_same_data(data, described)
        stages.begin(LOAD_NETWORK)
        weights = dict(load_arrays(store.read_bytes(DENSE)))
        return build_workload(spec, data=data, device=_device(), weights=weights)
    except RapruneError as error:
        raise RapruneError(
            f"{trial.network} cannot be exported with its data: {error.message}",
            hint=f"{error.hint} --format recipe needs no data.",
        ) from error


def _pruner_of_run(store: Store, spec: SearchSpec, described: RunRecord, stages: Stages) -> Pruner:
    prepared = prepare(spec, InStages(stages), recorded=described)
    check_same_data(prepared.data, described)
    weights = dict(load_arrays(store.read_bytes(DENSE)))
    workload = build_workload(spec, data=prepared.data, device=_device(), weights=weights)
    # Beside the run at its present place; another user may own that, and it may be read-only.
    here = spec.model_copy(update={"output": store.uri})
    statistics = Statistics(Store(here.statistics_folder), writes=False)
    table = stored_table(store)
    return Pruner(
        workload, prepared.graph, spec, statistics=statistics, latency=table, on_work=lambda work: stages.hear([work])
    )


def _table(workload: Workload, prepared: Prepared, spec: SearchSpec, statistics: Statistics) -> LatencyTable:
    """The table from the folder of statistics, else measured here."""
    device, graph, step = workload.device.type, prepared.graph, spec.search.multiple_of or 1
    arrays = statistics.once(
        table_key(graph, spec.latency, device=device, multiple_of=step),
        lambda: measure_table(workload.model, graph, spec.latency, device=device, multiple_of=step).to_arrays(),
    )
    return LatencyTable.from_arrays(arrays)


def _statistics(spec: SearchSpec) -> Statistics:
    """Statistics in memory, unless the job names a folder: nothing is written that nobody asked for."""
    return Statistics(Store(spec.statistics) if spec.statistics else None)


def _save(store: Store, result: Result, pruner: Pruner, spec: SearchSpec) -> None:
    save(
        store,
        "",
        model=result.model,
        graph=pruner.graph,
        candidate=_candidate(result),
        provenance=provenance(spec, pruner.workload.data) | trial_provenance(result.trial),
    )


def _candidate(result: Result) -> Candidate:
    return result.trial.channels


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
