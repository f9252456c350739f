"""A simulated search: its driver, its coordinator, and workers that wait."""

from __future__ import annotations

import itertools
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import ray
from ray.train._internal import storage
from ray.tune import CheckpointConfig
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Experiment
from ray.tune.search import SearchGenerator

from raprune.orchestration.attempts import Attempts
from raprune.orchestration.cluster.time_limit import TimeLimit
from raprune.orchestration.scheduler import KeepWorkers, WorkerResources
from raprune.orchestration.searcher import CandidateSearcher
from raprune.orchestration.tasks import Assignment, CandidateTask, Report, WorkerTask
from raprune.orchestration.workers.trials import RECORDS_AHEAD
from raprune.records import Trial
from raprune.results.stages import Stages
from raprune.sampling.ahead import depth_for
from raprune.sampling.point import Point
from raprune.sampling.proposals import Proposals
from raprune.sampling.stopping import Enough
from raprune.spec.job import SearchSpec
from raprune.store.folder import Store
from simulation.clock import Clock, VirtualAhead
from simulation.network import Resnet
from simulation.ray_cost import RayCost
from simulation.ray_stand_ins import Answer, Room, Waiting, Worker
from simulation.writer import Writer

SPREAD = 0.2
"""Trials take up to this fraction more or less than their mean."""
PROGRESS_S = 1.0
"""Time between two questions of the driver for the progress."""
DRIVER = ("searcher", "scheduler", "Tune", "Ray")
"""Parts of the driver's thread."""
PARTS = ("proposals", *DRIVER, "record", "store", "progress")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One setting of the table."""

    workers: int
    seconds: float
    store: str
    trials: int
    """Number of trials that began."""
    asked_for: int
    busy: float
    """Fraction of the workers' time in which trials ran."""
    for_record: float
    """Fraction in which workers waited for a record."""
    for_task: float
    """Fraction in which they waited for their next task."""
    driver: float
    """Fraction of the time in which the driver's thread computed."""
    proposals: float
    """Fraction of the time in which the thread that makes proposals computed."""
    coordinator: float
    """Fraction of the time in which the coordinator wrote records."""
    parts: Mapping[str, float]
    """Part -> its seconds a trial."""


@dataclass
class Span:
    """A trial on the virtual clock."""

    began_at: float
    ended_at: float
    left_at: float | None = None
    """Time at which its worker asked for another task: at once, unless too many records were on their way."""


class World:
    """A driver, a coordinator and workers that wait, with their virtual clock."""

    def __init__(self, folder: Path, store: Store, *, workers: int, seconds: float, trials: int, cost: RayCost) -> None:
        self._clock = Clock()
        self._folder = folder
        self._workers, self._seconds, self._trials, self._cost = workers, seconds, trials, cost
        self._random = random.Random(0)
        self._joined: list[Callable[[], None]] = []
        self._spans: list[Span] = []
        self._sent: dict[Worker, Sent] = {}
        self._trainable = Waiting()
        self._network = Resnet()
        self._writer = Writer(self._clock, store)
        self._lookahead = max(4, 2 * workers)
        spec = SearchSpec.model_validate(
            {
                "model": {"name": "cifar-resnet56"},
                "budget_flops": 0.5,
                "methods": ["reconstruction", "taylor", "l2"],
                "search": {"trials": trials, "lookahead": self._lookahead},
                "output": str(folder / "unused"),
            }
        )
        enough = Enough(spec.search, (), workers=workers, devices=1.0, cost=spec.budget.cost)
        proposals = Proposals(self._network.space(spec), spec.search, seed=spec.seed, enough=enough)
        self._searcher = TimedSearcher(
            spec,
            VirtualAhead(self._clock, proposals, depth=depth_for(workers, self._lookahead)),
            (),
            record=lambda trial: None,
            missing=lambda trial_ids: [],
            plan_test=list,
            spend=enough.spend,
            chosen=lambda number: None,
            grouped=lambda networks: False,
            attempts=Attempts(TimeLimit(None, None), seat_of=lambda trial_id: None, nodes=list, say=lambda text: None),
            workers=workers,
            stages=Stages(),
        )
        self._searcher.clock = self._clock

    def run(self, limit_s: float) -> None:
        """Let the search run until everything is proposed, or for so many real seconds."""
        until = time.monotonic() + limit_s
        self._clock.at(PROGRESS_S, self._look)
        with self._virtual_ray():
            controller = self._controller()
            self._clock.resume()
            while time.monotonic() < until and len(self._spans) < self._trials and not controller.is_finished():
                controller.step()
            self._clock.charge()

    def row(self, store: str) -> Row:
        ended = self._clock.now
        # The proposals before use no result, and are quickly made.
        began = self._spans[min(self._lookahead, len(self._spans) // 2)].began_at
        room = max(ended - began, 1e-9) * self._workers
        parts, begun = self._clock.parts, max(len(self._spans), 1)

        def share(of: Callable[[Span], tuple[float, float]]) -> float:
            return sum(max(0.0, min(b, ended) - max(a, began)) for a, b in map(of, self._spans)) / room

        busy = share(lambda span: (span.began_at, span.ended_at))
        recording = share(lambda span: (span.ended_at, ended if span.left_at is None else span.left_at))
        return Row(
            workers=self._workers,
            seconds=self._seconds,
            store=store,
            trials=len(self._spans),
            asked_for=self._trials,
            busy=busy,
            for_record=recording,
            for_task=max(0.0, 1.0 - busy - recording),
            driver=min(1.0, sum(parts[name] for name in DRIVER) / max(ended, 1e-9)),
            proposals=min(1.0, parts["proposals"] / max(ended, 1e-9)),
            coordinator=min(1.0, (parts["record"] + parts["store"]) / max(ended, 1e-9)),
            parts={name: parts[name] / begun for name in PARTS},
        )

    # The driver

    def wait(
        self, answers: Sequence[Answer], num_returns: int = 1, timeout: float | None = None
    ) -> tuple[list[Answer], list[Answer]]:
        """`ray.wait` of the driver for one answer."""
        assert num_returns == 1
        clock = self._clock
        clock.charge("Ray", self._cost.wait_among(self._workers))
        ready: list[Answer] = []

        def is_over() -> bool:
            ready[:] = itertools.islice((answer for answer in answers if answer.is_ready), 1)
            return bool(ready)

        clock.wait(is_over, until=clock.now + (float("inf") if timeout is None else timeout))
        is_over()
        clock.resume()
        return list(ready), [answer for answer in answers if answer not in ready]

    def get(self, answer: Answer) -> Any:
        """`ray.get` of the driver."""
        self._clock.charge("Ray", self._cost.fetch)
        self._clock.resume()
        return answer.value

    def sent(self) -> None:
        """Charge a task that the driver sends."""
        self._clock.charge("Ray", self._cost.send)
        self._clock.resume()

    def _look(self) -> None:
        self._writer.look(self._searcher.num_running)
        self._clock.at(self._clock.now + PROGRESS_S, self._look)

    # The workers

    def work(self, worker: Worker, assignment: Assignment, answer: Answer) -> None:
        """Begin a task; a first one once as many workers have come up as the assignment says."""
        if assignment.together <= 1:
            self._begin(worker, assignment, answer)
            return
        self._joined.append(lambda: self._begin(worker, assignment, answer))
        if len(self._joined) == assignment.together:
            for begin in self._joined:
                begin()

    def _begin(self, worker: Worker, assignment: Assignment, answer: Answer) -> None:
        self._try(worker, list(assignment.tasks), [], answer)

    def _try(self, worker: Worker, tasks: list[WorkerTask], points: list[Point], answer: Answer) -> None:
        """Try the first of `tasks`, then the others; the worker answers once there are none."""
        task = tasks.pop(0)
        assert isinstance(task, CandidateTask)
        now = self._clock.now
        span = Span(now, now + self._seconds * self._random.uniform(1 - SPREAD, 1 + SPREAD))
        self._spans.append(span)
        trial = self._network.trial(task.proposal, seconds=span.ended_at - span.began_at)

        def go_on() -> None:
            span.left_at = self._clock.now
            points.append(Point.of(trial))
            if tasks:
                self._try(worker, tasks, points, answer)
                return
            self._trainable.report = Report(points=tuple(points))
            answer.give(self._trainable.train())

        self._clock.at(span.ended_at, lambda: self._ended(worker, trial, go_on))

    def _ended(self, worker: Worker, trial: Trial, go_on: Callable[[], None]) -> None:
        """Send the record; the worker goes on unless too many of its records are on their way."""
        sent = self._sent.setdefault(worker, Sent())

        def recorded() -> None:
            sent.records -= 1
            if sent.waits is not None and sent.records <= RECORDS_AHEAD:
                waits, sent.waits = sent.waits, None
                waits()

        sent.records += 1
        if sent.records > RECORDS_AHEAD:
            sent.waits = go_on
        else:
            go_on()
        self._writer.take(trial, recorded)

    # Ray and Tune

    def _controller(self) -> TuneController:
        experiment = Experiment(
            "search",
            Waiting,
            num_samples=sys.maxsize,
            storage_path=str(self._folder),
            checkpoint_config=CheckpointConfig(checkpoint_at_end=False),
            trial_name_creator=lambda trial: f"task-{trial.trial_id}",
            trial_dirname_creator=lambda trial: f"task-{trial.trial_id}",
        )
        search = SearchGenerator(self._searcher)
        search.add_configurations([experiment])
        scheduler = TimedScheduler(self._workers, WorkerResources({"CPU": 1.0}, set()))
        scheduler.clock = self._clock
        return TuneController(
            search_alg=search,
            scheduler=scheduler,
            reuse_actors=True,
            storage=experiment.storage,
            trial_checkpoint_config=experiment.checkpoint_config,
            resource_manager_factory=lambda: Room(self),
        )

    @contextmanager
    def _virtual_ray(self) -> Iterator[None]:
        with (
            mock.patch.object(ray, "wait", self.wait),
            mock.patch.object(ray, "get", self.get),
            # Tune makes a folder a trial there.
            mock.patch.object(storage, "_get_ray_train_session_dir", return_value=str(self._folder)),
        ):
            yield


@dataclass
class Sent:
    """Records of a worker that are on their way."""

    records: int = 0
    waits: Callable[[], None] | None = None
    """Lets the worker go on, if it waits for a record."""


class TimedSearcher(CandidateSearcher):
    """The searcher; the time in it is charged to it."""

    clock: Clock

    def suggest(self, trial_id: str) -> Any:
        with self.clock.charged("searcher"):
            return super().suggest(trial_id)

    def on_trial_complete(self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False) -> None:
        with self.clock.charged("searcher"):
            super().on_trial_complete(trial_id, result, error)


class TimedScheduler(KeepWorkers):
    """The scheduler; the time in its choice is charged to it."""

    clock: Clock

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        with self.clock.charged("scheduler"):
            return super().choose_trial_to_run(tune_controller)
