"""How busy a search keeps 10 to 1,000 workers: `uv run --group dev python jobs/benchmarks/scale.py`.

A simulation in virtual time with the real parts. The search of ResNet-56 is driven by the real searcher, the real
controller of Ray Tune with raprune's scheduler, and the real coordinator with its store, on this disk or on S3 (a
server of moto in a process of its own, which waits 20 ms before each answer). Only the workers are made up: a trial
*waits* for 0.15, 2 or 20 s (each up to a fifth more or less) and comes out by a formula of its widths.

Virtual time passes for a worker while it waits, and for the driver and the coordinator by what they really take:

* the driver is one thread. Its CPU time is charged to the searcher (`suggest`, `on_trial_complete`), to the scheduler
  or else to Tune's controller; what Ray takes for its part of a trial (sending two tasks, waiting for one of so many
  answers, fetching it) is measured first on a real Ray, with as many tasks under way, and charged to Ray;
* the coordinator takes as many records at once as its actor does, then those that came meanwhile. Its store is charged
  by the clock, less what its thread waits for a CPU, so that it may be run on a busy machine (that of S3 is a process
  of its own, whose wait is not known); the rest, and the progress that the driver asks for every virtual second, by CPU
  time.

A worker is busy while its trial runs; it loses the time in which it waits for its record, and then for its next task.
Busy is counted from the moment at which the last worker has begun until nothing is left to propose. Messages take no
time, each worker is up from the start, and no network is stored.

A setting ends early after `--limit` real seconds; then its row says how many trials it got through, and the busy share
is that of those. Rows are kept in `--results`, and those of this commit are not run again. The table is written only
once all settings were run at one commit with Ray's part.
"""

from __future__ import annotations

import argparse
import asyncio
import heapq
import itertools
import json
import logging
import os
import random
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Self
from unittest import mock

import numpy as np
import ray
import torch
from bar import commit, show
from ray.air.execution import AcquiredResources, ResourceManager, ResourceRequest
from ray.train._internal import storage
from ray.tune import CheckpointConfig
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Experiment
from ray.tune.search import SearchGenerator
from ray.tune.trainable import Trainable

from raprune.channels.cache import cached_trace
from raprune.cost.flops import CostModel
from raprune.methods import method_named, searched_settings
from raprune.models import build_model
from raprune.orchestration import coordinator as coordinators
from raprune.orchestration.attempts import Attempts
from raprune.orchestration.cluster.connect import SETTINGS, machine
from raprune.orchestration.cluster.time_limit import TimeLimit
from raprune.orchestration.coordinator import Coordinator
from raprune.orchestration.scheduler import KeepWorkers, WorkerResources
from raprune.orchestration.searcher import CandidateSearcher
from raprune.orchestration.tasks import Assignment, CandidateTask, Report
from raprune.pruning.allocate import ALLOCATIONS
from raprune.records import Candidate, Metrics, Proposal, Trial, TrialState
from raprune.results.stages import Stages
from raprune.sampling.point import Point
from raprune.sampling.proposals import Proposals
from raprune.sampling.space import SearchSpace, search_space
from raprune.sampling.stopping import Enough
from raprune.spec.budget import Budget
from raprune.spec.job import ModelSpec, SearchSpec
from raprune.store.folder import Store
from raprune.store.record import RunRecord

HERE = Path(__file__).parent
TABLE = HERE / "scale.md"
WORKERS = (10, 100, 1000)
SECONDS = (0.15, 2.0, 20.0)
STORES = ("disk", "s3")
REQUEST_S = 0.02
"""Time that the server of S3 waits before each answer."""
SENDERS = 1
"""Records that the coordinator takes at once, as its actor does."""
SPREAD = 0.2
"""Trials take up to this fraction more or less than their mean."""
PROGRESS_S = 1.0
"""Time between two questions of the driver for the progress."""
STORED_RUN = RunRecord.model_validate(
    {"spec": {"budget_flops": 0.5, "search": {"trials": 20}}, "dense": {"val_accuracy": 0.93}, "started_at": 0.0}
)
Setting = tuple[int, float, str]
"""Workers, seconds of a trial, store."""
PARTS = ("searcher", "scheduler", "Tune", "Ray", "record", "store", "progress")


@dataclass(frozen=True, kw_only=True)
class RayCost:
    """CPU seconds of the driver's thread that Ray takes."""

    send: float = 0.0
    """For a task that is sent to a worker."""
    fetch: float = 0.0
    """For an answer."""
    wait: Mapping[int, float] = field(default_factory=dict)
    """Number of tasks under way -> for one `ray.wait`."""

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Self:
        """The cost that was written as JSON, whose keys are texts."""
        waits = {int(count): seconds for count, seconds in content["wait"].items()}
        return cls(send=content["send"], fetch=content["fetch"], wait=waits)

    def wait_among(self, tasks: int) -> float:
        """For one `ray.wait` with so many tasks under way."""
        return float(np.interp(tasks, list(self.wait), list(self.wait.values()))) if self.wait else 0.0


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
    """Fraction in which workers waited for their record."""
    for_task: float
    """Fraction in which they waited for their next task."""
    driver: float
    """Fraction of the time in which the driver's thread computed."""
    coordinator: float
    """Fraction of the time in which the coordinator wrote records."""
    parts: Mapping[str, float]
    """Part -> its seconds a trial."""


class Results:
    """A file of lines of JSON: what Ray takes, and the rows by their commits."""

    def __init__(self, path: Path, commit: str) -> None:
        self.commit = commit
        self._path = path
        self._lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def rows(self) -> dict[Setting, Row]:
        """The rows of this commit."""
        rows = [Row(**line["row"]) for line in self._lines if line.get("commit") == self.commit]
        return {(row.workers, row.seconds, row.store): row for row in rows}

    def ray(self, measure: Callable[[], RayCost]) -> RayCost:
        """What Ray takes: measured once."""
        found = [line["ray"] for line in self._lines if "ray" in line]
        if found:
            return RayCost.of(found[-1])
        cost = measure()
        self._write({"ray": asdict(cost)})
        return cost

    def keep(self, row: Row) -> None:
        self._write({"commit": self.commit, "row": asdict(row)})

    def _write(self, line: Mapping[str, object]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=WORKERS, help="default 10 100 1000")
    parser.add_argument("--seconds", type=float, nargs="+", default=SECONDS, help="of a trial; default 0.15 2 20")
    parser.add_argument("--stores", nargs="+", choices=STORES, default=STORES, help="default disk s3")
    parser.add_argument("--trials", type=int, help="of a setting (default: 4 a worker, 400 at least)")
    parser.add_argument("--limit", type=float, default=120.0, help="real seconds of a setting (default 120)")
    parser.add_argument("--without-ray", action="store_true", help="start no Ray, charge nothing for it, keep no rows")
    parser.add_argument("--results", type=Path, default=Path("runs/scale.jsonl"), help="a line a setting")
    parser.add_argument("--serve-s3", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--measure-ray", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure_ray:
        print(json.dumps(asdict(measure_ray())))
        return
    if arguments.serve_s3:
        serve_s3()
        return
    torch.set_num_threads(1)
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    results = Results(arguments.results, commit())
    cost = RayCost() if arguments.without_ray else results.ray(measured_ray)
    known = {} if arguments.without_ray else results.rows()
    with s3_server() if "s3" in arguments.stores else ExitStack() as s3:
        for setting in itertools.product(arguments.workers, arguments.seconds, arguments.stores):
            if setting in known:
                continue
            workers, seconds, store = setting
            trials = arguments.trials or max(400, 4 * workers)
            row = simulated(workers, seconds, store, trials=trials, cost=cost, s3=s3, limit_s=arguments.limit)
            print(told(row), flush=True)
            known[setting] = row
            if not arguments.without_ray:
                results.keep(row)
    show_bars(known)
    settings = list(itertools.product(WORKERS, SECONDS, STORES))
    if not arguments.without_ray and set(known) >= set(settings):
        TABLE.write_text(table([known[setting] for setting in settings], cost, results.commit))
        print(f"wrote {TABLE.name}")


def simulated(workers: int, seconds: float, store: str, *, trials: int, cost: RayCost, s3: Any, limit_s: float) -> Row:
    """One search in virtual time."""
    with tempfile.TemporaryDirectory(prefix="raprune-scale-") as folder:
        uri = f"{folder}/run" if store == "disk" else s3.uri(f"run-{workers}-{seconds:g}")
        world = World(Path(folder), Store(uri), workers=workers, seconds=seconds, trials=trials, cost=cost)
        world.run(limit_s)
        return world.row(store)


class World:
    """A driver, a coordinator and workers that wait, with their virtual clock."""

    def __init__(self, folder: Path, store: Store, *, workers: int, seconds: float, trials: int, cost: RayCost) -> None:
        self.now = 0.0
        self.parts: dict[str, float] = defaultdict(float)
        """Part -> real seconds that were charged for it."""
        self._folder = folder
        self._workers, self._seconds, self._trials, self._cost = workers, seconds, trials, cost
        self._random = random.Random(0)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._resumed: float | None = None
        """CPU time of this thread at which the driver went on; None while it waits."""
        self._charged = 0.0
        """Real seconds since then that are charged to a part already."""
        self._joined: list[Callable[[], None]] = []
        self._begun: set[Worker] = set()
        self._all_began_at = 0.0
        self._spans: list[Span] = []
        self._trainable = Waiting()
        self._network = Resnet()
        self._writer = Writer(self, store)
        spec = SearchSpec.model_validate(
            {
                "model": {"name": "cifar-resnet56"},
                "budget_flops": 0.5,
                "methods": ["reconstruction", "taylor", "l2"],
                "search": {"trials": trials, "lookahead": max(4, 2 * workers)},
                "output": str(folder / "unused"),
            }
        )
        enough = Enough(spec.search, (), workers=workers, devices=1.0, cost=spec.budget.cost)
        self._searcher = TimedSearcher(
            spec,
            Proposals(self._network.space(spec), spec.search, seed=spec.seed, enough=enough),
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
        self._searcher.world = self

    def run(self, limit_s: float) -> None:
        """Let the search run until everything is proposed, or for so many real seconds."""
        until = time.monotonic() + limit_s
        self.at(PROGRESS_S, self._look)
        with self._virtual_ray():
            controller = self._controller()
            self._resumed = time.thread_time()
            while time.monotonic() < until and len(self._spans) < self._trials and not controller.is_finished():
                controller.step()
            self._charge()

    def row(self, store: str) -> Row:
        began, ended = self._all_began_at, self.now
        room = max(ended - began, 1e-9) * self._workers

        def share(of: Callable[[Span], tuple[float, float]]) -> float:
            return sum(max(0.0, min(b, ended) - max(a, began)) for a, b in map(of, self._spans)) / room

        busy = share(lambda span: (span.began_at, span.ended_at))
        recording = share(lambda span: (span.ended_at, ended if span.recorded_at is None else span.recorded_at))
        driver = sum(self.parts[name] for name in ("searcher", "scheduler", "Tune", "Ray"))
        return Row(
            workers=self._workers,
            seconds=self._seconds,
            store=store,
            trials=len(self._spans),
            asked_for=self._trials,
            busy=busy,
            for_record=recording,
            for_task=max(0.0, 1.0 - busy - recording),
            driver=min(1.0, driver / max(ended, 1e-9)),
            coordinator=min(1.0, (self.parts["record"] + self.parts["store"]) / max(ended, 1e-9)),
            parts={name: self.parts[name] / max(len(self._spans), 1) for name in PARTS},
        )

    def at(self, when: float, action: Callable[[], None]) -> None:
        """Call `action` at a time of the virtual clock."""
        heapq.heappush(self._events, (when, next(self._numbers), action))

    # The driver

    @contextmanager
    def charged(self, part: str) -> Iterator[None]:
        """Count the CPU time of the block, which is the driver's, for a part."""
        began = time.thread_time()
        yield
        seconds = time.thread_time() - began
        self.parts[part] += seconds
        self._charged += seconds

    def _charge(self) -> None:
        """Let the virtual clock pass by what the driver has computed since it went on."""
        assert self._resumed is not None
        seconds = time.thread_time() - self._resumed
        self.parts["Tune"] += seconds - self._charged
        self._charged = 0.0
        self._pass(seconds)
        self._resumed = time.thread_time()

    def _pass(self, seconds: float) -> None:
        until = self.now + seconds
        while self._events and self._events[0][0] <= until:
            self._next_event()
        self.now = until

    def _next_event(self) -> None:
        when, _, action = heapq.heappop(self._events)
        self.now = max(self.now, when)
        action()

    def _ray(self, seconds: float) -> None:
        self.parts["Ray"] += seconds
        self._pass(seconds)

    def wait(
        self, answers: Sequence[Answer], num_returns: int = 1, timeout: float | None = None
    ) -> tuple[list[Answer], list[Answer]]:
        """`ray.wait` of the driver for one answer."""
        assert num_returns == 1
        self._charge()
        self._ray(self._cost.wait_among(self._workers))
        until = self.now + (float("inf") if timeout is None else timeout)
        while (ready := next((answer for answer in answers if answer.is_ready), None)) is None:
            if not self._events or self._events[0][0] > until:
                assert until < float("inf"), "the driver waits, and nothing is under way"
                self._pass(until - self.now)
                break
            self._next_event()
        self._resumed = time.thread_time()
        return ([], list(answers)) if ready is None else ([ready], [a for a in answers if a is not ready])

    def get(self, answer: Answer) -> Any:
        """`ray.get` of the driver."""
        self._charge()
        self._ray(self._cost.fetch)
        self._resumed = time.thread_time()
        return answer.value

    def sent(self) -> None:
        """Charge a task that the driver sends."""
        self._charge()
        self._ray(self._cost.send)
        self._resumed = time.thread_time()

    def _look(self) -> None:
        self._writer.look(self._searcher.num_running)
        self.at(self.now + PROGRESS_S, self._look)

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
        assert isinstance(assignment.task, CandidateTask)
        span = Span(self.now, self.now + self._seconds * self._random.uniform(1 - SPREAD, 1 + SPREAD))
        self._spans.append(span)
        if worker not in self._begun:
            self._begun.add(worker)
            # Until all have begun, each first task counts as the beginning.
            self._all_began_at = self.now if len(self._begun) == self._workers else 0.0
        trial = self._network.trial(assignment.task.proposal, seconds=span.ended_at - span.began_at)
        self.at(span.ended_at, lambda: self._ended(worker, span, trial, answer))

    def _ended(self, worker: Worker, span: Span, trial: Trial, answer: Answer) -> None:
        def recorded() -> None:
            span.recorded_at = self.now
            self._trainable.report = Report(point=Point.of(trial))
            answer.give(self._trainable.train())

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
        scheduler.world = self
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
class Span:
    """A trial on the virtual clock."""

    began_at: float
    ended_at: float
    recorded_at: float | None = None


@dataclass(eq=False)
class Answer:
    """Stands for a reference of Ray."""

    value: Any = None
    is_ready: bool = False

    def give(self, value: Any) -> None:
        self.value, self.is_ready = value, True


class Waiting(Trainable):
    """Makes the results that Tune gets of a worker: one object for all workers, as it keeps nothing of a trial."""

    report: Report

    def step(self) -> dict[str, Report | bool]:
        return self.report.to_result()

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        return True


class Worker:
    """Stands for the handle of an actor that runs `Waiting`."""

    def __init__(self, world: World, config: Mapping[str, Any]) -> None:
        self._world, self._config = world, config

    def __getattr__(self, name: str) -> Any:
        return Method(partial(self._call, name))

    def _call(self, name: str, *args: Any, **kwargs: Any) -> Answer:
        self._world.sent()
        answer = Answer()
        if name == "reset":
            [self._config] = args
            answer.give(True)
        elif name == "train":
            self._world.work(self, Assignment.of(self._config), answer)
        else:
            # What Tune asks a new actor: whether it is there, and where.
            answer.give({})
        return answer


@dataclass(frozen=True)
class Method:
    """Stands for a method of the handle."""

    remote: Callable[..., Any]


class Room(ResourceManager):
    """Stands for the resources of the cluster, which has room for every worker that is asked for."""

    def __init__(self, world: World) -> None:
        self._world = world

    def request_resources(self, resource_request: ResourceRequest) -> None:
        pass

    def cancel_resource_request(self, resource_request: ResourceRequest) -> None:
        pass

    def has_resources_ready(self, resource_request: ResourceRequest) -> bool:
        return True

    def acquire_resources(self, resource_request: ResourceRequest) -> AcquiredResources:
        return Place(resource_request, self._world)

    def free_resources(self, acquired_resource: AcquiredResources) -> None:
        pass

    def get_resource_futures(self) -> list[Any]:
        return []

    def clear(self) -> None:
        pass


@dataclass
class Place(AcquiredResources):
    """Stands for the resources of one worker."""

    world: World

    def annotate_remote_entities(self, entities: Sequence[Any]) -> list[Any]:
        return [Method(lambda config, **kwargs: Worker(self.world, config)) for _ in entities]


class TimedSearcher(CandidateSearcher):
    """The searcher; the time in it is charged to it."""

    world: World

    def suggest(self, trial_id: str) -> Any:
        with self.world.charged("searcher"):
            return super().suggest(trial_id)

    def on_trial_complete(self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False) -> None:
        with self.world.charged("searcher"):
            super().on_trial_complete(trial_id, result, error)


class TimedScheduler(KeepWorkers):
    """The scheduler; the time in its choice is charged to it."""

    world: World

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        with self.world.charged("scheduler"):
            return super().choose_trial_to_run(tune_controller)


def undisturbed() -> float:
    """A clock for this thread that stands while the thread waits for a CPU that other processes have, in seconds."""
    _, waited_ns, _ = Path("/proc/thread-self/schedstat").read_text().split()
    return time.perf_counter() - int(waited_ns) / 1e9


class TimedStore(Store):
    """The store of the coordinator, with the time that it took."""

    taken_s = 0.0

    def told(self, on_wait: Callable[[str | None], None]) -> Store:
        return self

    def append(self, trials: Sequence[Trial]) -> None:
        began = undisturbed()
        super().append(trials)
        self.taken_s += undisturbed() - began


class Writer:
    """The coordinator, which takes up to `SENDERS` records that wait, then those that came meanwhile."""

    def __init__(self, world: World, store: Store) -> None:
        store.create(STORED_RUN)
        self._store = TimedStore(store.uri)
        with (
            # Nothing is exported to Prometheus, and no actor ends.
            mock.patch.object(coordinators, "Heart"),
            mock.patch.object(Coordinator, "_end_when_orphaned"),
        ):
            # Untyped: to mypy, a method that Ray is told of can only be called by `remote`.
            self._coordinator: Any = Coordinator(self._store)
        self._world = world
        self._senders = ThreadPoolExecutor(SENDERS)
        self._waiting: deque[tuple[Trial, Callable[[], None]]] = deque()
        self._looks: deque[int] = deque()
        self._is_busy = False

    def take(self, trial: Trial, then: Callable[[], None]) -> None:
        """Write a record in its turn; `then` is called once it is durable."""
        self._waiting.append((trial, then))
        self._serve()

    def look(self, running: int) -> None:
        """Tell the progress in its turn."""
        self._looks.append(running)
        self._serve()

    def _serve(self) -> None:
        if self._is_busy or not (self._waiting or self._looks):
            return
        self._is_busy = True
        if self._looks:
            began = time.thread_time()
            self._coordinator.progress(self._looks.popleft())
            seconds = time.thread_time() - began
            self._world.parts["progress"] += seconds
        else:
            seconds = self._write([self._waiting.popleft() for _ in range(min(len(self._waiting), SENDERS))])
        self._world.at(self._world.now + seconds, self._next)

    def _next(self) -> None:
        self._is_busy = False
        self._serve()

    def _write(self, records: Sequence[tuple[Trial, Callable[[], None]]]) -> float:
        """Have as many senders record at once; seconds until all are done."""

        def record(trial: Trial) -> float:
            began = time.thread_time()
            self._coordinator.record([trial])
            return time.thread_time() - began

        before = self._store.taken_s
        sent = sum(self._senders.map(record, [trial for trial, _ in records]))
        stored = self._store.taken_s - before
        for _, then in records:
            self._world.at(self._world.now + sent + stored, then)
        self._world.parts["store"] += stored
        self._world.parts["record"] += sent
        return sent + stored


class Resnet:
    """ResNet-56 for images of 32 x 32: its search space, and what becomes of a proposal."""

    def __init__(self) -> None:
        model = build_model(ModelSpec(name="cifar-resnet56"), num_classes=10, image_shape=(3, 32, 32)).eval()
        self._cost = CostModel(cached_trace(model, torch.zeros(1, 3, 32, 32)))
        self._noise = np.random.default_rng(0)

    def space(self, spec: SearchSpec) -> SearchSpace:
        settings = {name: searched_settings(method_named(name)) for name in spec.methods}
        return search_space(spec, self._cost, allocations=tuple(ALLOCATIONS), settings=settings)

    def trial(self, proposal: Proposal, *, seconds: float) -> Trial:
        """The record of a proposal: what stays is the first channels, and wider networks are more accurate."""
        names, channels = self._cost.group_names, self._cost.num_channels
        fraction = proposal.target.flops or 1.0
        ratios = np.array([proposal.keep_ratios.get(name, fraction**0.5) for name in names])
        widths = np.clip((ratios * channels).round().astype(np.int64), 1, channels)
        flops, params = int(self._cost.flops(widths)), int(self._cost.params(widths))
        flops_fraction = flops / self._cost.dense_flops
        accuracy = 0.93 - 0.05 / flops_fraction**0.5 * float(np.exp(self._noise.normal(0.0, 0.15)))
        metrics = Metrics(
            accuracy=min(max(accuracy, 0.1), 0.93),
            loss=1.0 - accuracy,
            flops=flops,
            params=params,
            flops_fraction=flops_fraction,
            params_fraction=params / self._cost.dense_params,
        )
        kept = {name: tuple(range(width)) for name, width in zip(names, widths.tolist(), strict=True)}
        return Trial(
            trial_id=proposal.trial_id,
            proposal=proposal,
            state=TrialState.COMPLETE,
            candidate=Candidate(proposal.method, kept, proposal.settings),
            metrics=metrics,
            accuracy_after_cut=0.1,
            accuracy_after_repair=metrics.accuracy,
            seconds=seconds,
            worker="host:1",
        )


# S3


@dataclass(frozen=True)
class S3:
    """A bucket on a server of this machine."""

    port: int

    def uri(self, folder: str) -> str:
        return f"s3://scale/{folder}?scheme=http&endpoint_override=127.0.0.1:{self.port}&region=us-east-1"


@contextmanager
def s3_server() -> Iterator[S3]:
    """A server that waits before each answer, in a process of its own."""
    keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_EC2_METADATA_DISABLED": "true"}
    os.environ.update(keys)
    server = subprocess.Popen([sys.executable, __file__, "--serve-s3"], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        s3 = S3(int(server.stdout.readline()))
        request = urllib.request.Request(f"http://127.0.0.1:{s3.port}/scale", method="PUT")
        urllib.request.urlopen(request).close()
        yield s3
    finally:
        server.terminate()
        server.wait()


def serve_s3() -> None:
    """Serve, and print the port first."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        def log(self, *args: Any) -> None:
            pass

    app = DomainDispatcherApplication(create_backend_app)

    def slow(environ: Any, start_response: Any) -> Any:
        time.sleep(REQUEST_S)
        return app(environ, start_response)

    server = make_server("127.0.0.1", 0, slow, threaded=True, request_handler=Quiet)
    print(server.server_port, flush=True)
    server.serve_forever()


# Ray's part


def measured_ray() -> RayCost:
    """What Ray takes, measured by a process of its own, as Ray reads its token when it is imported."""
    tokens = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    command = [sys.executable, __file__, "--measure-ray"]
    measured = subprocess.run(command, env={**os.environ, **tokens}, stdout=subprocess.PIPE, text=True, check=True)
    return RayCost.of(json.loads(measured.stdout.splitlines()[-1]))


def measure_ray() -> RayCost:
    """What Ray takes of the driver's thread: a task with an assignment, an answer, and the wait for one of many."""
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        remote: Any = ray.remote
        actor = remote(max_concurrency=2000)(Hanging).remote()
        proposal = Proposal(
            number=0,
            method="l2",
            allocation="ratios",
            target=Budget(flops=0.3),
            keep_ratios={f"layer{i}": 0.5 for i in range(37)},
        )
        config = Assignment(CandidateTask(proposal)).to_config()
        sent, fetched = [], []
        for _ in range(200):
            began = time.thread_time()
            answer = actor.echo.remote(config)
            sent.append(time.thread_time() - began)
            ray.wait([answer])
            began = time.thread_time()
            ray.get(answer)
            fetched.append(time.thread_time() - began)
        hanging = [actor.hang.remote() for _ in range(max(WORKERS))]
        wait = {count: _wait_s(actor, hanging[: count - 1]) for count in WORKERS}
        return RayCost(send=statistics.median(sent), fetch=statistics.median(fetched), wait=wait)
    finally:
        ray.shutdown()


def _wait_s(actor: Any, hanging: Sequence[Any]) -> float:
    taken = []
    for _ in range(50):
        answer = actor.echo.remote(None)
        ray.wait([answer])
        began = time.thread_time()
        ray.wait([answer, *hanging], num_returns=1, timeout=0.1)
        taken.append(time.thread_time() - began)
    return statistics.median(taken)


class Hanging:
    """An actor whose tasks stay under way."""

    async def hang(self) -> None:
        await asyncio.Event().wait()

    async def echo(self, value: object) -> object:
        return value


# What is told


def told(row: Row) -> str:
    """One line."""
    parts = ", ".join(f"{name} {1000 * row.parts[name]:.2f}" for name in PARTS)
    return (
        f"{row.workers} workers, {row.seconds:g} s, {row.store}: {row.busy:.1%} busy, {row.for_record:.1%} waits for "
        f"the record, {row.for_task:.1%} for a task; driver {row.driver:.0%}, coordinator {row.coordinator:.0%}; "
        f"{row.trials} of {row.asked_for} trials; ms a trial: {parts}"
    )


def show_bars(found: Mapping[Setting, Row]) -> None:
    """The bars of the settings that were run."""
    for workers, seconds, bar in ((100, 2.0, 0.95), (1000, 20.0, 0.9)):
        disk, s3 = (found.get((workers, seconds, store)) for store in STORES)
        name = f"{workers} workers, {seconds:g} s a trial"
        if disk is not None:
            show(f"{name}, disk: busy", figure=disk.busy, bar=bar, unit="of the time", more_is_better=True)
        if disk is not None and s3 is not None:
            lost = disk.busy - s3.busy
            show(f"{name}: less busy on S3 by", figure=lost, bar=0.05, unit="of the time", more_is_better=False)


def table(rows: Sequence[Row], cost: RayCost, commit: str) -> str:
    """The Markdown file."""
    waits = ", ".join(f"{1000 * seconds:.2f} ms of {count}" for count, seconds in cost.wait.items())
    lines = [
        "# How busy a search keeps its workers: ResNet-56, simulated",
        "",
        "Made by `jobs/benchmarks/scale.py`, whose docstring says what is real, what is charged and what the figures "
        f"mean. Commit {commit}, {datetime.now(UTC):%Y-%m-%d}, {machine()}, Ray {ray.__version__}. Ray's part of the "
        f"driver: {1000 * cost.send:.2f} ms a task sent, {1000 * cost.fetch:.2f} ms an answer, one wait for {waits} "
        "tasks.",
        "",
        "| workers | s a trial | store | busy, % | waits for record, % | waits for task, % | driver, % "
        "| coordinator, % | trials | " + " | ".join(f"{name}, ms" for name in PARTS) + " |",
        "| --- " * (9 + len(PARTS)) + "|",
    ]
    for row in rows:
        shares = (row.busy, row.for_record, row.for_task, row.driver, row.coordinator)
        cells = [str(row.workers), f"{row.seconds:g}", row.store, *(f"{100 * value:.1f}" for value in shares)]
        cells.append(str(row.trials) if row.trials >= row.asked_for else f"{row.trials} of {row.asked_for}")
        cells += [f"{1000 * row.parts[name]:.2f}" for name in PARTS]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
