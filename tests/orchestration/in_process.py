"""A synchronous executor that replaces Ray and Ray Tune in one process.

The real driver, searcher, coordinator and workers run on it. Where Ray would start a process or send a message, the
executor calls the function, with arguments that are pickled and unpickled as Ray's are. So the logic of a search
(order, resume, seeds, early stops, lost workers) is tested in seconds. Tests on a real cluster hold that Ray behaves
like the executor (`test_search_on_ray.py`), and that processes end.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import os
import random
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn, cast

import pytest
import ray
import torch
from ray import cloudpickle, tune
from ray.tune.search import Searcher
from ray.tune.utils import flatten_dict

from raprune.orchestration import coordinator, gauges
from raprune.orchestration.tasks import Assignment
from raprune.orchestration.workers import latency, trials
from raprune.orchestration.workers.trials import CandidateTrial

NODE = "0" * 56

BROKEN = "RAPRUNE_TEST_BROKEN"
"""Variable that is `yes` while a worker runs that is one of `Executor.broken`."""


@dataclass
class Executor:
    """State of the executor: values, actors, and the tasks that have ended."""

    cpus: float
    order: random.Random
    """Draws which of the tasks that are out ends next."""
    losses: dict[str, int]
    """Trial -> how often the worker that runs it is lost; counted down."""
    numbers: Iterator[int] = field(default_factory=itertools.count)
    """Numbers for references and actors; threads of the driver draw from it too."""
    objects: dict[int, Any] = field(default_factory=dict)
    actors: dict[int, Any] = field(default_factory=dict)
    named: dict[str, Handle] = field(default_factory=dict)
    done: list[str] = field(default_factory=list)
    """Ids of the trials in the order in which their tasks ended."""
    broken: frozenset[int] = frozenset()
    """Numbers of the workers, from 1, whose device is broken."""
    workers_started: int = 0
    workers_ended: int = 0
    """Number of workers that ended themselves."""

    def put(self, value: Any) -> Reference:
        return self.keep(copied(value))

    def keep(self, value: Any) -> Reference:
        """A reference to the value itself."""
        reference = Reference(next(self.numbers))
        self.objects[reference.number] = value
        return reference

    def call(self, work: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Reference:
        """A reference to the result or the error of `work`, called with copies of its arguments.

        References among the arguments are replaced by their values, as Ray does.
        """
        args, kwargs = copied((list(args), dict(kwargs)))
        try:
            result = work(*map(self._value, args), **{k: self._value(v) for k, v in kwargs.items()})
            return self.keep(copied(asyncio.run(result) if inspect.iscoroutine(result) else result))
        except Exception as error:
            return self.keep(Raised(error))

    def get(self, reference: Any, timeout: float | None = None) -> Any:
        if isinstance(reference, list):
            return [self.get(one) for one in reference]
        value = self._value(reference)
        if isinstance(value, Raised):
            raise value.error
        return value

    def _value(self, argument: Any) -> Any:
        return self.objects[argument.number] if isinstance(argument, Reference) else argument

    def remote(self, *work: Any, **options: Any) -> Any:
        if not work:
            return lambda work: self.remote(work, **options)
        return Remote(self, work[0], options)

    def kill(self, handle: Handle, *, no_restart: bool = True) -> None:
        self.actors.pop(handle.number, None)
        self.named = {name: one for name, one in self.named.items() if one.number != handle.number}

    def node(self) -> dict[str, Any]:
        here = {"NodeID": NODE, "NodeName": NODE, "NodeManagerAddress": "127.0.0.1", "NodeManagerHostname": NODE}
        socket = str(Path("/tmp/session/sockets/raylet"))
        return here | {"Alive": True, "RayletSocketName": socket, "Resources": {"CPU": self.cpus, "memory": 2.0**33}}


_running: list[Executor] = []


def copied(value: Any) -> Any:
    """The value as another process would get it."""
    return cloudpickle.loads(cloudpickle.dumps(value)) if not isinstance(value, Iterator) else value


@dataclass(frozen=True)
class Reference:
    """Stands for a value of the executor."""

    number: int


@dataclass(frozen=True)
class Raised:
    """Stands for the value of a task that raised."""

    error: Exception


@dataclass(frozen=True)
class Handle:
    """Stands for an actor, wherever it is sent."""

    number: int

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return SimpleNamespace(remote=lambda *args, **kwargs: self._call(name, args, kwargs))

    def _call(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Reference:
        executor = _running[-1]
        if self.number not in executor.actors:
            # As Ray does: a thread may ask just when the actor has been ended.
            return executor.keep(Raised(ray.exceptions.RayActorError()))
        actor, lock = executor.actors[self.number]
        with lock:
            return executor.call(getattr(actor, name), args, kwargs)


@dataclass(frozen=True)
class Remote:
    """A function or a class that Ray is asked to run."""

    executor: Executor
    work: Any
    settings: dict[str, Any]

    def options(self, **settings: Any) -> Remote:
        return Remote(self.executor, self.work, self.settings | settings)

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        if isinstance(self.work, type):
            return self._actor(args, kwargs)
        answer = self.executor.call(self.work, args, kwargs)
        if self.settings.get("num_returns") == "streaming":
            return (self.executor.put(item) for item in self.executor.get(answer))
        return answer

    def _actor(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Handle:
        executor, name = self.executor, self.settings.get("name")
        if name in executor.named:
            return executor.named[name]
        handle = Handle(next(executor.numbers))
        executor.actors[handle.number] = (self.work(*copied(list(args)), **copied(dict(kwargs))), threading.RLock())
        if name is not None:
            executor.named[name] = handle
        return handle


class InProcessTuner:
    """Tune's loop: starts every task that the searcher gives, then carries out one of them at a time."""

    def __init__(
        self, trainable: Callable[[dict[str, Any]], Worker], *, tune_config: tune.TuneConfig, run_config: Any
    ) -> None:
        self._trainable = trainable
        self._searcher = cast(Searcher, tune_config.search_alg)

    def fit(self) -> None:
        executor, number = _running[-1], 0
        out: dict[str, tuple[Worker, dict[str, Any]]] = {}
        idle: list[Worker] = []
        while True:
            name = f"{number:05d}"
            config: Any = self._searcher.suggest(name)
            if isinstance(config, dict):
                number += 1
                out[name] = (idle.pop() if idle else self._trainable(config), config)
                continue
            if not out:
                assert config == Searcher.FINISHED, "the searcher waits, and nothing is under way"
                return
            name = executor.order.choice(sorted(out))
            worker, config = out.pop(name)
            trial_ids = [task.trial_id for task in Assignment.of(config).tasks]
            if trial_id := next((one for one in trial_ids if executor.losses.get(one, 0) > 0), None):
                executor.losses[trial_id] -= 1
                self._searcher.on_trial_complete(name, error=True)
                continue
            try:
                result = worker.step(config)
            except WorkerEnded:
                executor.workers_ended += 1
                self._searcher.on_trial_complete(name, error=True)
                continue
            executor.done += trial_ids
            idle.append(worker)
            self._searcher.on_trial_complete(name, result=flatten_dict(result))


class WorkerEnded(BaseException):
    """Stands for the end of a worker's process."""


def end_worker() -> NoReturn:
    raise WorkerEnded


class Worker:
    """One `CandidateTrial`, set up as Tune does."""

    def __init__(self, config: dict[str, Any], shared: Any) -> None:
        executor = _running[-1]
        executor.workers_started += 1
        self._trial = CandidateTrial.__new__(CandidateTrial)
        self._trial.setup(copied(config), shared=copied(shared))
        self._is_broken = executor.workers_started in executor.broken
        self._trial._name = f"worker:{executor.workers_started}"
        self._trial._seat = replace(self._trial._seat, worker=self._trial._name)
        # The first tasks wait until all workers have joined; here the tasks run one after another.
        meeting = self._trial._shared.meeting
        assert meeting is not None, "given by the driver"
        meeting.come.remote(self._trial._name)

    def step(self, config: dict[str, Any]) -> dict[str, Any]:
        self._trial.reset_config(copied(config))
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("RAY_JOB_ID", "in-process")
            patch.setenv(BROKEN, "yes" if self._is_broken else "no")
            return cast(dict[str, Any], copied(self._trial.step()))


@contextmanager
def in_process(
    *,
    cpus: float = 3.0,
    order: int = 0,
    losses: Mapping[str, int] | None = None,
    broken: Collection[int] = (),
) -> Iterator[Executor]:
    """Run the searches of this process on an executor with `cpus` CPUs; the seed `order` draws which task ends next."""
    executor = Executor(cpus, random.Random(order), dict(losses or {}), broken=frozenset(broken))
    context = SimpleNamespace(get_node_id=lambda: NODE, current_actor=None)
    threads = torch.get_num_threads()
    _running.append(executor)
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name in ("put", "get", "remote", "kill"):
                patch.setattr(ray, name, getattr(executor, name))
            patch.setattr(ray, "wait", lambda references, **_: (references, []))
            patch.setattr(ray, "nodes", lambda: [executor.node()])
            patch.setattr(ray, "is_initialized", lambda: True)
            patch.setattr(ray, "get_runtime_context", lambda: context)
            patch.setattr(tune, "Tuner", InProcessTuner)
            patch.setattr(tune, "with_parameters", lambda trainable, *, shared: lambda config: Worker(config, shared))
            patch.setattr(tune, "with_resources", lambda trainable, resources: trainable)
            patch.setattr(trials, "end_process", end_worker)
            # Nothing is exported to Prometheus, and the actor ends with the executor.
            patch.setattr(coordinator, "Heart", lambda run, read: None)
            patch.setattr(coordinator.Coordinator, "_end_when_orphaned", lambda self, after_s: None)
            patch.setattr(gauges, "dashboard_url", lambda: None)
            # No whole node gets free: what is timed is timed in the room of a trial.
            patch.setattr(latency, "placement_group", lambda bundles: SimpleNamespace(wait=lambda seconds: False))
            patch.setattr(latency, "remove_placement_group", lambda group: None)
            yield executor
    finally:
        _running.remove(executor)
        torch.set_num_threads(threads)
        assert os.environ.get("RAY_JOB_ID") != "in-process"
