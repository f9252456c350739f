"""Kills for runs that must survive them: who, when, and what may be no different afterwards.

A run is the command line's, in a process of its own, on a Ray of its own or on `Nodes`. All processes carry a mark in
their environment, by which they are found, whoever started them.
"""

from __future__ import annotations

import os
import random
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from raprune.records import Stage
from raprune.store.folder import Store
from tests.orchestration.whole_search import facts

MARK = "RAPRUNE_TEST_DRIVER"

AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
"""Ray's own, which try for a minute or two to tell a driver that is no more, and then end."""


class Phase(StrEnum):
    """Where a run is, by what its store holds."""

    DENSE = "dense"
    STATISTICS = "statistics"
    SEARCH = "search"
    FINETUNE = "finetune"
    TEST = "test"
    FINISHED = "finished"


ORDER = list(Phase)


class Victim(StrEnum):
    """What is killed."""

    DRIVER = "driver"
    COORDINATOR = "coordinator"
    WORKER = "worker"
    """An actor that runs trials."""
    TASK = "task"
    """A process that trains the dense network or computes statistics."""
    TRAINER = "trainer"
    """A worker of Ray Train."""
    NODE = "node"
    """A node with all that runs there; not the driver's."""


TITLES = {
    Victim.COORDINATOR: r"^ray::(raprune-coordinator-\w+:)?Coordinator",
    # `tune.with_resources` derives a class, whose name stands there while a trial runs.
    Victim.WORKER: r"^ray::\S*(CandidateTrial|ResourceTrainable|_Inner)",
    Victim.TASK: r"^ray::(prepare_dense|_train|_score)",
    Victim.TRAINER: r"^ray::\S*RayTrainWorker",
}
"""Victim -> what Ray calls its process."""


@dataclass(frozen=True)
class Kill:
    """One kill: `victim`, once the run is in `phase` (None: in any), `delay_s` after both are there."""

    victim: Victim
    phase: Phase | None = None
    delay_s: float = 0.0


@dataclass
class Run:
    """A run of the command line that goes on after whatever was killed, and what was seen of it."""

    store: Store
    job: Sequence[str]
    """Arguments of `raprune search`."""
    mark: str
    environment: dict[str, str] = field(default_factory=dict)
    nodes: Nodes | None = None
    """Where it runs; None: each driver has a Ray of its own."""
    on_host: Callable[[Sequence[str]], list[str]] = list
    """The command that runs a command on the driver's host, where that is another one."""
    patience_s: float = 400.0
    """For a phase or a victim to come."""
    look_s: float = 0.1
    """Between two looks at the store."""
    starts: int = 0
    kills: list[str] = field(default_factory=list)
    """What was killed, and where the run was."""
    recorded: dict[str, float] = field(default_factory=dict)
    """Trial -> when it started, of all that were recorded at some kill."""
    _driver: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        return Path(f"{self.mark}.log")

    def survive(self, kills: Sequence[Kill]) -> None:
        """Carry out the kills one after another, resume whenever the driver ended by one, and see the run to its end.

        Kills whose phase went by too quickly are left out.
        """
        if self._driver is None:
            self.start()
        for kill in kills:
            pid = self._await(kill)
            if pid is not None:
                self._kill(kill.victim, pid)
        self.finish()

    def survive_any(self, count: int, rng: random.Random, *, victims: Sequence[Victim], longest_s: float) -> None:
        """Up to `count` kills, each of a random victim of those that are there, after random times up to `longest_s`.

        Another node comes in the place of one that is lost. The run may end before; it is seen to its end.
        """
        if self._driver is None:
            self.start()
        before = len(self.kills)
        while len(self.kills) < before + count:
            time.sleep(rng.uniform(0.0, longest_s))
            if not self._goes_on():
                break
            there = [(victim, pids[0]) for victim in victims if (pids := self.pids(victim))]
            if there and self.phase() is not None:
                victim, pid = rng.choice(there)
                self._kill(victim, pid)
                if victim is Victim.NODE and self.nodes is not None:
                    self.nodes.add(1)
        self.finish()

    def start(self) -> subprocess.Popen[bytes]:
        """The driver: `search` at first, `resume` once there is something to resume."""
        self.starts += 1
        self._driver = self.raprune(*(["resume", self.store.uri] if self.store.is_run() else ["search", *self.job]))
        return self._driver

    def raprune(self, *arguments: str, log: Path | None = None) -> subprocess.Popen[bytes]:
        """The command, begun; what it prints goes to the run's log, or to another one."""
        command = [sys.executable, "-c", "from raprune.cli import main; main()", *arguments]
        environment = {**os.environ, MARK: self.mark, **self.environment}
        if self.nodes is None and "RAY_AUTH_TOKEN" not in self.environment:
            # Its own Ray asks for its own token.
            environment.pop("RAY_AUTH_TOKEN", None)
        with (log or self.log).open("ab") as file:
            file.write(f"--- {' '.join(arguments)}\n".encode())
            file.flush()
            return subprocess.Popen(
                self.on_host(command),
                env=environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def finish(self) -> None:
        """Wait for the end of the driver, and resume where it was killed."""
        while True:
            assert self._driver is not None
            code = self._driver.wait(timeout=self.patience_s)
            if code == 0:
                return
            assert code == -signal.SIGKILL, f"the driver ended with {code}:\n{self.said()}"
            self.start()

    def said(self) -> str:
        """What the drivers printed."""
        return self.log.read_text()

    def snapshot(self) -> Set[tuple[str, float]]:
        """Every recorded trial, and when it started."""
        if not self.store.is_run():
            return set()
        return {(row["trial_id"], row["started_at"]) for row in self.store.rows(["trial_id", "started_at"])}

    def phase(self) -> Phase | None:
        """Where the run is; None before its folder is there."""
        return phase(self.store)

    def pids(self, victim: Victim) -> list[int]:
        """The processes that are such a victim now."""
        assert self._driver is not None
        if victim is Victim.DRIVER:
            return [self._driver.pid] if self._driver.poll() is None else []
        if victim is Victim.NODE:
            return [] if self.nodes is None else self.nodes.raylets()
        mark = self.mark if self.nodes is None else self.nodes.mark
        return [pid for pid, title in processes_of(mark).items() if re.search(TITLES[victim], title)]

    def _await(self, kill: Kill) -> int | None:
        """The victim's process, once it and the phase are there; None if the phase is over before."""
        until = time.monotonic() + self.patience_s
        while True:
            now = self.phase()
            if not self._goes_on() or (now and kill.phase and ORDER.index(now) > ORDER.index(kill.phase)):
                return None
            if now is not None and kill.phase in (None, now) and (pids := self.pids(kill.victim)):
                time.sleep(kill.delay_s)
                return pids[0]
            assert time.monotonic() < until, f"no {kill} came; the run is at {now}:\n{self.said()}"
            time.sleep(self.look_s)

    def _goes_on(self) -> bool:
        """Whether the run has not ended; a driver that was killed is resumed."""
        assert self._driver is not None
        code = self._driver.poll()
        assert code in (None, 0, -signal.SIGKILL), f"the driver ended with {code}:\n{self.said()}"
        if code == -signal.SIGKILL:
            self.start()
        return code != 0 and self.phase() is not Phase.FINISHED

    def _kill(self, victim: Victim, pid: int) -> None:
        now = self.phase()
        if victim is Victim.NODE:
            assert self.nodes is not None
            self.nodes.kill(pid)
        else:
            end(pid)
        if victim is Victim.DRIVER:
            assert self._driver is not None
            self._driver.wait(timeout=30)
        self.kills.append(f"{victim} in {now}")
        with self.log.open("a") as log:
            log.write(f"--- killed: {self.kills[-1]}\n")
        self.recorded |= dict(self.snapshot())


def start(mark: str, *arguments: str) -> subprocess.Popen[str]:
    """The command line with `arguments`, begun on a Ray of its own; its processes carry the mark."""
    command = [sys.executable, "-c", "from raprune.cli import main; main()", *arguments]
    environment = {**os.environ, MARK: mark}
    # Its own Ray asks for its own token.
    environment.pop("RAY_AUTH_TOKEN", None)
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, env=environment, text=True, stdout=pipe, stderr=subprocess.STDOUT, start_new_session=True
    )


def small_job(
    folder: Path,
    *,
    output: str | None = None,
    address: str | None = None,
    trials: int = 12,
    workers: int = 2,
    train_workers: int = 0,
) -> list[str]:
    """A job of a few workers on the digits that passes through every phase; its run is in `folder`, or at `output`."""
    at = "" if address is None else f'address = "{address}"\n'
    job = folder / "job.toml"
    job.write_text(
        f'output = "{output or folder / "run"}"\nmethods = ["l2", "l1", "random"]\n'
        '[model]\nname = "digits-net"\n[data]\nname = "digits"\nmax_images = 400\n'
        "[dense]\nepochs = 2\nlr = 0.1\n"
        f"[search]\ntrials = {trials}\nlookahead = 4\ncalibration_images = 64\nrungs = [0, 0.25]\nkeep = 0.5\n"
        "[finalists]\ncount = 2\neach_method = false\ntrain = { epochs = 4, lr = 0.05 }\n"
        f"[resources]\nworkers = {workers}\ntrain_workers = {train_workers}\ncheckpoint_every_s = 0\n{at}"
    )
    return [str(job)]


def differences(run: Run, undisturbed: Store) -> list[str]:
    """In what a run that was disturbed differs from one that was not, or went wrong on its way; nothing at best."""
    found = []
    trials = run.store.trials()
    ids = [trial.trial_id for trial in trials]
    if len(ids) != len(set(ids)):
        found.append("a trial was recorded twice")
    started = {trial.trial_id: trial.started_at for trial in trials}
    for trial_id, started_at in run.recorded.items():
        if started.get(trial_id) != started_at:
            found.append(f"{trial_id} was lost or run twice")
    ours, theirs = facts(trials), facts(undisturbed.trials())
    found += [f"{name} came out otherwise" for name in sorted({*ours, *theirs}) if ours.get(name) != theirs.get(name)]
    for what in ("report/front.json", "report/test.json"):
        if _timeless(run.store.read_json(what)) != _timeless(undisturbed.read_json(what)):
            found.append(f"{what} came out otherwise")
    return found


def _timeless(content: Any) -> Any:
    """Rows without what a clock said."""
    if isinstance(content, list):
        return [_timeless(row) for row in content]
    if isinstance(content, dict):
        clocks = ("seconds", "gpu_seconds", "started_at", "worker", "measured", "speedup")
        return {key: _timeless(value) for key, value in content.items() if not key.startswith(clocks)}
    return content


def phase(store: Store) -> Phase | None:
    """Where the run in `store` is, by what is there; None before its folder is."""
    if not store.is_run():
        return None
    run = store.run()
    if run["state"] == "finished":
        return Phase.FINISHED
    if run["dense"]["val_accuracy"] is None:
        return Phase.DENSE
    rows = store.rows(["stage", "state"])
    if not rows:
        return Phase.SEARCH if "statistics" in run else Phase.STATISTICS
    finetuned = sum(row["stage"] == Stage.FINETUNE for row in rows)
    if not finetuned and not any(name.startswith("finetune") for name in store.names("checkpoints")):
        return Phase.SEARCH
    wanted = run["spec"]["finalists"]["count"] * run["spec"]["finalists"]["seeds"]
    return Phase.FINETUNE if finetuned < wanted else Phase.TEST


def end(pid: int) -> None:
    """SIGKILL; a process that is gone already has had its end."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def processes_of(mark: str) -> dict[int, str]:
    """Pid -> command of the processes that inherited a mark."""
    found = {}
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and f"{MARK}={mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
        except OSError:
            continue
    return {pid: command for pid, command in found.items() if command}


def wait_until(condition: Callable[[], Any], *, seconds: float, every: float = 0.1) -> Any:
    """What `condition` gives once it is true, or at last after so many seconds."""
    until = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < until:
        time.sleep(every)
    return found


def wait_until_gone(mark: str, *, but: tuple[str, ...], seconds: float) -> set[str]:
    """What still runs after so many seconds of the processes that inherited a mark, apart from `but`."""

    def left() -> set[str]:
        return set(processes_of(mark).values()) - set(but)

    wait_until(lambda: not left(), seconds=seconds, every=0.2)
    return left()


class Nodes:
    """A Ray cluster on this machine of nodes that can be killed; drivers join it at its head."""

    def __init__(self, mark: str, *, head_cpus: int, others: Sequence[int]) -> None:
        # Drivers read it from here too.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        from ray.cluster_utils import Cluster

        self.mark = mark
        with marked(mark):
            self._cluster = Cluster(
                initialize_head=True, head_node_args={"num_cpus": head_cpus, "include_dashboard": False}
            )
        for cpus in others:
            self.add(cpus)

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    def add(self, cpus: int) -> None:
        """One more node."""
        with marked(self.mark):
            self._cluster.add_node(num_cpus=cpus)

    def raylets(self) -> list[int]:
        """Of the nodes that can be killed."""
        return [node.all_processes["raylet"][0].process.pid for node in self._cluster.worker_nodes]

    def kill(self, raylet: int) -> None:
        """The node of this raylet is gone from one moment to the next."""
        gone = next(n for n in self._cluster.worker_nodes if n.all_processes["raylet"][0].process.pid == raylet)
        self._cluster.remove_node(gone, allow_graceful=False)

    def shutdown(self) -> None:
        self._cluster.shutdown()


@contextmanager
def marked(mark: str) -> Iterator[None]:
    """What is started inside carries the mark."""
    os.environ[MARK] = mark
    try:
        yield
    finally:
        del os.environ[MARK]
