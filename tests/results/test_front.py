"""The front, the pick and the progress of a handful of trials worked by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raprune.errors import RapruneError
from raprune.records import Candidate, Proposal, Stage, Trial, TrialState
from raprune.results.ablation import ablation, to_be_tested
from raprune.results.front import choose, front, listed, pick
from raprune.results.progress import Growth, progress, spent
from raprune.results.rows import candidates
from raprune.results.test_split import SplitAccuracies
from raprune.spec.budget import Budget
from raprune.store.record import RunRecord
from tests.factories import FRONT_RUN as RUN
from tests.factories import front_trial as trial
from tests.factories import repeats


def failed(number: int) -> Trial:
    proposal = Proposal(number=number, method="l1", allocation="uniform", target=Budget(flops=0.3))
    return Trial(trial_id=proposal.trial_id, proposal=proposal, state=TrialState.FAILED, error="boom", started_at=120.0)


def test_front_has_the_candidates_that_no_other_dominates() -> None:
    trials = [trial(0, 0.9, 0.3), trial(1, 0.8, 0.1), trial(2, 0.7, 0.2), trial(3, 0.9, 0.31), failed(4)]
    assert [r.trial_id for r in front(trials)] == ["search-00001", "search-00000"]
    assert [r.on_front for r in candidates(trials)] == [True, False, True, False]


def test_row_of_a_candidate_has_its_cost_and_accuracies() -> None:
    test = SplitAccuracies(dense=0.97, candidates={trial(0, 0.9, 0.3).candidate.id: 0.95}, images=100)  # type: ignore[union-attr]
    (row,) = front([trial(0, 0.9, 0.3)], test=test)
    assert row.candidate == trial(0, 0.9, 0.3).candidate.id  # type: ignore[union-attr]
    assert (row.method, row.flops, row.flops_fraction, row.params_fraction) == ("l2", 300, 0.3, 0.2)
    assert (row.val_accuracy, row.test_accuracy, row.dense_test_accuracy) == (0.9, 0.95, 0.97)
    (untested,) = front([trial(0, 0.9, 0.3)])
    assert untested.test_accuracy is None and untested.dense_test_accuracy is None


@pytest.mark.parametrize(("finetuned_to", "on_front"), [(0.85, "repaired"), (0.95, "fine-tuned"), (0.9, "repaired")])
def test_repaired_and_fine_tuned_networks_are_candidates_of_their_own(finetuned_to: float, on_front: str) -> None:
    searched = trial(0, 0.9, 0.3)
    finetuned = trial(7, finetuned_to, 0.3, stage=Stage.FINETUNE, epochs=2.0, width=1)
    names = {"repaired": searched.name, "fine-tuned": f"{searched.name}-ft"}
    for trials in ([searched, finetuned], [finetuned, searched]):
        rows = {r.candidate: r for r in candidates(trials)}
        assert set(rows) == set(names.values())
        assert [r.candidate for r in front(trials)] == [names[on_front]], "at a tie the one that was not trained"
        assert pick(list(rows.values()), Budget()).candidate == names[on_front]
        tuned = rows[names["fine-tuned"]]
        assert (tuned.val_accuracy, tuned.epochs, tuned.parent) == (finetuned_to, 2.0, searched.name)
        assert rows[searched.name].parent is None


def test_names_of_networks_are_unique_in_a_run() -> None:
    searched = trial(1, 0.5, 0.2)
    three = repeats(1, [0.90, 0.96, 0.93], flops=0.2, parent=searched.trial_id)
    names = [t.network for t in (searched, *three)]
    assert names == [searched.name, f"{searched.name}-ft", f"{searched.name}-ft-s1", f"{searched.name}-ft-s2"]
    assert {t.name for t in three} == {f"{searched.name}-ft"}
    in_cuts = [replace(t, proposal=replace(t.proposal, cuts=3)) for t in three]
    names = [t.network for t in in_cuts]
    assert names == [f"{searched.name}-ft-c3", f"{searched.name}-ft-c3-s1", f"{searched.name}-ft-c3-s2"]
    assert {t.name for t in in_cuts} == {f"{searched.name}-ft-c3"}
    assert len({t.proposal.trial_id for t in (*three, *in_cuts)}) == 6


def test_several_trials_of_one_candidate_count_as_the_best_of_them() -> None:
    worse, better, same = trial(0, 0.8, 0.3, width=5), trial(1, 0.9, 0.3, width=5), trial(2, 0.9, 0.3, width=5)
    for trials in ([worse, better, same], [same, better, worse]):
        (row,) = candidates(trials)
        assert (row.trial_id, row.val_accuracy) == ("search-00001", 0.9)


def test_candidates_over_the_budget_are_off_its_front() -> None:
    trials = [trial(0, 0.9, 0.3), trial(1, 0.95, 0.5), trial(2, 0.8, 0.1, params=0.6)]
    assert [r.trial_id for r in front(trials, Budget(flops=0.3, params=0.5))] == ["search-00000"]


def test_pick_within_a_budget_is_the_most_accurate() -> None:
    rows = candidates([trial(0, 0.9, 0.3), trial(1, 0.8, 0.1), trial(2, 0.8, 0.2)])
    assert pick(rows, Budget(flops=0.3)).trial_id == "search-00000"
    assert pick(rows, Budget(flops=0.25)).trial_id == "search-00001"
    assert pick(rows, Budget()).trial_id == "search-00000"


def test_pick_with_a_minimum_accuracy_is_the_cheapest() -> None:
    rows = candidates([trial(0, 0.9, 0.3), trial(1, 0.8, 0.1), trial(2, 0.85, 0.2)])
    assert pick(rows, Budget(flops=0.3), min_accuracy=0.82).trial_id == "search-00002"


def test_pick_without_a_match_names_the_nearest() -> None:
    rows = candidates([trial(0, 0.9, 0.3), trial(1, 0.8, 0.1)])
    with pytest.raises(RapruneError, match=r"within 5\.0% of the dense network's FLOPs: the smallest"):
        pick(rows, Budget(flops=0.05))
    with pytest.raises(RapruneError, match=r"the best, \w+, has 0\.9000"):
        pick(rows, Budget(flops=0.3), min_accuracy=0.95)
    with pytest.raises(RapruneError, match="no complete trial"):
        pick([], Budget(flops=0.3))


def asked(methods: list[str], *, images: int | None = 100, **spec: Any) -> dict[str, Any]:
    """The content of `run.json`: 30 % of the FLOPs asked for. On 100 images 0.9 has a standard error of 0.03."""
    return {
        "spec": {"budget_flops": 0.3, "methods": methods} | spec,
        "dense": {"val_accuracy": 0.95, "val_images": images},
    }


@pytest.mark.parametrize(
    ("baseline", "methods", "images", "starred"),
    [
        (0.90, ["l2"], 100, "search-00001"),  # behind by 0.02, within 0.03
        (0.90, ["l2", "random"], 100, "search-00000"),  # asked for: a method like the others
        (0.90, ["l2"], 10_000, "search-00000"),  # on so many images 0.003
        (0.88, ["l2"], None, "search-00001"),
        (0.89, ["l2"], None, "search-00000"),
    ],
)
def test_baseline_has_the_star_only_if_ahead_by_more_than_its_standard_error(
    baseline: float, methods: list[str], images: int | None, starred: str
) -> None:
    trials = [trial(0, baseline, 0.2, method="random"), trial(1, 0.88, 0.25), trial(2, 0.87, 0.1), trial(3, 0.99, 0.5)]
    run = asked(methods, images=images)
    chosen = choose(candidates(trials), RunRecord.model_validate(run))
    assert chosen is not None and chosen.trial_id == starred
    best = progress(RunRecord.model_validate(run), trials).best
    assert best is not None and best.trial_id == starred
    assert pick(candidates(trials), Budget(flops=0.3)).val_accuracy == max(baseline, 0.88)


def test_starred_network_that_a_baseline_dominates_is_listed_beside_the_front() -> None:
    trials = [trial(0, 0.90, 0.2, method="random"), trial(1, 0.88, 0.25), trial(2, 0.80, 0.1), trial(3, 0.7, 0.15)]
    run = asked(["l2"])
    shown = [(r.trial_id, r.on_front, r.starred) for r in listed(candidates(trials), RunRecord.model_validate(run))]
    assert shown == [
        ("search-00002", True, False),
        ("search-00000", True, False),
        ("search-00001", False, True),
    ]
    assert "search-00001" in {r.trial_id for r in to_be_tested(trials, RunRecord.model_validate(run))}
    assert listed([], RunRecord.model_validate(run)) == [] and choose([], RunRecord.model_validate(run)) is None


@pytest.mark.parametrize(("floor", "starred"), [(0.85, "search-00001"), (0.89, "search-00000"), (0.95, "search-00001")])
def test_baseline_has_the_star_if_it_alone_has_the_accuracy_asked_for(floor: float, starred: str) -> None:
    trials = [trial(0, 0.90, 0.2, method="random"), trial(1, 0.88, 0.25), trial(2, 0.80, 0.1)]
    chosen = choose(candidates(trials), RunRecord.model_validate(asked(["l2"], min_accuracy=floor)))
    assert chosen is not None and chosen.trial_id == starred


def test_progress_of_a_run_counts_recorded_and_waiting_trials() -> None:
    trials = [trial(0, 0.9, 0.2), trial(1, 0.8, 0.1), failed(2), trial(0, 0.95, 0.2, stage=Stage.FINETUNE, width=1)]
    now = progress(RunRecord.model_validate(RUN), trials, running=2, live=True, now=130.0)
    assert now.states == {"COMPLETE": 3, "FAILED": 1, "RUNNING": 2, "WAITING": 3}
    assert (now.searched, now.trials, now.finetuned, now.finetunings, now.front) == (3, 8, 1, None, 2)
    assert now.hypervolume == pytest.approx((0.8 * 0.1 + 0.95 * 0.1) / 0.3)
    assert now.best is not None and now.best.val_accuracy == 0.95
    assert now.dense_accuracy == 0.98
    assert now.elapsed_s == 30.0
    assert now.left_s == pytest.approx((120.0 - 110.0) / 3 * 5)
    assert progress(RunRecord.model_validate(RUN), trials).elapsed_s == pytest.approx(20.0)


def test_progress_after_the_choice_has_the_number_of_fine_tunings() -> None:
    """The best of each method is fine-tuned beside the two finalists."""
    trials = [trial(n, 0.9, 0.2, stage=Stage.FINETUNE, epochs=1.0) for n in range(3)]
    assert progress(RunRecord.model_validate(RUN | {"finetunings": 4}), trials).finetunings == 4
    before = RUN | {"state": "finished", "finished_at": 200.0}
    now = progress(RunRecord.model_validate(before), trials)
    assert (now.finetuned, now.finetunings) == (3, 3), "a run that was written before the number was"


def test_progress_of_a_run_that_has_just_begun_is_empty() -> None:
    now = progress(RunRecord.model_validate(RUN), [], live=True, now=101.0)
    assert (now.front, now.hypervolume, now.best, now.left_s, now.elapsed_s) == (0, 0.0, None, None, 1.0)
    assert now.states == {"WAITING": 8}


def test_time_left_with_a_time_limit_is_bounded() -> None:
    spec = RUN["spec"] | {"search": {"trials": 8, "time_limit_s": 33.0}}
    now = progress(RunRecord.model_validate(RUN | {"spec": spec}), [trial(0, 0.9, 0.2)], live=True, now=130.0)
    assert now.left_s == pytest.approx(3.0)


def test_steps_of_a_path_are_candidates_but_no_trials_that_were_asked_for() -> None:
    trials = [trial(0, 0.7, 0.2, step=0), trial(0, 0.6, 0.1, step=1, width=3), trial(0, 0.5, 0.05, width=2)]
    now = progress(RunRecord.model_validate(RUN), trials)
    assert (now.searched, now.steps, now.finetuned, now.front) == (1, 2, 0, 3)
    assert now.states == {"COMPLETE": 1, "WAITING": 7}


def test_ablation_has_the_best_of_each_method_within_each_budget() -> None:
    trials = [
        trial(0, 0.80, 0.30),
        trial(1, 0.75, 0.18),
        trial(2, 0.70, 0.12),
        trial(3, 0.90, 0.25, method="random"),
        trial(4, 0.72, 0.20, method="random"),
        trial(5, 0.99, 0.40, method="random"),
        failed(6),
    ]
    table = ablation(trials, Budget(flops=0.3))
    found = [(round(r.limit, 3), r.method, r.best.val_accuracy) for r in table]
    assert found == [
        (0.3, "random", 0.90),
        (0.3, "l2", 0.80),
        (0.2, "l2", 0.75),
        (0.2, "random", 0.72),
        (0.15, "l2", 0.70),
    ]
    assert {r.finetuning_epochs for r in table} == {0.0}


def test_ablation_of_methods_that_train_themselves_compares_after_equal_fine_tuning() -> None:
    trials = [
        trial(0, 0.80, 0.2),
        trial(1, 0.85, 0.2, method="slimming", epochs=10.0),
        trial(0, 0.90, 0.2, stage=Stage.FINETUNE, epochs=5.0, width=1, parent="search-00000"),
        trial(1, 0.91, 0.2, stage=Stage.FINETUNE, epochs=15.0, width=2, parent="search-00001", method="slimming"),
    ]
    table = ablation(trials, Budget(flops=0.2))
    found = [(r.finetuning_epochs, r.method, r.best.epochs, r.best.val_accuracy) for r in table]
    assert found == [
        (0.0, "slimming", 10.0, 0.85),
        (0.0, "l2", 0.0, 0.80),
        (5.0, "slimming", 15.0, 0.91),
        (5.0, "l2", 5.0, 0.90),
    ]


def test_ablation_of_a_budget_of_parameters_shrinks_the_parameters() -> None:
    trials = [trial(0, 0.8, 0.3, params=0.4), trial(1, 0.7, 0.9, params=0.2)]
    table = ablation(trials, Budget(params=0.4))
    assert [(r.budget.flops, round(r.limit, 3), r.best.val_accuracy) for r in table] == [
        (None, 0.4, 0.8),
        (None, 0.267, 0.7),
        (None, 0.2, 0.7),
    ]


def test_row_counts_parameters_that_are_zero() -> None:
    (plain,) = front([trial(0, 0.9, 0.3)])
    assert (plain.zeros, plain.nonzero_fraction) == (0, 0.2)
    (pruned,) = front([replace(trial(0, 0.9, 0.3), metrics=replace(trial(0, 0.9, 0.3).metrics, zeros=15))])  # type: ignore[type-var]
    assert pruned.zeros == 15 and pruned.nonzero_fraction == pytest.approx(0.05)


def test_network_whose_weights_were_pruned_one_by_one_is_on_the_front() -> None:
    dense, nearly, half = trial(0, 0.90, 0.2), trial(1, 0.89, 0.2), trial(2, 0.88, 0.2)
    assert nearly.metrics is not None and half.metrics is not None
    trials = [
        dense,
        replace(nearly, metrics=replace(nearly.metrics, params=1000, zeros=1)),
        replace(half, metrics=replace(half.metrics, params=1000, zeros=500)),
    ]
    assert [r.trial_id for r in front(trials)] == [dense.trial_id, half.trial_id]


def test_row_of_a_step_of_a_path_has_the_settings_of_the_step() -> None:
    candidate = Candidate("l2", {"conv1": (0,)}, {"power": 2, "evaluations": 20})
    (found,) = candidates([replace(trial(0, 0.9, 0.3), candidate=candidate)])
    assert found.settings == {"power": 2, "evaluations": 20}


def test_networks_to_be_tested_are_the_front_and_the_best_of_each_method() -> None:
    trials = [
        trial(0, 0.90, 0.2),
        trial(1, 0.80, 0.1),
        trial(2, 0.70, 0.2, method="random"),
        trial(3, 0.60, 0.2, method="random"),
        trial(9, 0.95, 0.2, stage=Stage.FINETUNE, epochs=1.0, width=1, parent="search-00000"),
    ]
    run = {"spec": {"budget_flops": 0.2, "methods": ["l2"]}}
    assert {r.trial_id for r in to_be_tested(trials, RunRecord.model_validate(run))} == {
        "finetune-00009",
        "search-00001",
        "search-00002",
    }


def test_networks_to_be_tested_include_a_repaired_one_of_the_front_that_was_fine_tuned() -> None:
    trials = [
        trial(0, 0.90, 0.2),
        trial(9, 0.85, 0.2, stage=Stage.FINETUNE, epochs=1.0, width=1, parent="search-00000"),
    ]
    rows = to_be_tested(trials, RunRecord.model_validate(RUN | {"spec": {"budget_flops": 0.2}}))
    assert {r.trial_id for r in rows} == {"search-00000", "finetune-00009"}, "the front, and the best of the method"


def test_repaired_network_lacks_the_test_accuracy_of_the_fine_tuned_one() -> None:
    trials = [
        trial(0, 0.90, 0.2),
        trial(9, 0.95, 0.2, stage=Stage.FINETUNE, epochs=1.0, width=1, parent="search-00000"),
    ]
    rows = ablation(trials, Budget(flops=0.2), test=SplitAccuracies(candidates={trials[1].network: 0.94}))
    assert [(r.finetuning_epochs, r.best.test_accuracy) for r in rows] == [(0.0, None), (1.0, 0.94)]


def test_finalist_of_several_seeds_counts_by_its_mean() -> None:
    three = repeats(1, [0.90, 0.96, 0.93], flops=0.2, parent="search-00001")
    one = trial(2, 0.94, 0.2, stage=Stage.FINETUNE, epochs=20)
    searched = trial(1, 0.5, 0.2)
    rows = {r.method + r.trial_id[:14]: r for r in candidates([searched, *three, one])}
    mean = rows["l2finetune-00001"]
    assert mean.val_accuracy == pytest.approx(0.93) and mean.repeats == (0, 1, 2)
    # Student's t for two degrees of freedom: 4.303 * 0.03 / sqrt(3).
    assert mean.val_interval == pytest.approx(0.07453, abs=1e-5)
    assert rows["l2finetune-00002"].val_interval is None and rows["l2finetune-00002"].on_front
    assert not mean.on_front, "its best seed alone would be"


def test_test_accuracy_of_repeats_needs_every_repeat() -> None:
    three = repeats(1, [0.90, 0.96, 0.93], flops=0.2, parent="search-00001")
    name = three[0].network
    tested = {name: 0.9, f"{name}-s1": 0.92, f"{name}-s2": 0.94}
    top_5 = {network: {"top-5 accuracy": value + 0.05} for network, value in tested.items()}
    (row,) = candidates(three, test=SplitAccuracies(dense=0.97, candidates=tested, further=top_5))
    assert row.test_further == {"top-5 accuracy": pytest.approx(0.97)}
    assert row.test_accuracy == pytest.approx(0.92) and row.test_interval == pytest.approx(0.04968, abs=1e-5)
    del tested[f"{name}-s1"]
    (row,) = candidates(three, test=SplitAccuracies(dense=0.97, candidates=tested))
    assert row.test_accuracy is None and row.test_interval is None


def test_stopped_trial_is_on_no_front_and_counts_at_its_last_rung() -> None:
    below = [replace(trial(n, 0.99, 0.1), state=TrialState.STOPPED) for n in range(3)]
    went_on = replace(below[0].proposal, rung=1, parent=below[0].trial_id)
    last = replace(below[0], trial_id=went_on.trial_id, proposal=went_on, state=TrialState.COMPLETE, epochs=2)
    assert [r.trial_id for r in front([*below, last])] == ["search-00000-r1"]
    now = progress(RunRecord.model_validate(RUN), [*below, last])
    assert now.searched == 3 and now.states == {"COMPLETE": 1, "STOPPED": 2, "WAITING": 5}
    assert [r.finetuning_epochs for r in ablation([*below, last], Budget(flops=0.3))] == [2.0] * 3


def test_spent_work_counts_every_trial_and_shows_the_gain() -> None:
    def at(number: int, accuracy: float, ended: float, **more: Any) -> Trial:
        return replace(trial(number, accuracy, 0.15), started_at=ended - 360, seconds=360, gpu_seconds=180, **more)

    trials = [
        at(2, 0.7, 3000),
        at(0, 0.5, 1000),
        at(1, 0.99, 2000, state=TrialState.STOPPED),
        at(3, 0.6, 4000),
        replace(trial(4, 0.9, 0.31), started_at=5000),
    ]
    first, second = spent(trials, Budget(flops=0.3))
    assert (first.trial_id, first.hours, first.gpu_hours) == ("search-00000", 0.1, 0.05)
    assert second.trial_id == "search-00002" and second.hours == pytest.approx(0.3)
    # Half the errors and half the FLOPs of the budget are a quarter of the area.
    assert first.hypervolume == pytest.approx(0.25) and second.hypervolume == pytest.approx(0.35)
    assert second.val_accuracy == pytest.approx(0.7)


def test_front_of_a_latency_budget_compares_latency() -> None:
    def timed(number: int, accuracy: float, flops: float, latency: float) -> Trial:
        made = trial(number, accuracy, flops)
        assert made.metrics is not None
        return replace(made, metrics=replace(made.metrics, latency_ms=10 * latency, latency_fraction=latency))

    trials = [timed(0, 0.9, 0.1, 0.5), timed(1, 0.9, 0.4, 0.2), timed(2, 0.95, 0.3, 0.6), trial(3, 0.99, 0.2)]
    assert [r.trial_id for r in front(trials, Budget(latency=0.5))] == ["search-00001"]
    assert [r.trial_id for r in front(trials, Budget(flops=0.35, latency=0.6))] == ["search-00000", "search-00002"]
    with pytest.raises(RapruneError, match=r"No candidate is within 10.0% of the dense network's latency"):
        pick(candidates(trials), Budget(latency=0.1))
    asked = {"spec": {"budget_latency": 0.5, "search": {"trials": 4}}}
    # A tenth of errors less, three fifths of the half less.
    assert progress(RunRecord.model_validate(asked), trials).hypervolume == pytest.approx(0.9 * 0.6)
    table = ablation(trials, Budget(latency=0.6))
    assert [(r.best.trial_id, r.budget.latency) for r in table] == [
        ("search-00002", 0.6),
        ("search-00001", 0.4),
        ("search-00001", 0.3),
    ]


@st.composite
def runs(draw: st.DrawFn) -> list[Trial]:
    """Trials in the order of their records: candidates that come again, repeats, fine-tuning that makes it worse."""
    trials: list[Trial] = []
    for number in range(draw(st.integers(1, 12))):
        accuracy = draw(st.sampled_from([0.1, 0.5, 0.51, 0.9, 0.9001, 1.0]))
        width = draw(st.integers(1, 4))
        flops = (0.1, 0.2, 0.3, 0.31)[width - 1]
        stage = draw(st.sampled_from(Stage))
        made = trial(number, accuracy, flops, width=width, stage=stage, epochs=2.0 * (stage is Stage.FINETUNE))
        if stage is Stage.FINETUNE:
            proposal = replace(made.proposal, repeat=sum(t.name == made.name for t in trials))
            made = replace(made, trial_id=proposal.trial_id, proposal=proposal)
        trials.append(made)
    return trials


@given(runs())
def test_hypervolume_of_any_trials_never_falls_and_tile_and_curve_agree(trials: list[Trial]) -> None:
    growth, last = Growth(Budget(flops=0.3)), 0.0
    for position, one in enumerate(trials):
        growth.add(one)
        now = progress(RunRecord.model_validate(RUN), trials[: position + 1])
        assert now.hypervolume >= last - 1e-12
        assert now.hypervolume == pytest.approx(growth.hypervolume)
        # No baseline is among them: the star is for the most accurate.
        assert (None if now.best is None else now.best.val_accuracy) == growth.best
        last = now.hypervolume
    bought = spent(trials, Budget(flops=0.3))
    assert last == pytest.approx(bought[-1].hypervolume if bought else 0.0)


@given(runs())
def test_front_of_any_trials_has_no_dominated_network_and_unique_names(trials: list[Trial]) -> None:
    rows = candidates(trials)
    assert len({r.candidate for r in rows}) == len(rows)
    chosen = {r.candidate for r in front(trials, Budget(flops=0.3))}
    for r in (r for r in rows if r.flops_fraction <= 0.3):
        as_good = [o for o in rows if o.val_accuracy >= r.val_accuracy and o.flops <= r.flops]
        is_beaten = any((o.val_accuracy, o.flops) != (r.val_accuracy, r.flops) for o in as_good)
        assert not (is_beaten and r.candidate in chosen)
        assert chosen & {o.candidate for o in as_good}, "of equal ones, one is on the front"
