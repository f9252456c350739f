"""What crosses processes: one entry in Tune's dictionaries, whole and picklable; and what the searcher makes of it."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from ray.tune.search import Searcher

from raprune.errors import RapruneError, StoreError
from raprune.orchestration import searcher as searcher_module
from raprune.orchestration import tasks
from raprune.orchestration.attempts import Attempts
from raprune.orchestration.cluster.failures import FAILURES_IN_A_ROW, RETRIES_AFTER_LOSS
from raprune.orchestration.cluster.time_limit import ENOUGH, TimeLimit
from raprune.orchestration.searcher import CandidateSearcher
from raprune.orchestration.seats import Seated
from raprune.orchestration.tasks import Assignment, CandidateTask, Look, Report, WorkerTask
from raprune.records import Proposal, Trial, TrialState
from raprune.results.stages import SEARCH, Stages
from raprune.results.test_split import UNTESTED, SplitAccuracies
from raprune.sampling.ahead import ProposalsAhead, depth_for
from raprune.sampling.point import Point
from raprune.sampling.proposals import Proposals
from raprune.spec.budget import Budget
from raprune.spec.job import FinalistSpec, SamplerSpec, SearchSpec
from tests.factories import SPACE, outcome

SPEC = SearchSpec(
    budget=Budget(flops=0.3),
    methods=SPACE.methods,
    search=SamplerSpec(trials=6, lookahead=2),
    finalists=FinalistSpec(count=2, each_method=False),
)


def accuracies() -> SplitAccuracies:
    """Names of networks may hold what Tune takes for a path."""
    return SplitAccuracies(dense=0.9, candidates={"a/b-ft": 0.8, "3f2a": 0.7})


class Recorded:
    """Callbacks of a searcher that note how they were called."""

    def __init__(self) -> None:
        self.tests = [tasks.TestTask(0, [], True, ()), tasks.TestTask(1, [], False, ())]
        self.chosen: list[int] = []
        self.spent: list[str] = []
        self.planned = 0
        self.failed: list[Trial] = []
        self.lost: set[str] = set()

    def missing(self, trial_ids: Sequence[str]) -> list[str]:
        """Those of `lost`, each once: the second record arrives."""
        found = [trial_id for trial_id in trial_ids if trial_id in self.lost]
        self.lost -= set(found)
        return found

    def plan_test(self) -> list[tasks.TestTask]:
        self.planned += 1
        return list(self.tests)


SHORT = SPEC.model_copy(update={"search": SamplerSpec(trials=40, lookahead=16)})


class PromptAhead(ProposalsAhead):
    """A queue whose thread has always made what can be made."""

    def made(self) -> Proposal | None:
        return self.next()


def no_nodes(seat_of: Callable[[str], Seated | None] = lambda trial_id: None) -> Attempts:
    """Attempts of workers that told nobody of their nodes."""
    return Attempts(TimeLimit(None, None), seat_of=seat_of, nodes=list, say=lambda text: None)


def searcher_of(
    recorded: Recorded, *, spec: SearchSpec = SPEC, grouped: bool = False, attempts: Attempts | None = None
) -> CandidateSearcher:
    stages = Stages()
    stages.begin(SEARCH, total=6, unit="trials")
    return CandidateSearcher(
        spec,
        PromptAhead(Proposals(SPACE, spec.search, seed=0), depth=depth_for(2, spec.search.lookahead_for(2))),
        [],
        record=recorded.failed.append,
        missing=recorded.missing,
        plan_test=recorded.plan_test,
        spend=lambda spent: recorded.spent.append(spent.trial_id),
        chosen=recorded.chosen.append,
        grouped=lambda networks: grouped,
        attempts=attempts or no_nodes(),
        workers=2,
        stages=stages,
    )


def carry_out(searcher: CandidateSearcher, answer: Any = None) -> list[WorkerTask]:
    """Run a searcher to its end in this process: each task is answered before the next one is asked for."""
    done: list[WorkerTask] = []
    for number in range(100):
        config = searcher.suggest(str(number))
        if config == Searcher.FINISHED:
            return done
        assert config is not None, "nothing is running, so nothing is waited for"
        task = Assignment.of(pickle.loads(pickle.dumps(config))).task
        report = answer(task) if answer is not None else right(task)
        searcher.on_trial_complete(str(number), pickle.loads(pickle.dumps(report.to_result())))
        done.append(task)
    raise AssertionError("the search does not end")


def right(task: WorkerTask) -> Report:
    """The report on a task that goes well."""
    if isinstance(task, tasks.TestTask):
        return Report(test=SplitAccuracies(candidates={f"{task.number}/network": 0.5 + task.number / 10}))
    return Report(points=(outcome(task.proposal),))


def test_report_passes_through_tune_whole() -> None:
    """Tune flattens nested dictionaries; a report is none, so its names come back as they were."""
    from ray.tune.utils import flatten_dict

    report = Report(test=accuracies())
    assert Report.of(flatten_dict(pickle.loads(pickle.dumps(report.to_result())))) == report
    assert report.to_result()["done"] is True


@pytest.mark.parametrize(
    "ends", [{}, {"test": UNTESTED, "setup_error": "no"}, {"failure": RapruneError("no"), "test": accuracies()}]
)
def test_report_with_no_end_or_two_ends_is_refused(ends: dict[str, Any]) -> None:
    with pytest.raises(AssertionError, match="one way"):
        Report(**ends)


def test_report_without_tested_networks_is_an_end() -> None:
    """A task that only stores networks measures nothing."""
    assert Report(test=UNTESTED).test == UNTESTED


def test_failure_in_a_report_keeps_its_type_message_and_hint() -> None:
    sent = pickle.loads(pickle.dumps(Report(failure=StoreError("run: no space left", hint="Free some."))))
    assert isinstance(sent.failure, StoreError)
    assert (sent.failure.message, sent.failure.hint) == ("run: no space left", "Free some.")


def test_assignment_passes_through_tune_whole() -> None:
    proposal = next_proposal()
    look = Look(proposal=proposal, keep=True, test=False)
    for task in (CandidateTask(proposal, proposal), tasks.TestTask(3, [], True, (look,))):
        config = pickle.loads(pickle.dumps(Assignment(task, 2).to_config()))
        assert len(config) == 1 and Assignment.of(config) == Assignment(task, 2)


def test_search_goes_through_its_phases_in_order() -> None:
    recorded = Recorded()
    searcher = searcher_of(recorded)
    done = carry_out(searcher)
    kinds = [task.proposal.stage.value if isinstance(task, CandidateTask) else "test" for task in done]
    assert kinds == ["search"] * 6 + ["finetune"] * 2 + ["test"] * 2
    assert searcher.failure is None and searcher.waiting == []
    assert searcher.test == SplitAccuracies(candidates={"0/network": 0.5, "1/network": 0.6})
    assert recorded.chosen == [2] and recorded.planned == 1
    assert recorded.spent == [task.trial_id for task in done[:6]]


def test_search_tries_a_trial_again_that_was_reported_and_never_recorded() -> None:
    recorded, plain = Recorded(), Recorded()
    undisturbed = carry_out(searcher_of(plain))
    recorded.lost = {undisturbed[1].trial_id, undisturbed[4].trial_id}
    done = carry_out(searcher_of(recorded))
    ids = [task.trial_id for task in undisturbed]
    assert [task.trial_id for task in done] == [*ids[:6], ids[1], ids[4], *ids[6:]]
    assert recorded.spent == plain.spent, "its result is told once"
    assert recorded.lost == set()


def test_finalists_wait_for_a_group_and_nothing_is_tested() -> None:
    recorded = Recorded()
    searcher = searcher_of(recorded, grouped=True)
    done = carry_out(searcher)
    assert len(done) == 6 and len(searcher.waiting) == 2
    assert recorded.planned == 0 and searcher.test == UNTESTED


@pytest.mark.parametrize(
    ("report", "message"),
    [
        (Report(failure=StoreError("run: no space left")), "run: no space left"),
        (Report(setup_error="ValueError: no such layer"), "could not build the workload.*no such layer"),
    ],
)
def test_error_of_the_run_ends_the_search_with_it(report: Report, message: str) -> None:
    searcher = searcher_of(Recorded())
    done = carry_out(searcher, lambda task: report)
    assert len(done) == 1
    assert searcher.failure is not None
    with pytest.raises(RapruneError, match=message):
        raise searcher.failure


def test_search_whose_candidates_all_fail_ends_with_the_last_error() -> None:
    def fails(task: WorkerTask) -> Report:
        assert isinstance(task, CandidateTask)
        method, state = task.proposal.method, TrialState.FAILED
        return Report(points=(Point(trial_id=task.trial_id, state=state, error="no memory", method=method),))

    spec = SPEC.model_copy(update={"search": SamplerSpec(trials=40, lookahead=2)})
    searcher = searcher_of(Recorded(), spec=spec)
    assert len(carry_out(searcher, fails)) == FAILURES_IN_A_ROW
    assert searcher.failure is not None
    assert searcher.failure.message == f"All {FAILURES_IN_A_ROW} candidates so far failed, the last with: no memory"


def test_lost_worker_has_its_task_tried_again_and_at_last_recorded_as_failed() -> None:
    """The report is missing then: Tune hands on an error without a result."""
    recorded = Recorded()
    searcher = searcher_of(recorded)
    tried = []
    for number in range(RETRIES_AFTER_LOSS + 1):
        tried.append(Assignment.of(searcher.suggest(str(number))).task)
        searcher.on_trial_complete(str(number), None, error=True)
    assert all(task == tried[0] for task in tried) and searcher.failure is None
    assert [trial.trial_id for trial in recorded.failed] == [tried[0].trial_id]
    assert "lost on each of 3 attempts" in str(recorded.failed[0].error)


def test_lost_task_waits_for_a_worker_that_has_just_ended_a_task() -> None:
    """The worker that replaces a lost one may have the same broken GPU."""
    further = SPEC.model_copy(update={"search": SamplerSpec(trials=6, lookahead=4)})
    searcher = searcher_of(Recorded(), spec=further)
    lost, kept = (Assignment.of(searcher.suggest(name)).task for name in "ab")
    searcher.on_trial_complete("a", None, error=True)
    replacement = Assignment.of(searcher.suggest("c")).task
    assert replacement not in (lost, kept)
    searcher.on_trial_complete("b", right(kept).to_result())
    assert Assignment.of(searcher.suggest("d")).task == lost
    searcher.on_trial_complete("c", right(replacement).to_result())
    searcher.on_trial_complete("d", right(lost).to_result())
    assert len(carry_out(searcher)) == 3 + 2 + 2, "the rest of the search, finalists, tests"


def test_lost_task_is_tried_at_once_where_no_other_task_runs() -> None:
    searcher = searcher_of(Recorded())
    tasks_begun = [Assignment.of(searcher.suggest(name)).task for name in "ab"]
    for name in "ab":
        searcher.on_trial_complete(name, None, error=True)
    again = Assignment.of(searcher.suggest("c")).task
    assert again == tasks_begun[0]


def test_first_tasks_are_assigned_together() -> None:
    searcher = searcher_of(Recorded())
    first, second = (Assignment.of(searcher.suggest(name)) for name in "ab")
    assert (first.together, second.together) == (2, 2)
    assert searcher.suggest("c") is None, "no more than the workers"


def carry_out_several(searcher: CandidateSearcher) -> list[list[str]]:
    """As `carry_out`, of a search of short trials; the ids of the candidates of each assignment."""
    given: list[list[str]] = []
    while (config := searcher.suggest(str(len(given)))) != Searcher.FINISHED:
        tasks = Assignment.of(pickle.loads(pickle.dumps(config))).tasks
        name = str(len(given))
        given.append([task.trial_id for task in tasks])
        candidates = [task for task in tasks if isinstance(task, CandidateTask)]
        if not candidates:
            searcher.on_trial_complete(name, right(tasks[0]).to_result())
            continue
        points = tuple(replace(outcome(task.proposal), seconds=0.1) for task in candidates)
        searcher.on_trial_complete(name, Report(points=points).to_result())
    return given


def test_worker_is_given_several_short_trials_and_the_search_finds_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    several = carry_out_several(searcher_of(Recorded(), spec=SHORT))
    assert {len(tasks) for tasks in several[: ENOUGH - 1]} == {1}, "nobody knows yet how long a trial takes"
    assert max(map(len, several)) == 16 // (2 * 2), "what the lookahead allows"
    monkeypatch.setattr(searcher_module, "SHORT_S", 0.1)
    one_by_one = carry_out_several(searcher_of(Recorded(), spec=SHORT))
    assert max(map(len, one_by_one)) == 1
    assert [trial_id for tasks in several for trial_id in tasks] == [trial_id for [trial_id] in one_by_one]


def test_worker_that_is_lost_with_several_trials_costs_the_one_it_was_at_an_attempt() -> None:
    seats: dict[str, Seated] = {}
    searcher = searcher_of(Recorded(), spec=SHORT, attempts=no_nodes(seats.get))
    number = 0
    while len(tasks := Assignment.of(searcher.suggest(str(number))).tasks) == 1:
        assert isinstance(tasks[0], CandidateTask)
        point = replace(outcome(tasks[0].proposal), seconds=0.1)
        searcher.on_trial_complete(str(number), Report(points=(point,)).to_result())
        number += 1
    done, at, *later = tasks
    seats[at.trial_id] = Seated(trial_id=at.trial_id, worker="w", node="a", host="a", silent_s=0.0)
    searcher.on_trial_complete(str(number), None, error=True)
    assert Assignment.of(searcher.suggest("again")).tasks == (at,), "by itself"
    assert Assignment.of(searcher.suggest("others")).tasks[: len(tasks) - 1] == (done, *later)


def next_proposal() -> Proposal:
    proposal = Proposals(SPACE, SPEC.search, seed=0).next()
    assert proposal is not None
    return proposal
