"""The search as Ray Tune sees it: one task after another, from the first proposal to the test split."""

from __future__ import annotations

import itertools
import math
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray.tune.search import Searcher

from raprune.errors import RapruneError
from raprune.methods import method_named
from raprune.orchestration.attempts import Attempts
from raprune.orchestration.cluster.failures import Action, Failure, decide, hopeless
from raprune.orchestration.reported import ReportedTasks
from raprune.orchestration.seats import Seated
from raprune.orchestration.tasks import Assignment, CandidateTask, Report, TestTask, WorkerTask
from raprune.pruning.record import is_trained
from raprune.records import Proposal, Stage, Trial, TrialState
from raprune.results.stages import FINETUNE, TEST, Stages, Work
from raprune.results.test_split import UNTESTED
from raprune.sampling.ahead import ProposalsAhead, at_once
from raprune.sampling.point import Point
from raprune.sampling.promotion import choose_finalists
from raprune.sampling.source import trial_seed
from raprune.spec.job import FinalistSpec, SearchSpec

REPEATS_APART = 1_000_003
"""Distance between the seeds of one finalist's repeats, so that they differ from those of other searches."""

SHORT_S = 2.0
"""Seconds of work up to which a worker is given several candidates at once."""


class CandidateSearcher(Searcher):
    """Phases in one Tune run, so that the same workers serve all: search, fine-tuning, the test split.

    `record` writes a trial that no worker could write; `missing` is that of `ReportedTasks`; `plan_test` makes the
    tasks of the last phase; `spend` is called with every result of the search; `chosen` is called with the number of
    all fine-tunings; `grouped` is true if a group is to train this number of finalists; `attempts` decides about lost
    workers; at most `workers` tasks run at a time; finalists that keep the accuracy `floor` come first. `stages` is
    kept up to date: search, fine-tuning, test.
    """

    def __init__(
        self,
        spec: SearchSpec,
        ahead: ProposalsAhead,
        stored: Sequence[Trial],
        *,
        record: Callable[[Trial], None],
        missing: Callable[[Sequence[str]], list[str]],
        plan_test: Callable[[], list[TestTask]],
        spend: Callable[[Point], None],
        chosen: Callable[[int], None],
        grouped: Callable[[int], bool],
        attempts: Attempts,
        workers: int,
        stages: Stages,
        floor: float | None = None,
    ) -> None:
        super().__init__()
        self.failure: RapruneError | None = None
        """The error that ended the search, if one did."""
        self.test = UNTESTED
        self.waiting: list[CandidateTask] = []
        """Finalists that a group of workers is to train after this run of Tune has released its resources."""
        self._spec = spec
        self._proposals = ahead.of
        self._proposals_ahead = ahead
        self._stored = {trial.trial_id: trial for trial in stored if trial.proposal.stage is Stage.FINETUNE}
        self._record = record
        self._reported = ReportedTasks(missing)
        self._plan_test = plan_test
        self._spend = spend
        self._chosen = chosen
        self._grouped = grouped
        self._workers = workers
        self._stages = stages
        self._epochs = math.ceil(spec.finalists.train.decided().epochs)
        self._finetuned_here = 0
        self._floor = floor
        self._ahead: deque[WorkerTask] = deque()
        self._begun = False
        self._together = 0
        self._running: dict[str, tuple[WorkerTask, ...]] = {}
        self._attempts = attempts
        self._again: deque[WorkerTask] = deque()
        """Tasks whose worker was lost."""
        self._is_proven = False
        """True if a worker has ended a task since the last loss, and asks for the next one."""
        self._finalists: list[CandidateTask] | None = None
        self._num_finalists = 0
        self._finetuned: dict[str, Point] = {}
        self._tests: list[TestTask] | None = None
        # The live status reads from its own thread.
        self._lock = threading.Lock()

    def suggest(self, trial_id: str) -> Any:
        """The configuration of an `Assignment`, None to wait, or `Searcher.FINISHED`."""
        with self._lock:
            if self.failure is not None:
                return Searcher.FINISHED
            if len(self._running) >= self._workers:
                return None
            try:
                # The first tasks are made together.
                self._make(1 if self._begun else self._workers)
            except RapruneError as error:
                self.failure = error
                return Searcher.FINISHED
            if self._again and (self._is_proven or not self._running):
                # Not for the worker that replaces a lost one: it may have the same broken device.
                self._is_proven = False
                return self._assign(trial_id, Assignment(self._again.popleft()))
            if not self._begun:
                self._begun = True
                self._together = len(self._ahead)
            if self._ahead:
                task = self._ahead.popleft()
                together, self._together = self._together, self._together if self._ahead else 0
                return self._assign(trial_id, Assignment(task, together, self._further(task)))
            return None if self._running else Searcher.FINISHED

    def on_trial_complete(self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False) -> None:
        with self._lock:
            tasks = self._running.pop(trial_id)
            try:
                if error or result is None:
                    self._lost(tasks)
                else:
                    self._done(tasks, Report.of(result))
            except RapruneError as failure:
                # The first one is the cause.
                self.failure = self.failure or failure

    def hear(self, works: Mapping[str, Work]) -> None:
        """Take the progress of running tasks, by the ids of their trials."""
        with self._lock:
            running = [work for task in self._tasks_out() if (work := works.get(task.trial_id)) is not None]
            # Epochs are the unit of fine-tuning alone: the test split is counted in tasks.
            finetuned = 0 if self._tests is not None else self._finetuned_here
            self._stages.hear(running, done_before=finetuned * self._epochs)

    def overdue(self, seats: Sequence[Seated]) -> list[str]:
        """Workers that are to be ended, because their trial makes no progress."""
        with self._lock:
            # The networks of a `TestTask` have been evaluated before.
            running = [(t.trial_id, _trains(t)) for t in self._tasks_out() if isinstance(t, CandidateTask)]
            return self._attempts.overdue(seats, running)

    def close(self) -> None:
        """End the thread that makes proposals."""
        self._proposals_ahead.close()

    def save(self, checkpoint_path: str) -> None:
        """Save nothing: the store holds the state of the search, and Tune's state is thrown away."""
        Path(checkpoint_path).touch()

    def __getstate__(self) -> dict[str, object]:
        # Tune pickles its searcher for a restore that never comes.
        return {}

    @property
    def num_running(self) -> int:
        return len(self._running)

    def _tasks_out(self) -> Iterator[WorkerTask]:
        """The tasks of all workers."""
        return itertools.chain.from_iterable(self._running.values())

    def _assign(self, trial_id: str, assignment: Assignment) -> dict[str, Assignment]:
        self._running[trial_id] = assignment.tasks
        return assignment.to_config()

    def _further(self, first: WorkerTask) -> tuple[CandidateTask, ...]:
        """Candidates for the same worker where trials are short, of those that are proposed already.

        As many as two seconds take, and as the lookahead allows.
        """
        typical_s = self._attempts.limit.typical_s
        if typical_s is None or not isinstance(first, CandidateTask) or not _is_short(first):
            return ()
        several = min(
            int(SHORT_S / max(typical_s, 1e-3)),
            at_once(self._workers, self._spec.search.lookahead_for(self._workers)),
        )
        further: list[CandidateTask] = []
        while len(further) + 1 < several:
            if not self._ahead and (proposal := self._proposals_ahead.made()) is not None:
                self._ahead.append(self._task_of(proposal))
            if not (self._ahead and isinstance(task := self._ahead[0], CandidateTask) and _is_short(task)):
                break
            further.append(task)
            self._ahead.popleft()
        return tuple(further)

    def _make(self, count: int) -> None:
        while len(self._ahead) < count and (task := self._next()) is not None:
            self._ahead.append(task)

    def _next(self) -> WorkerTask | None:
        proposal = self._proposals_ahead.next()
        if proposal is not None:
            return self._task_of(proposal)
        if not self._proposals.over:
            return None
        if self._finalists is None and not self._reported.all_recorded():
            return self._reported.next()
        finalist = self._next_finalist()
        if finalist is not None:
            return finalist
        if len(self._finetuned) < self._num_finalists:
            return None
        if self._tests is None:
            self._tests = self._plan_test()
            if self._tests:
                self._stages.begin(TEST, total=len(self._tests), unit="tasks")
        return self._tests.pop(0) if self._tests else None

    def _task_of(self, proposal: Proposal) -> CandidateTask:
        return CandidateTask(proposal, self._proposals.proposals[proposal.parent] if proposal.parent else None)

    def _next_finalist(self) -> CandidateTask | None:
        if self._finalists is None:
            self._finalists = self._choose_finalists()
            self._num_finalists = len(self._finalists)
            self._chosen(self._num_finalists)
            pending = [task for task in self._finalists if task.proposal.trial_id not in self._stored]
            if self._grouped(len(pending)):
                self.waiting, self._finalists = pending, []
            elif pending:
                self._stages.begin(FINETUNE, total=len(pending) * self._epochs, unit="epochs")
        while self._finalists:
            task = self._finalists.pop(0)
            stored = self._stored.get(task.proposal.trial_id)
            if stored is None:
                return task
            self._finetuned[stored.trial_id] = Point.of(stored)
        return None

    def _choose_finalists(self) -> list[CandidateTask]:
        finalists = self._spec.finalists
        chosen = choose_finalists(
            self._proposals.points,
            self._spec.budget,
            finalists.count,
            each_method=finalists.each_method,
            floor=self._floor,
            cost=self._spec.budget.cost,
        )
        parents = [self._proposals.proposals[parent] for parent in chosen]
        tasks = [
            finalist(parent, number=number, repeat=repeat, cuts=cuts, seed=self._spec.seed)
            for number, parent in enumerate(parents)
            for cuts in numbers_of_cuts(parent, finalists)
            for repeat in range(finalists.seeds)
        ]
        # Every finalist once before any a second time.
        return sorted(tasks, key=lambda task: (task.proposal.repeat, task.proposal.cuts))

    def _done(self, tasks: Sequence[WorkerTask], report: Report) -> None:
        for task in tasks:
            self._attempts.finished(task.trial_id)
        self._is_proven = True
        if report.setup_error is not None:
            decision = decide(Failure.SETUP)
            raise RapruneError(f"{decision.reason}: {report.setup_error}", hint="Nothing was recorded.")
        if report.failure is not None:
            raise report.failure
        if report.test is not None:
            self.test = self.test | report.test
            self._stages.step()
            return
        for task, point in zip(tasks, report.points or (), strict=True):
            assert isinstance(task, CandidateTask), "a test task is reported by itself"
            self._take(task, point)

    def _take(self, task: CandidateTask, point: Point) -> None:
        if task.proposal.stage is Stage.FINETUNE:
            self._finetuned[point.trial_id] = point
            self._finetuned_here += 1
            self._stages.update(done=self._finetuned_here * self._epochs)
            return
        if not self._reported.add(task):
            return
        self._spend(point)
        if point.state is not TrialState.FAILED and point.rung == 0:
            self._attempts.limit.finished(point.seconds)
        self._proposals_ahead.tell(task.proposal.number, point)
        self._stages.update(done=self._proposals.num_ended, total=self._proposals.total)
        if point.state is not TrialState.FAILED:
            return
        # Baselines may work where the methods of the job do not.
        own = [point.state for point in self._proposals.points if point.method in self._spec.methods]
        if hopeless(own):
            self.failure = RapruneError(
                f"All {len(own)} candidates so far failed, the last with: {point.error}",
                hint="The cause is in the job rather than in a candidate. `raprune prune` tries one without Ray.",
            )

    def _lost(self, tasks: Sequence[WorkerTask]) -> None:
        self._is_proven = False
        at = self._attempts.seated([task.trial_id for task in tasks])
        # Those after it have not begun. Those before it were reported to nobody: tried again, they end the same.
        self._ahead.extendleft(reversed([*tasks[:at], *tasks[at + 1 :]]))
        task = tasks[at]
        decision = self._attempts.lost(task.trial_id)
        if decision.action is Action.RETRY:
            self._again.append(task)
        elif isinstance(task, TestTask):
            raise RapruneError(
                f"The networks of the front could not be stored and measured: {decision.reason}.",
                hint="All trials are recorded; `raprune resume` continues with the remaining networks.",
            )
        else:
            failed = Trial(
                trial_id=task.trial_id, proposal=task.proposal, state=TrialState.FAILED, error=decision.reason
            )
            self._record(failed)
            self._take(task, Point.of(failed))


def _is_short(task: CandidateTask) -> bool:
    """True for a trial of the kind whose durations are known: it trains nothing, and continues no other."""
    return not _trains(task)


def _trains(task: CandidateTask) -> bool:
    """True if the task trains a network."""
    return task.parent is not None or method_named(task.proposal.method).has_path()


def numbers_of_cuts(parent: Proposal, finalists: FinalistSpec) -> tuple[int, ...]:
    """The numbers of cuts by which the finalist that continues `parent` is made: one where it was trained before."""
    return (1,) if is_trained(parent) else finalists.steps


def finalist(parent: Proposal, *, number: int, repeat: int, cuts: int, seed: int) -> CandidateTask:
    """The `repeat`-th fine-tuning of finalist `number`, which continues `parent`.

    Ways of several cuts have the same seed, so that nothing but the cuts tells them apart.
    """
    proposal = replace(
        parent,
        number=number,
        stage=Stage.FINETUNE,
        parent=parent.trial_id,
        rung=0,
        repeat=repeat,
        cuts=cuts,
        # Seeds that the search does not use.
        seed=trial_seed(seed + 1 + repeat * REPEATS_APART, number),
    )
    return CandidateTask(proposal, parent)
