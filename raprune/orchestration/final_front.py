"""The last tasks of a search: store the networks of the final front, and evaluate networks on the test split."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import ray

from raprune.orchestration.cluster.placement import Placement
from raprune.orchestration.remote import task_on, trial_answer
from raprune.orchestration.run import Run
from raprune.orchestration.tasks import Look, Shared, TestTask
from raprune.orchestration.workers.trials import evaluate_on_test
from raprune.records import Trial
from raprune.results.ablation import to_be_tested
from raprune.results.front import listed
from raprune.results.rows import CandidateRow, candidates
from raprune.results.stages import TEST
from raprune.results.test_split import TEST_FILE, UNTESTED, SplitAccuracies
from raprune.store.networks import is_stored, rename_finetuned


def plan_tests(run: Run, placement: Placement, trials: Sequence[Trial]) -> list[TestTask]:
    """Tasks, spread over the workers, for the networks of the final front among the recorded `trials`.

    They store each network that the run has not stored, and evaluate the dense network, the front and the best network
    of each method on the test split, which is evaluated once in a run.
    """
    described = run.store.record()
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


def evaluate_finalists(
    run: Run, shared: Shared, tests: Sequence[TestTask], left_out: Collection[str] = ()
) -> SplitAccuracies:
    """Accuracies on the test split, from tasks on any node but those whose ids are in `left_out`.

    For a run whose workers of the search have ended already.
    """
    task = task_on(shared.placement, evaluate_on_test, left_out=left_out)
    references = [task.remote([shared], test) for test in tests]
    accuracies = UNTESTED
    with run.stages.stage(TEST, total=len(tests), unit="tasks"):
        for reference in references:
            accuracies = accuracies | trial_answer(reference)
            run.stages.step()
    return accuracies


def _behind(rows: Sequence[CandidateRow]) -> list[str]:
    """Ids of the trials behind the rows."""
    return [trial_id for row in rows for trial_id in row.trials]
