"""One search, from the job to the report: the driver.

    prepare -> Ray -> dense network -> [ propose -> try ]* -> fine-tune -> test split -> report

Each step is a function below, in this order. What is refused is refused before Ray is started and before the run's
folder is made; what is finished is in the store, from which `resume` goes on.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from rich.console import Console

from raprune.methods import method_named, searched_settings
from raprune.orchestration.cluster.connect import cluster, node_resources
from raprune.orchestration.cluster.placement import (
    Placement,
    TrainPlacement,
    place,
    place_again,
    place_resumed,
    place_training,
)
from raprune.orchestration.cluster.scaling import with_room
from raprune.orchestration.jobs.metadata import cluster_address, tell_best, telling
from raprune.orchestration.run import (
    Run,
    check_unchanged,
    describe,
    finish,
    keep_table,
    note_finetunings,
    say_job,
    say_latency,
    say_statistics,
    store_dense,
    stored_weights,
    under_way,
)
from raprune.pruning.allocate import ALLOCATIONS
from raprune.pruning.artifact import provenance
from raprune.pruning.preparation import InStages, Prepared, check_output, prepare, with_table
from raprune.records import Trial
from raprune.report.display import shown
from raprune.report.summary import forecast_told
from raprune.report.terminal import print_front
from raprune.results.forecast import Pace, forecast
from raprune.results.front import Row, candidates, listed, to_be_tested
from raprune.results.stages import (
    CHECK_NODES,
    JUDGE_DENSE,
    LATENCY,
    LAYER_TIMES,
    REPORT,
    SEARCH,
    START_RAY,
    START_RUN,
    STOP_RAY,
    TEST,
    TRAIN_DENSE,
    Stages,
)
from raprune.results.test_split import TEST_FILE
from raprune.sampling import warm_start
from raprune.sampling.space import search_space
from raprune.spec.automatic import decided_as
from raprune.spec.budget import accuracy_floor
from raprune.spec.job import SearchSpec
from raprune.store.folder import RUN_FILE, Store
from raprune.store.networks import is_stored, rename_finetuned

if TYPE_CHECKING:
    from raprune.orchestration.workers.scores import Missing
    from raprune.orchestration.workers.trainings import Training
    from raprune.orchestration.tasks import Shared
    from raprune.sampling.sources import Earlier, SearchSpace
    from raprune.training.loop import Epoch


def search(spec: SearchSpec, *, console: Console | None = None, stages: Stages | None = None) -> str:
    """Run the search of `spec` and return its folder. `stages`: those that are shown already on `console`.

    Raises:
        UsageError: if the job cannot be right; nothing was written then.
        RapruneError: if the run failed; what is finished is in its folder.
    """
    console = console or Console()
    store = Store(spec.output)
    check_output(store)
    with shown(console, stages) as stages:
        prepared = prepare(spec, InStages(stages))
        say_job(console, spec, prepared)
        spec = prepared.spec
        run = Run(spec, store, prepared, console, stages)
        if spec.warm_start:
            warm_start.read(spec.warm_start, _identity(prepared, prepared.given_weights))
        stages.begin(START_RAY)
        with cluster(spec.resources.address):
            resources = with_room(spec.resources, console=console)
            placement = place(node_resources(), resources, lookahead=spec.search.lookahead)
            place_training(node_resources(), spec.resources, num_networks=1)
            _preflight(run)
            run = _with_latency(_with_lookahead(run, placement), placement)
            store.create(describe(run))
            with store.locked():
                _carry_out(under_way(run), placement)
    return store.uri


def resume(
    uri: str,
    *,
    console: Console | None = None,
    placed: SearchSpec | None = None,
    stages: Stages | None = None,
) -> str:
    """Go on with the run in `uri` from what its store holds, and return its folder.

    With `placed`, data and weights are read where that says, on its cluster: they were moved.

    Raises:
        StoreError: if there is no run, or data, network or code are not those that it began with.
    """
    console = console or Console()
    store = Store(uri)
    described = store.run()
    # The folder may have been moved, and its URI may hold what was not written into it.
    spec = SearchSpec.model_validate(described["spec"] | {"output": store.uri})
    if placed is not None:
        spec = _moved(spec, placed)
    if described["state"] == "finished":
        console.print("The run is finished.")
        print_front(store.uri, console=console)
        return store.uri
    with shown(console, stages) as stages, store.locked():
        prepared = prepare(spec, InStages(stages), recorded=described)
        check_unchanged(store, described, prepared, console)
        run = under_way(Run(prepared.spec, store, prepared, console, stages))
        stages.begin(START_RAY)
        with cluster(spec.resources.address):
            resources = with_room(spec.resources, console=console)
            placement = place_resumed(node_resources(), resources, lookahead=spec.search.lookahead)
            place_training(node_resources(), spec.resources, num_networks=1)
            _preflight(run)
            run = _with_latency(run, placement)
            _carry_out(run, placement)
    return store.uri


def search_or_resume(spec: SearchSpec, *, console: Console | None = None, stages: Stages | None = None) -> str:
    """Go on with the run in the output of `spec` if it holds one, else begin it; return its folder.

    A run keeps the job that it began with: what `spec` asks for otherwise is named and left.

    Raises:
        RapruneError: as `search` and `resume`.
    """
    console = console or Console()
    store = Store(spec.output)
    if not store.is_run():
        return search(spec, console=console, stages=stages)
    console.print(f"{store.name} holds a run: it goes on.", markup=False, highlight=False)
    begun = SearchSpec.model_validate(store.run()["spec"])
    # What was left to the run, and is decided by now, is no change of the job.
    asked = decided_as(_looking_ahead(spec, spec.search.lookahead or begun.search.lookahead), begun)
    changed = _differing(_moved(begun, spec), asked)
    if changed:
        console.print(f"It keeps its own job; ignored: {', '.join(changed)}.", markup=False, highlight=False)
    return resume(spec.output, console=console, placed=spec, stages=stages)


def _moved(begun: SearchSpec, now: SearchSpec) -> SearchSpec:
    """The job of `begun` with its data, weights, cluster and page where `now` has them."""
    data = {"train": now.data.train, "validation": now.data.validation, "test": now.data.test}
    return begun.model_copy(
        update={
            "model": begun.model.model_copy(update={"weights": now.model.weights}),
            "data": begun.data.model_copy(update=data),
            "resources": begun.resources.model_copy(update={"address": now.resources.address}),
            "page": now.page,
        }
    )


def _differing(begun: SearchSpec, now: SearchSpec) -> list[str]:
    """Parts of the job that differ, but for where it is written and what it began with."""
    return [
        name
        for name in sorted(set(SearchSpec.model_fields) - {"output", "statistics", "warm_start"})
        if getattr(begun, name) != getattr(now, name)
    ]


def _earlier(run: Run, space: SearchSpace) -> Earlier | None:
    """What is taken from earlier runs: read once, then kept with the run."""
    if not run.spec.warm_start:
        return None
    if not run.store.exists(warm_start.FILE):
        now = _identity(run.prepared, run.store.run()["weights_hash"])
        taken = warm_start.reused(warm_start.read(run.spec.warm_start, now), run.spec, space, now)
        run.store.write_json(warm_start.FILE, warm_start.to_json(taken))
        names = [Store(uri).name for uri in run.spec.warm_start]
        run.console.print(warm_start.told(taken, names), markup=False, highlight=False)
    return warm_start.from_json(run.store.read_json(warm_start.FILE))


def _identity(prepared: Prepared, weights: str | None) -> warm_start.Identity:
    """What the job is on, with the hash of its dense network's weights."""
    return warm_start.Identity(prepared.graph.architecture, prepared.data.fingerprint, weights)


def _space(run: Run) -> SearchSpace:
    """What the search of the run chooses among."""
    settings = {name: searched_settings(method_named(name)) for name in run.spec.methods}
    return search_space(run.spec, run.prepared.cost, allocations=tuple(ALLOCATIONS), settings=settings)


def _preflight(run: Run) -> None:
    # Imported once the cluster's settings are made, as all that imports ray.
    from raprune.orchestration.cluster.preflight import preflight

    with run.stages.stage(CHECK_NODES):
        preflight(run.spec, run.store, console=run.console)


def _with_lookahead(run: Run, placement: Placement) -> Run:
    """The run with its lookahead decided, so that it goes on the same on however many workers."""
    lookahead = run.spec.search.lookahead_for(placement.workers)
    return replace(run, spec=_looking_ahead(run.spec, lookahead))


def _looking_ahead(spec: SearchSpec, lookahead: int | None) -> SearchSpec:
    """The job with that lookahead."""
    return spec.model_copy(update={"search": spec.search.model_copy(update={"lookahead": lookahead})})


def _with_latency(run: Run, placement: Placement) -> Run:
    """The run with its latency budget as a fraction, and costs that know latency; as it is without such a budget.

    Raises:
        BudgetError: if the budget is out of reach.
    """
    if run.spec.budget_latency is None:
        return run
    from raprune.orchestration.workers.latency import Subject, latency_table

    with run.stages.stage(LAYER_TIMES):
        table, is_new = latency_table(Subject.of(run.spec, run.prepared, placement), run.store)
    say_latency(run, table, is_new=is_new)
    spec, prepared = with_table(run.spec, run.prepared, table)
    return replace(run, spec=spec, prepared=prepared)


def _carry_out(run: Run, placement: Placement) -> None:
    """Everything that needs Ray. Whatever ends it, no actor of ours stays behind."""
    import ray

    from raprune.orchestration.coordinator import ask, find_coordinator
    from raprune.orchestration.gauges import see_off
    from raprune.orchestration.lease import held
    from raprune.orchestration.progress import published
    from raprune.orchestration.workers.scores import warm_up

    stages = run.stages
    stages.begin(START_RUN)
    if run.spec.weights is not None or stored_weights(run.store) is not None:
        # Not where a group of Ray Train may be about to take all of the cluster for the dense network.
        warm_up(placement)
    coordinator: Any = find_coordinator(run.store)
    with (
        held(coordinator, run.session, run.store.name, console=run.console),
        published(stages, run.store),
        _page(run) as note_page,
    ):
        try:
            keep_table(run)
            Store(run.spec.statistics_folder).make()
            data = ray.put(replace(run.prepared.data, test=None))
            weights = _dense_network(run, placement, data)
            note_page()
            ask(coordinator.reread.remote())
            accuracies = _search_and_finetune(run, placement, data, weights, coordinator)
            stages.begin(LATENCY)
            _time_front(run, placement, coordinator)
            stages.begin(REPORT)
            finish(run, accuracies)
            stages.begin(STOP_RAY)
            tell_best(ask(coordinator.progress.remote()))
            see_off(lambda: ask(coordinator.unexported_s.remote()))
        finally:
            ray.kill(coordinator)


def _page(run: Run) -> AbstractContextManager[Callable[[], None]]:
    """The page beside the run, where the job asks for it, or says nothing and a running cluster was joined."""
    wanted = run.spec.page.serve
    if wanted is None:
        wanted = cluster_address(run.spec.resources.address) is not None
    if not wanted:
        return nullcontext(lambda: None)
    from raprune.orchestration.served_page import beside

    return beside(run.store, run.spec.page, run.console)


def _dense_network(run: Run, placement: Placement, data: Any) -> Any:
    """A reference to the dense network's weights: those given or stored, else trained by a task of the cluster."""
    import ray

    from raprune.orchestration.workers.scores import named, phases
    from raprune.orchestration.workers.trainings import DenseTraining, PhaseTraining
    from raprune.orchestration.tasks import Dense
    from raprune.orchestration.workers.dense import prepare_dense

    stored = stored_weights(run.store)
    if stored is not None and run.store.run()["dense"]["val_accuracy"] is not None:
        return ray.put(stored)
    if stored is None and run.spec.weights is None:
        # Nothing is recorded yet: nobody asks for a coordinator.
        shared = _shared(run, placement, data, ray.put(run.prepared.weights), None)
        space = _space(run)
        methods = phases(named(run.spec, (*space.controls, *space.methods)))
        _train_together(run, shared, [DenseTraining(), *map(PhaseTraining, methods)])
        stored = stored_weights(run.store)
    resources = {"num_cpus": placement.cpus, "num_gpus": placement.gpus}
    work: Any = prepare_dense
    task = ray.remote(work).options(num_returns="streaming", max_retries=2, **resources)
    train = stored is None and run.spec.weights is None
    weights = ray.put(run.prepared.weights if stored is None else stored)
    news = task.remote(run.spec, placement, data, weights, train=train)
    if train:
        run.stages.begin(TRAIN_DENSE, total=math.ceil(run.spec.dense.epochs), unit="epochs")
    else:
        run.stages.begin(JUDGE_DENSE)
    for reference in news:
        item = _get(reference)
        if isinstance(item, Dense):
            dense = item
            continue
        _tell_epoch(run, item)
        if item.number >= item.epochs:
            run.stages.begin(JUDGE_DENSE)
    store_dense(run, dense)
    return ray.put(dense.weights)


def _tell_epoch(run: Run, epoch: Epoch) -> None:
    """An epoch of the current stage's training has ended."""
    run.stages.update(done=epoch.number, detail=f"training accuracy {epoch.accuracy:.2%}")


def _search_and_finetune(run: Run, placement: Placement, data: Any, weights: Any, coordinator: Any) -> dict[str, float]:
    """One Tune run over all phases; the accuracies on the test split, by candidate and for `dense`."""
    import ray
    from ray import tune

    from raprune.orchestration.coordinator import ask
    from raprune.orchestration.progress import watched
    from raprune.orchestration.scheduler import KeepWorkers
    from raprune.orchestration.searcher import CandidateSearcher
    from raprune.orchestration.workers.scores import Inputs, gather, missing, named
    from raprune.orchestration.workers.trainings import FinalistTraining, PhaseTraining
    from raprune.orchestration.workers.trials import CandidateTrial
    from raprune.sampling.sources import Proposals
    from raprune.sampling.stopping import Enough

    spec = run.spec
    stored = ask(coordinator.trials.remote())
    space = _space(run)
    shared = _shared(run, placement, data, weights, coordinator)
    inputs = Inputs(spec, run.prepared.graph, placement, [data], [weights], coordinator)
    methods = (*space.controls, *space.methods)
    lacking = missing(inputs, named(spec, methods))
    _forecast(run, placement, space, lacking, stored)
    if spec.resources.train_workers != 0:
        _train_together(run, shared, [PhaseTraining(method) for method in lacking.phases])
    gathered = gather(inputs, methods, run.stages)
    say_statistics(run, gathered)
    shared = replace(shared, statistics=ray.put(gathered.arrays))
    enough = Enough(
        spec.search,
        stored,
        workers=placement.workers,
        devices=placement.gpus or placement.cpus,
        cost=spec.cost,
        already=run.store.run().get("stopped"),
    )
    searcher = CandidateSearcher(
        spec,
        Proposals(space, spec.search, seed=spec.seed, stored=stored, earlier=_earlier(run, space), enough=enough),
        stored,
        record=lambda trial: ask(coordinator.record.remote([trial], run.session)),
        plan_test=partial(_plan_test, run, placement, coordinator),
        spend=enough.spend,
        chosen=partial(_note_finetunings, run, coordinator),
        grouped=lambda networks: _place_group(run, networks) is not None,
        workers=placement.workers,
        stages=run.stages,
        floor=accuracy_floor(spec.min_accuracy, spec.max_drop, run.store.run()["dense"]["val_accuracy"]),
    )
    folder = tempfile.mkdtemp(prefix="raprune-")
    try:
        tuner = tune.Tuner(
            tune.with_resources(
                tune.with_parameters(CandidateTrial, shared=shared), {"cpu": placement.cpus, "gpu": placement.gpus}
            ),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=KeepWorkers(placement.workers),
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
        read = telling(lambda: ray.get(coordinator.progress.remote(searcher.num_running)))

        def look() -> None:
            run.stages.stand(read())
            searcher.hear(ray.get(coordinator.works.remote()))

        run.stages.begin(SEARCH, total=spec.search.trials, unit="trials", limit_s=spec.search.time_limit_s)
        with watched(look):
            tuner.fit()
    finally:
        run.stages.stand(None)
        shutil.rmtree(folder, ignore_errors=True)
    if searcher.failure is not None:
        raise searcher.failure
    if enough.reason is not None:
        run.store.write_json(RUN_FILE, run.store.run() | {"stopped": enough.reason})
        run.console.print(f"The search ended early: {enough.reason}.", markup=False, highlight=False)
    if searcher.waiting:
        _train_together(run, shared, [FinalistTraining(task) for task in searcher.waiting])
        return _test(run, shared, placement, coordinator)
    return searcher.test


def _note_finetunings(run: Run, coordinator: Any, number: int) -> None:
    from raprune.orchestration.coordinator import ask

    note_finetunings(run, number)
    ask(coordinator.reread.remote())


def _forecast(run: Run, placement: Placement, space: SearchSpace, lacking: Missing, stored: Sequence[Trial]) -> None:
    """Say about how long what is left will take; nothing where the speed of the dense network was not measured."""
    from raprune.orchestration.plan import plan_of
    from raprune.orchestration.workers.scores import named

    measured = run.store.run().get("pace")
    if measured is None:
        # The run was begun by a version that did not measure it.
        return
    plan = plan_of(
        run.spec,
        data=run.prepared.data,
        graph=run.prepared.graph,
        space=space,
        methods=named(run.spec, (*space.controls, *space.methods)),
        lacking=lacking,
        stored=stored,
        placement=placement,
        grouped=_place_group(run, max(1, run.spec.finalists.count)) is not None,
    )
    expected = forecast(Pace(**measured), plan)
    run.stages.expect(expected)
    run.console.print(forecast_told(expected), markup=False, highlight=False)


def _train_together(run: Run, shared: Shared, trainings: Sequence[Training]) -> None:
    """Have a group of workers carry out the trainings, if there is to be one; nothing else runs meanwhile."""
    placement = _place_group(run, len(trainings))
    if placement is None:
        return
    from raprune.orchestration.workers.groups import Course, train_together

    run.console.print(f"Training by {placement.reason}: {len(trainings)} networks.", markup=False, highlight=False)
    course = Course(run.stages, run.spec, trainings)
    train_together(
        shared,
        trainings,
        placement,
        again=lambda before: place_again(node_resources(), before),
        tell=course.tell,
    )


def _place_group(run: Run, num_networks: int) -> TrainPlacement | None:
    return place_training(node_resources(), run.spec.resources, num_networks=num_networks)


def _test(run: Run, shared: Shared, placement: Placement, coordinator: Any) -> dict[str, float]:
    """The accuracies on the test split, by tasks of the cluster: the search's workers are gone."""
    import ray

    from raprune.orchestration.cluster.failures import RETRIES_AFTER_LOSS
    from raprune.orchestration.workers.trials import evaluate_on_test

    work: Any = ray.remote(evaluate_on_test)
    resources = {"num_cpus": placement.cpus, "num_gpus": placement.gpus}
    task = work.options(max_retries=RETRIES_AFTER_LOSS, **resources)
    tests = [task.remote([shared], test) for test in _plan_test(run, placement, coordinator)]
    accuracies: dict[str, float] = {}
    with run.stages.stage(TEST, total=len(tests), unit="tasks"):
        for test in tests:
            accuracies |= _get(test)
            run.stages.step()
    return accuracies


def _shared(run: Run, placement: Placement, data: Any, weights: Any, coordinator: Any) -> Shared:
    """What the workers share, before anything was computed."""
    import ray

    from raprune.orchestration.tasks import Shared

    return Shared(
        spec=run.spec,
        graph=run.prepared.graph,
        placement=placement,
        data=data,
        weights=weights,
        statistics=ray.put({}),
        coordinator=coordinator,
        store=run.store,
        session=run.session,
        provenance=provenance(run.spec, run.prepared.data),
        latency=run.prepared.cost.table,
    )


def _plan_test(run: Run, placement: Placement, coordinator: Any) -> list[Any]:
    """Tasks that store the networks of the final front, as far as the run does not, and measure the test split.

    That is measured for the dense network, the front and the best of each method. They are spread over the workers.
    """
    import ray

    from raprune.orchestration.coordinator import ask
    from raprune.orchestration.tasks import Look, TestTask

    trials = ask(coordinator.trials.remote())
    described = run.store.run()
    test = None if run.store.exists(TEST_FILE) else run.prepared.data.test
    tested = [] if test is None else _behind(to_be_tested(trials, described))
    kept: list[str] = []
    if run.spec.store_front:
        rename_finetuned(run.store, trials)
        shown = _behind(listed(candidates(trials), described))
        kept = [t.trial_id for t in trials if t.trial_id in shown and not is_stored(run.store, t)]
    looks = [
        Look(proposal=trial.proposal, keep=trial.trial_id in kept, test=trial.trial_id in tested)
        for trial in trials
        if trial.trial_id in (*kept, *tested)
    ]
    split = [] if test is None else [ray.put(test)]
    count = min(placement.workers, len(looks) + len(split))
    return [
        TestTask(number=number, split=split, dense=number == 0, looks=tuple(looks[number::count]))
        for number in range(count)
    ]


def _behind(rows: Sequence[Row]) -> list[str]:
    """Ids of the trials behind the rows."""
    return [trial_id for row in rows for trial_id in row["trials"]]


def _time_front(run: Run, placement: Placement, coordinator: Any) -> None:
    """Measure the networks of the final front whole: fewer FLOPs need not be faster."""
    from raprune.orchestration.coordinator import ask
    from raprune.orchestration.workers.latency import Subject, measure_front

    subject = Subject.of(run.spec, run.prepared, placement)
    measure_front(subject, run.store, ask(coordinator.trials.remote()))


def _get(reference: Any) -> Any:
    """What a task of a trial's size gives."""
    from raprune.orchestration.remote import answer

    return answer(
        reference,
        lost="A worker was lost again and again",
        hint="It may have run out of memory; give it more, or use smaller batches.",
    )
