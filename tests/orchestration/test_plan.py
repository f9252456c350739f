"""Size of a search that is about to begin."""

from __future__ import annotations

from dataclasses import replace

from raprune.methods import method_named, searched_settings
from raprune.orchestration.cluster.placement import Placement
from raprune.orchestration.plan import plan_of
from raprune.orchestration.workers.scores import Missing, named
from raprune.pruning.allocate import by_default
from raprune.pruning.preparation import prepare
from raprune.records import Proposal, Stage, Trial, TrialState
from raprune.results.forecast import Plan
from raprune.sampling.space import search_space
from raprune.spec.budget import Budget
from raprune.spec.job import SearchSpec

SPEC = SearchSpec.model_validate(
    {
        "model": {"name": "digits-net"},
        "data": {"name": "digits", "max_images": 400},
        "budget_flops": 0.3,
        "methods": ["reconstruction", "l2"],
        "search": {"trials": 20, "calibration_images": 64, "rungs": [0, 2, 6], "keep": 0.5},
        "finalists": {"count": 4, "seeds": 2, "train": {"epochs": 3.0, "lr": 0.01}},
    }
)


def planned(*stored: Trial, spec: SearchSpec = SPEC) -> Plan:
    prepared = prepare(spec)
    space = search_space(
        spec,
        prepared.cost,
        allocations=by_default(),
        settings={name: searched_settings(method_named(name)) for name in spec.methods},
    )
    methods = named(spec, (*space.baselines, *space.methods))
    return plan_of(
        spec,
        data=prepared.data,
        space=space,
        methods=methods,
        lacking=Missing([], {"scores-a": methods[-2], "scores-b": methods[-1]}),
        stored=stored,
        placement=Placement(workers=2, cpus=1.0, gpus=0.0, reason="a test"),
        grouped=False,
    )


def test_plan_counts_trials_scores_epochs_and_finalists() -> None:
    plan = planned()
    assert (plan.workers, plan.trials, plan.calibration_images) == (2, 20, 64)
    # l2 looks at no images.
    assert (plan.scored, plan.rescored) == (1, 1)
    # The front's four and the best of four methods, by two seeds each.
    assert (plan.finetunings, plan.finetuning_epochs) == (16, 3.0)
    assert plan.trial_epochs == 2 * 0.5 + 4 * 0.25
    assert plan.refits == 0.25 and 0.15 < plan.fraction < 0.3


def test_plan_of_a_resumed_run_is_what_is_left() -> None:
    proposal = Proposal(number=0, method="l2", allocation="uniform", target=Budget(flops=0.2))
    trial = Trial(trial_id=proposal.trial_id, proposal=proposal, state=TrialState.COMPLETE)
    assert planned(trial).trials == 19
    finalist = replace(proposal, stage=Stage.FINETUNE)
    tuned = Trial(trial_id=finalist.trial_id, proposal=finalist, state=TrialState.COMPLETE)
    left = planned(trial, tuned)
    assert left.trials == 0 and left.finetunings == 15


def test_plan_counts_every_finalist_by_each_number_of_cuts_where_no_trial_was_trained_before() -> None:
    finalists = SPEC.finalists.model_copy(update={"steps": (1, 3)})
    at_once = SPEC.search.model_copy(update={"rungs": (0.0,)})
    assert planned(spec=SPEC.model_copy(update={"finalists": finalists})).finetunings == 16
    assert planned(spec=SPEC.model_copy(update={"finalists": finalists, "search": at_once})).finetunings == 32
