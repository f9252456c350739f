"""Size of a search that is about to begin, and the forecast of its duration that is told from it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields
from itertools import pairwise
from statistics import mean

from raprune.data.dataset import Dataset
from raprune.methods import Method
from raprune.orchestration.cluster.placement import Placement
from raprune.orchestration.run import Run
from raprune.orchestration.workers.scores import Missing, epochs_of, named
from raprune.records import Stage, Trial
from raprune.report.summary import forecast_told
from raprune.results.forecast import Pace, Plan, forecast
from raprune.sampling.space import SearchSpace
from raprune.spec.job import SamplerSpec, SearchSpec


def tell_forecast(
    run: Run,
    placement: Placement,
    *,
    space: SearchSpace,
    lacking: Missing,
    stored: Sequence[Trial],
    grouped: bool,
) -> None:
    """Print how long the rest of the run will take, unless the speed of the dense network was not measured.

    `lacking`, `stored`, `grouped`: as for `plan_of`.
    """
    measured = run.store.record().pace
    if measured is None:
        # The run was begun by a version that did not measure it.
        return
    plan = plan_of(
        run.spec,
        data=run.prepared.data,
        space=space,
        methods=named(run.spec, (*space.baselines, *space.methods)),
        lacking=lacking,
        stored=stored,
        placement=placement,
        grouped=grouped,
    )
    expected = forecast(Pace(forward_s=measured.forward_s, step_s=measured.step_s), plan)
    run.stages.expect(expected)
    run.console.print(forecast_told(expected), markup=False, highlight=False)


def plan_of(
    spec: SearchSpec,
    *,
    data: Dataset,
    space: SearchSpace,
    methods: Sequence[Method],
    lacking: Missing,
    stored: Sequence[Trial],
    placement: Placement,
    grouped: bool,
) -> Plan:
    """Plan of the search of `spec`, without the trials that are `stored` and the statistics that are not `lacking`.

    `grouped`: a group of Ray Train fine-tunes the finalists.
    """
    asked_for = [trial for trial in stored if trial.proposal.step is None]
    tuned = sum(trial.proposal.stage is Stage.FINETUNE for trial in asked_for)
    searched = sum(trial.proposal.stage is Stage.SEARCH and trial.proposal.rung == 0 for trial in asked_for)
    # The first finalist ends the search, however many trials it had.
    trials = 0 if tuned else max(0, spec.search.trials - searched)
    finalists = min(spec.finalists.count, spec.search.trials)
    if spec.finalists.each_method and finalists:
        finalists = min(finalists + len(methods), spec.search.trials)
    looking = [method for method in lacking.scores.values() if not method.data_free]
    train = spec.finalists.train.decided()
    again = {number: _other_scores(method) for number, method in enumerate(methods) if not method.data_free}
    return Plan(
        workers=placement.workers,
        train_images=data.num_train,
        validation_images=len(data.validation),
        test_images=0 if data.test is None else len(data.test),
        calibration_images=min(spec.search.calibration, len(data.train)),
        trials=trials,
        fraction=(space.lowest + space.highest) / 2,
        refits=mean(type(method).repair is not Method.repair for method in methods),
        trial_epochs=mean(_path_epochs(method) for method in methods) + _rung_epochs(spec.search),
        limit_s=spec.search.time_limit_s,
        phase_epochs=sum(epochs_of(method) for method in lacking.phases),
        scored=len(looking),
        rescored=sum(again.values()),
        finetunings=max(0, math.ceil(finalists * _trainings_each(spec, methods)) - tuned),
        finetuning_epochs=train.epochs,
        teacher=train.distillation > 0 or train.features != 0,
        latency_repeats=spec.latency.repeats,
        grouped=grouped,
    )


def _other_scores(method: Method) -> int:
    """Settings with scores of their own that the sampler can choose, beside the default ones."""
    choices = (
        len(entry.metadata.get("search", {}).get("choices", (None,)))
        for entry in fields(method)
        if not entry.metadata.get("repair")
    )
    return math.prod(choices) - 1


def _path_epochs(method: Method) -> float:
    """Epochs that a trial of a method trains that trains while it cuts, as far as its settings say."""
    if not method.has_path():
        return 0.0
    return math.fsum(getattr(method, entry.name) for entry in fields(method) if entry.name.endswith("epochs"))


def _trainings_each(spec: SearchSpec, methods: Sequence[Method]) -> float:
    """Fine-tunings of the mean finalist: by seeds, and by numbers of cuts where the search trained nothing before."""
    is_cut_at_once = len(spec.search.rungs) > 1
    ways = mean(1 if is_cut_at_once or method.has_path() else len(spec.finalists.steps) for method in methods)
    return spec.finalists.seeds * ways


def _rung_epochs(search: SamplerSpec) -> float:
    """Epochs on rungs of the mean trial."""
    steps = (after - before for before, after in pairwise(search.rungs))
    return math.fsum(step * search.keep**number for number, step in enumerate(steps, start=1))
