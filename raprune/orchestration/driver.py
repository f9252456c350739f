"""A run on its cluster, phase after phase; imported once `cluster.connect` has made Ray's settings.

    dense network -> statistics -> search -> fine-tune -> test split -> report

Each phase is a function below, in this order, that returns a frozen result for those after it. One run of Tune serves
search, fine-tuning and the test split, so that the same workers do all three; only where a group of Ray Train
fine-tunes the finalists do the last two need phases of their own.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import ray
from ray import cloudpickle, tune
from ray.actor import ActorHandle

from raprune.cost.flops import CostModel
from raprune.cost.timed import check_runtime
from raprune.data.dataset import Dataset
from raprune.methods import method_named, searched_settings
from raprune.orchestration.attempts import Attempts
from raprune.orchestration.cluster.connect import node_resources
from raprune.orchestration.cluster.placement import Placement, TrainPlacement, has_room, place_again
from raprune.orchestration.cluster.preflight import preflight
from raprune.orchestration.cluster.time_limit import TimeLimit, durations
from raprune.orchestration.coordinator import ask, find_coordinator
from raprune.orchestration.final_front import evaluate_finalists, plan_tests
from raprune.orchestration.gauges import see_off
from raprune.orchestration.jobs.metadata import cluster_address, tell_best, telling
from raprune.orchestration.lease import held
from raprune.orchestration.plan import tell_forecast
from raprune.orchestration.progress import published, watched
from raprune.orchestration.remote import task_on, trial_answer
from raprune.orchestration.run import (
    Run,
    earlier_trials,
    finish,
    keep_correction,
    keep_table,
    note_finetunings,
    note_left_out,
    place_group,
    say_latency,
    say_statistics,
    store_dense,
    stored_weights,
)
from raprune.orchestration.scheduler import KeepWorkers, WorkerResources
from raprune.orchestration.searcher import CandidateSearcher
from raprune.orchestration.tasks import CandidateTask, Dense, Shared
from raprune.orchestration.tracking import tracked
from raprune.orchestration.workers.dense import prepare_dense
from raprune.orchestration.workers.groups import GroupStages, train_together
from raprune.orchestration.workers.latency import Subject, first_candidates, latency_table, measure_front
from raprune.orchestration.workers.meeting import start_meeting
from raprune.orchestration.workers.scores import Inputs, gather, missing, named, phases, warm_up
from raprune.orchestration.workers.trainings import DenseTraining, FinalistTraining, PhaseTraining, Training
from raprune.orchestration.workers.trials import CandidateTrial
from raprune.pruning.allocate import by_default
from raprune.pruning.artifact import provenance
from raprune.pruning.preparation import with_table
from raprune.pruning.workload import WeightArrays
from raprune.records import Trial
from raprune.results.stages import (
    CHECK_NODES,
    FIRST_CANDIDATES,
    JUDGE_DENSE,
    LATENCY,
    LAYER_TIMES,
    REPORT,
    SEARCH,
    START_RUN,
    STOP_RAY,
    TRAIN_DENSE,
)
from raprune.results.test_split import SplitAccuracies
from raprune.sampling.ahead import ProposalsAhead, depth_for
from raprune.sampling.proposals import Proposals
from raprune.sampling.space import SearchSpace, search_space
from raprune.sampling.stopping import Enough
from raprune.spec.budget import accuracy_floor
from raprune.store.folder import Store
from raprune.training import checkpoint
from raprune.training.checkpoint import checkpoint_file
from raprune.training.epoch import Epoch

ARRIVAL_S = 5.0
"""Time in which a record that a worker has sent reaches the coordinator, if its worker lives."""

SharedWeights = ray.ObjectRef[WeightArrays]
"""Reference to the dense network's weights."""


@dataclass(frozen=True)
class DrivenRun:
    """A run with what all of its phases use on the cluster."""

    run: Run
    placement: Placement
    coordinator: ActorHandle[Any]
    data: ray.ObjectRef[Dataset]
    """Without the test split."""
    teacher: SharedWeights | None = None
    """Weights of the teacher; None where the dense network teaches."""

    def trials(self) -> list[Trial]:
        """All recorded trials, without the channels that stay."""
        recorded: Any = self.coordinator.trials
        return ask(recorded.remote())

    def shared(self, weights: SharedWeights) -> Shared:
        """Inputs of the workers, before any statistics are computed."""
        run = self.run
        return Shared(
            spec=run.spec,
            graph=run.prepared.graph,
            placement=self.placement,
            data=self.data,
            weights=weights,
            statistics=ray.put({}),
            coordinator=self.coordinator,
            store=run.store,
            session=run.session,
            provenance=provenance(run.spec, run.prepared.data),
            latency=run.prepared.cost.table,
            teacher=self.teacher,
        )


@dataclass(frozen=True)
class StatisticsResult:
    """Inputs of the search."""

    shared: Shared
    """Inputs of the workers, with the statistics."""
    space: SearchSpace
    stored: Sequence[Trial]
    """Trials that were recorded before this driver."""


@dataclass(frozen=True)
class SearchResult:
    """Work that the run of Tune leaves, and accuracies that it measured."""

    waiting: Sequence[CandidateTask]
    """Finalists that a group of workers is to fine-tune; empty: Tune's own workers have fine-tuned and tested."""
    accuracies: SplitAccuracies
    """Accuracies on the test split, where Tune's own workers have measured them."""
    left_out: frozenset[str] = frozenset()
    """Ids of the nodes that are given no further workers."""


@dataclass(frozen=True)
class FinetuneResult:
    """Fine-tunings that are recorded now."""

    by_group: int
    """Number of finalists that a group of workers fine-tuned; 0: Tune's own workers did."""


@dataclass(frozen=True)
class SplitResult:
    """Accuracies on the test split; none where nothing was to be tested."""

    accuracies: SplitAccuracies


def check_nodes(run: Run) -> None:
    """Ask every node whether it can do the job.

    Raises:
        RapruneError: if one cannot.
    """
    with run.stages.stage(CHECK_NODES):
        preflight(run.spec, run.store, console=run.console)


def with_latency(run: Run, placement: Placement) -> Run:
    """The run with its latency budget as a fraction, and costs that know latency; unchanged without such a budget.

    Raises:
        UsageError: if the runtime of the latency does not run on the device of the workers.
        BudgetError: if the budget is out of reach.
    """
    check_runtime(run.spec.latency, device=placement.device)
    if not run.spec.budget.limits_latency:
        return run
    with run.stages.stage(LAYER_TIMES):
        table, is_new = latency_table(Subject.of(run.spec, run.prepared, placement), run.store)
    say_latency(run, table, is_new=is_new)
    spec, prepared = with_table(run.spec, run.prepared, table)
    return replace(run, spec=spec, prepared=prepared)


def carry_out(run: Run, placement: Placement) -> None:
    """All phases of a run. However the run ends, none of its actors stays behind."""
    run.stages.begin(START_RUN)
    if run.spec.weights is not None or stored_weights(run.store) is not None:
        # Not where a group of Ray Train may be about to take all of the cluster for the dense network.
        warm_up(placement)
    coordinator: Any = find_coordinator(run.store)
    with (
        held(coordinator, run.session, run.store.name, console=run.console),
        published(run.stages, run.store),
        tracked(run),
        _page(run) as note_page,
    ):
        try:
            keep_table(run)
            Store(run.spec.statistics_folder).make()
            driven = DrivenRun(
                run,
                placement,
                coordinator,
                data=ray.put(run.prepared.data.without_test()),
                teacher=None if run.prepared.teacher is None else ray.put(run.prepared.teacher),
            )
            weights = dense_network(driven)
            note_page()
            ask(coordinator.reread.remote())
            driven, known = with_correction(driven, gather_statistics(driven, weights))
            searched = search_candidates(driven, known)
            tuned = finetune_finalists(driven, known, searched)
            report(driven, test_networks(driven, known, searched, tuned))
        finally:
            ray.kill(coordinator)


def dense_network(driven: DrivenRun) -> SharedWeights:
    """The dense network: its weights as given or stored, else trained by a task or by a group of workers."""
    run, placement = driven.run, driven.placement
    stored = stored_weights(run.store)
    if stored is not None and run.store.record().dense_accuracy is not None:
        return ray.put(stored)
    if stored is None and run.spec.weights is None:
        space = _space(run)
        methods = phases(named(run.spec, (*space.baselines, *space.methods)))
        shared = driven.shared(ray.put(run.prepared.weights))
        _train_together(run, shared, _in_one_group(run, DenseTraining(), [PhaseTraining(m) for m in methods]))
        stored = stored_weights(run.store)
    train = stored is None and run.spec.weights is None
    task = task_on(placement, prepare_dense, num_returns="streaming")
    weights = ray.put(run.prepared.weights if stored is None else stored)
    news = task.remote(run.spec, placement, driven.data, weights, driven.teacher, train=train, store=run.store)
    dense = _heard(run, news, train=train)
    store_dense(run, dense)
    run.store.remove(checkpoint_file(checkpoint.DENSE))
    return ray.put(dense.weights)


def gather_statistics(driven: DrivenRun, weights: SharedWeights) -> StatisticsResult:
    """Compute what candidates share and nobody has computed yet: methods' training phases, and scores."""
    run, placement = driven.run, driven.placement
    stored = driven.trials()
    space = _space(run)
    shared = driven.shared(weights)
    inputs = Inputs(run.spec, run.prepared.graph, placement, [driven.data], [weights], driven.coordinator)
    methods = (*space.baselines, *space.methods)
    lacking = missing(inputs, named(run.spec, methods))
    tell_forecast(
        run,
        placement,
        space=space,
        lacking=lacking,
        stored=stored,
        grouped=_are_grouped(run, max(1, run.spec.finalists.count)),
    )
    if run.spec.resources.train_workers != 0:
        _train_together(run, shared, [PhaseTraining(method) for method in lacking.phases])
    gathered = gather(inputs, methods, run.stages)
    say_statistics(run, gathered)
    return StatisticsResult(replace(shared, statistics=ray.put(gathered.arrays)), space, stored)


def with_correction(driven: DrivenRun, known: StatisticsResult) -> tuple[DrivenRun, StatisticsResult]:
    """The run with latencies corrected by its first candidates; unchanged without a budget of latency."""
    run, spec = driven.run, driven.run.spec
    if not spec.budget.limits_latency:
        return driven, known
    with run.stages.stage(FIRST_CANDIDATES):
        subject = Subject.of(spec, run.prepared, driven.placement)
        found = first_candidates(subject, known.shared, spec.methods, recorded=known.stored)
    if found is None:
        return driven, known
    keep_correction(run, found)
    cost = CostModel(run.prepared.graph, found.table)
    run = replace(run, prepared=replace(run.prepared, cost=cost))
    known = replace(known, shared=replace(known.shared, latency=found.table), space=_space(run))
    return replace(driven, run=run), known


def search_candidates(driven: DrivenRun, known: StatisticsResult) -> SearchResult:
    """Try candidates until the search has had enough; then fine-tune and test, unless a group is to fine-tune.

    Raises:
        RapruneError: if the search cannot continue; finished trials are recorded.
    """
    run, spec = driven.run, driven.run.spec
    enough = Enough(
        spec.search,
        known.stored,
        workers=driven.placement.workers,
        devices=driven.placement.gpus or driven.placement.cpus,
        cost=spec.budget.cost,
        already=run.store.record().stopped,
    )
    attempts = _attempts(driven, known.stored)
    searcher = _searcher(driven, known, enough, attempts)
    meeting = start_meeting(driven.placement.workers)
    with tempfile.TemporaryDirectory(prefix="raprune-", ignore_cleanup_errors=True) as folder:
        try:
            _run_tune(driven, replace(known.shared, meeting=meeting), searcher, attempts, folder)
        finally:
            searcher.close()
            ray.kill(meeting)
    note_left_out(run, attempts.told)
    if searcher.failure is not None:
        raise searcher.failure
    if enough.reason is not None:
        run.store.note({"stopped": enough.reason})
        run.console.print(f"Search ended early: {enough.reason}.", markup=False, highlight=False)
    return SearchResult(tuple(searcher.waiting), searcher.test, frozenset(attempts.left_out))


def finetune_finalists(driven: DrivenRun, known: StatisticsResult, searched: SearchResult) -> FinetuneResult:
    """Have a group of workers fine-tune the finalists that wait for one."""
    trainings = [FinalistTraining(task) for task in searched.waiting]
    _train_together(driven.run, known.shared, trainings, searched.left_out)
    return FinetuneResult(by_group=len(searched.waiting))


def test_networks(
    driven: DrivenRun, known: StatisticsResult, searched: SearchResult, tuned: FinetuneResult
) -> SplitResult:
    """Store the networks of the final front and evaluate on the test split, where Tune's own workers have not."""
    if not tuned.by_group:
        return SplitResult(searched.accuracies)
    tasks = plan_tests(driven.run, driven.placement, driven.trials())
    return SplitResult(evaluate_finalists(driven.run, known.shared, tasks, searched.left_out))


def report(driven: DrivenRun, tested: SplitResult) -> None:
    """Measure latency of the final front, write the report, and wait until the last metrics are exported."""
    run, coordinator = driven.run, driven.coordinator
    progress: Any = coordinator.progress
    unexported_s: Any = coordinator.unexported_s
    run.stages.begin(LATENCY)
    # Networks with fewer FLOPs need not be faster.
    measure_front(Subject.of(run.spec, run.prepared, driven.placement), run.store, driven.trials())
    run.stages.begin(REPORT)
    finish(run, tested.accuracies)
    run.stages.begin(STOP_RAY)
    tell_best(ask(progress.remote()))
    see_off(lambda: ask(unexported_s.remote()))


def _page(run: Run) -> AbstractContextManager[Callable[[], None]]:
    """The page beside the run, if the job asks for it, or leaves it open and a running cluster was joined."""
    wanted = run.spec.page.serve
    if wanted is None:
        wanted = cluster_address(run.spec.resources.address) is not None
    if not wanted:
        return nullcontext(lambda: None)
    # Ray Serve is imported only where it is used: it takes seconds.
    from raprune.orchestration.served_page import page_of_run

    return page_of_run(run.store, run.spec.page, run.console)


def _heard(run: Run, news: Any, *, train: bool) -> Dense:
    """The dense network that a task of `prepare_dense` ends with; its epochs are shown as they come."""
    if train:
        run.stages.begin(TRAIN_DENSE, total=math.ceil(run.spec.dense.epochs), unit="epochs")
    else:
        run.stages.begin(JUDGE_DENSE)
    dense: Dense | None = None
    for reference in news:
        item: Epoch | Dense = trial_answer(reference)
        if isinstance(item, Dense):
            dense = item
            continue
        run.stages.update(done=item.number, detail=item.described(run.store.record().metric))
        if item.number >= item.epochs:
            run.stages.begin(JUDGE_DENSE)
    assert dense is not None, "a task ends with the network, or raises"
    return dense


def _space(run: Run) -> SearchSpace:
    """Methods, settings and widths among which the search of the run chooses."""
    settings = {name: searched_settings(method_named(name)) for name in run.spec.methods}
    return search_space(run.spec, run.prepared.cost, allocations=by_default(), settings=settings)


def _attempts(driven: DrivenRun, stored: Sequence[Trial]) -> Attempts:
    """Counts the losses of the run's workers, with the time limit of its trials, to which `stored` ones count."""
    run, placement = driven.run, driven.placement
    seat: Any = driven.coordinator.seat
    pace = run.store.record().pace
    epoch_s = None if pace is None else pace.step_s * run.prepared.data.num_train
    return Attempts(
        TimeLimit(run.spec.resources.trial_timeout_s, epoch_s, durations(stored)),
        seat_of=lambda trial_id: ask(seat.remote(trial_id)),
        nodes=lambda: [n["NodeID"] for n in ray.nodes() if n["Alive"] and has_room(n["Resources"], placement)],
        say=lambda text: run.console.print(text, style="yellow", markup=False, highlight=False),
    )


def _searcher(driven: DrivenRun, known: StatisticsResult, enough: Enough, attempts: Attempts) -> CandidateSearcher:
    """The searcher of the run, which records what no worker could and hears from the stop rule."""
    run, spec, coordinator = driven.run, driven.run.spec, driven.coordinator
    workers = driven.placement.workers
    record: Any = coordinator.record
    earlier = earlier_trials(run, known.space)
    proposals = Proposals(known.space, spec.search, seed=spec.seed, stored=known.stored, earlier=earlier, enough=enough)
    return CandidateSearcher(
        spec,
        ProposalsAhead(proposals, depth=depth_for(workers, spec.search.lookahead_for(workers))),
        known.stored,
        record=lambda trial: ask(record.remote([trial], run.session)),
        missing=partial(_missing, coordinator),
        plan_test=lambda: plan_tests(run, driven.placement, driven.trials()),
        spend=enough.spend,
        chosen=partial(_note_finetunings, run, coordinator),
        grouped=lambda finalists: _are_grouped(run, finalists, attempts.left_out),
        attempts=attempts,
        workers=workers,
        stages=run.stages,
        floor=accuracy_floor(spec.min_accuracy, spec.max_drop, run.store.record().dense_accuracy),
    )


def _missing(coordinator: Any, trial_ids: Sequence[str]) -> list[str]:
    """Those of the trials that the coordinator does not get, after the time in which a record on its way arrives."""
    until = time.monotonic() + ARRIVAL_S
    missing: list[str] = ask(coordinator.missing.remote(trial_ids))
    while missing and time.monotonic() < until:
        time.sleep(ARRIVAL_S / 20)
        missing = ask(coordinator.missing.remote(missing))
    return missing


def _note_finetunings(run: Run, coordinator: Any, number: int) -> None:
    note_finetunings(run, number)
    ask(coordinator.reread.remote())


def _run_tune(driven: DrivenRun, shared: Shared, searcher: CandidateSearcher, attempts: Attempts, folder: str) -> None:
    """One run of Tune: its workers take the searcher's tasks. `folder`: for Tune's own state, which nobody reads."""
    run, placement = driven.run, driven.placement
    progress: Any = driven.coordinator.progress
    works: Any = driven.coordinator.works
    seats: Any = driven.coordinator.seats
    actor: Any = driven.coordinator.actor
    resources = WorkerResources(placement.resources, attempts.left_out)
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(CandidateTrial, shared=shared), resources),
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=KeepWorkers(placement.workers, resources),
            num_samples=-1,
            reuse_actors=True,
            trial_name_creator=lambda trial: f"task-{trial.trial_id}",
            trial_dirname_creator=lambda trial: f"task-{trial.trial_id}",
        ),
        run_config=tune.RunConfig(
            name="search",
            storage_path=folder,
            verbose=0,
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            # The searcher decides who is tried again.
            failure_config=tune.FailureConfig(max_failures=0),
        ),
    )
    read = telling(lambda: ray.get(progress.remote(searcher.num_running, exact=False)))

    def look() -> None:
        run.stages.stand(read())
        searcher.hear(ray.get(works.remote()))
        for worker in searcher.overdue(ray.get(seats.remote())):
            ray.kill(cloudpickle.loads(ray.get(actor.remote(worker))))

    run.stages.begin(SEARCH, total=run.spec.search.trials, unit="trials", limit_s=run.spec.search.time_limit_s)
    try:
        with watched(look):
            tuner.fit()
    finally:
        run.stages.stand(None)


def _train_together(run: Run, shared: Shared, trainings: Sequence[Training], left_out: Collection[str] = ()) -> None:
    """Have groups of workers carry out the trainings, if there are to be some; nothing else runs meanwhile.

    `left_out`: ids of nodes on which the search lost workers.
    """
    placement = _place_group(run, trainings, left_out)
    if placement is None:
        return
    run.console.print(f"Training {len(trainings)} networks by {placement.reason}.", markup=False, highlight=False)
    course = GroupStages(run.stages, run.spec, trainings)
    train_together(
        shared,
        trainings,
        placement,
        again=lambda before: place_again(node_resources(but=before.left_out), before),
        tell=course.tell,
    )


def _in_one_group(run: Run, dense: Training, later: Sequence[Training]) -> list[Training]:
    """`dense`, and after it `later` if the same single group can carry them out: starting one takes half a minute.

    `later` begin with the dense network, so other groups cannot carry them out beside it.
    """
    first, second = _place_group(run, [dense]), _place_group(run, later)
    same = first is not None and second is not None and (first.workers, 1) == (second.workers, second.groups)
    return [dense, *later] if same else [dense]


def _place_group(run: Run, trainings: Sequence[Training], left_out: Collection[str] = ()) -> TrainPlacement | None:
    batch_size = min((training.batch_size(run.spec) for training in trainings), default=1)
    return place_group(run, len(trainings), batch_size, left_out)


def _are_grouped(run: Run, finalists: int, left_out: Collection[str] = ()) -> bool:
    """True if groups are to fine-tune so many finalists."""
    return place_group(run, finalists, run.spec.finalists.train.batch_size, left_out) is not None
