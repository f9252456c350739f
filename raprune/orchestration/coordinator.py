"""The run's actor: single writer of its trials, holder of its front, source of its gauges.

Named, detached and restartable: it outlives a worker and, on a cluster that was joined, a driver that was killed; a
resumed driver finds it by its name. Its memory is the store, from which it is rebuilt.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Sequence
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raprune.errors import RapruneError
from raprune.orchestration.gauges import Facts, Heart
from raprune.orchestration.lease import ORPHANED_S, Lease, LeaseAnswer
from raprune.orchestration.remote import answer
from raprune.orchestration.seats import Seat, Seated, Seats
from raprune.records import Trial
from raprune.results.progress import Progress, progress
from raprune.results.stages import Work
from raprune.store.folder import Store

NAMESPACE = "raprune"

_RUNNING_S = 10.0
"""Time for which the number of running trials that a driver told stays valid."""


class Coordinator:
    """The actor of the module. Get it by `find_coordinator`.

    A thread of its own writes the records, in their order; other calls are answered while it waits for a store that is
    away.
    """

    def __init__(self, store: Store, orphaned_s: float = ORPHANED_S) -> None:
        self._lock = threading.Lock()
        self._outages: dict[str, str] = {}
        self._store = store.told(lambda why: self.wait("coordinator", why))
        self._run = self._store.record()
        self._trials = {trial.trial_id: trial for trial in self._store.trials()}
        self._seats = Seats()
        self._works: dict[str, Work] = {}
        self._lease = Lease(heard_at=time.monotonic())
        self._running, self._running_at = 0, 0.0
        self._heart = Heart(self._store.name, self._facts)
        threading.Thread(target=self._end_when_orphaned, args=(orphaned_s,), daemon=True).start()

    @ray.method(concurrency_group="records")
    def record(self, trials: Sequence[Trial], session: str | None = None) -> None:
        """Write the trials of one task, all or none; they are durable when this returns.

        A recorded trial is never replaced: a worker that was lost right after its trial was written runs it again, and
        so does a task whose coordinator was lost before it could answer.

        Raises:
            RapruneError: if the run is another driver's session by now.
            StoreError: if they could not be written.
        """
        if session is not None and self._lease.holder not in (None, session):
            raise RapruneError(
                f"{self._store.name}: another driver took this run over.",
                hint="The run continues there; this driver ends.",
            )
        new = [trial for trial in trials if trial.trial_id not in self._trials]
        self._store.append(new)
        # A new dictionary: other threads read the old one.
        self._trials = self._trials | {trial.trial_id: trial for trial in new}
        with self._lock:
            for trial in trials:
                self._works.pop(trial.trial_id, None)

    def reread(self) -> None:
        """Read `run.json` again, after the dense network's accuracy was added to it."""
        self._run = self._store.record()

    def hold(self, session: str) -> LeaseAnswer:
        """Take a heartbeat of a driver's session, by which the session asks for the run or keeps it."""
        return LeaseAnswer(self._lease.take(session, time.monotonic()), dict(self._outages))

    def wait(self, who: str, why: str | None) -> None:
        """Note that `who` waits for a filesystem and why, or (None) that it continues."""
        with self._lock:
            if why is None:
                self._outages.pop(who, None)
            else:
                self._outages[who] = why

    def sit(self, seat: Seat, trial_id: str, *, is_up: bool) -> None:
        """Note that a worker has this task now; `is_up`: as `Seats.take`."""
        self._seats.take(seat, trial_id, is_up=is_up)

    def fault(self, worker: str, text: str) -> None:
        """Note why a worker ends itself."""
        self._seats.fault(worker, text)

    def seats(self) -> list[Seated]:
        """The seats of the tasks that workers have, or had last."""
        return self._seats.all()

    def seat(self, trial_id: str) -> Seated | None:
        """The seat that had this task last, if its worker has no other one."""
        return self._seats.last(trial_id)

    def actor(self, worker: str) -> Any:
        """Handle of a worker's actor."""
        return self._seats.actor(worker)

    def tell(self, key: str, work: Work) -> None:
        """Note the progress of a piece of work: of a trial, by its id, or of another task, by its own name."""
        self._seats.hear(key)
        with self._lock:
            if key not in self._trials:
                self._works[key] = work

    def works(self) -> dict[str, Work]:
        """Progress of the pieces of work that processes told of, without those of recorded trials."""
        with self._lock:
            return dict(self._works)

    def has(self, trial_id: str) -> bool:
        """True if the trial is recorded."""
        return trial_id in self._trials

    def trial(self, trial_id: str) -> Trial:
        """One recorded trial."""
        return self._trials[trial_id]

    def trials(self) -> list[Trial]:
        """All recorded trials, in the order of their records."""
        return list(self._trials.values())

    def progress(self, running: int = 0) -> Progress:
        """The state of the run, with `running` trials under way."""
        self._running, self._running_at = running, time.monotonic()
        return progress(self._run, self.trials(), running=running, live=True)

    def _end_when_orphaned(self, after_s: float) -> None:
        while not self._lease.is_orphaned(time.monotonic(), after_s):
            time.sleep(min(after_s / 4, 10.0))
        ray.kill(ray.get_runtime_context().current_actor)

    def unexported_s(self) -> float:
        """Seconds until all records have surely been exported to Prometheus."""
        return self._heart.unexported_s()

    def running(self) -> int:
        """Number of running trials that the driver told recently; else 0."""
        return self._running if time.monotonic() - self._running_at < _RUNNING_S else 0

    def _facts(self) -> Facts:
        return Facts(
            run=self._run,
            trials=self._trials,
            running=self.running(),
            silent_s=time.monotonic() - self._lease.heard_at,
            store_waits=len(self._outages),
        )


def find_coordinator(store: Store, *, orphaned_s: float = ORPHANED_S) -> ActorHandle[Any]:
    """The coordinator of the run in `store`, ready: the living one, else a new one on the node of this process.

    On another node, it could be cut off together with workers: it would go on recording there, while Ray starts a
    second one for the driver. A new one ends by itself `orphaned_s` after the last heartbeat of a driver (see `lease`).

    Raises:
        StoreError: if the store cannot be read.
    """
    remote: Any = ray.remote
    actor = remote(concurrency_groups={"records": 1})(Coordinator)
    handle: ActorHandle[Any] = actor.options(
        name=coordinator_name(store.uri),
        namespace=NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        num_cpus=0,
        max_restarts=-1,
        max_task_retries=-1,
        # Ray takes `soft=True` for leave to choose any node for an actor without CPUs. If the node is lost, so is the
        # driver, and the one that resumes the run finds none and starts its own.
        scheduling_strategy=NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False),
    ).remote(store, orphaned_s)
    ready: Any = handle.progress
    ask(ready.remote())
    return handle


def ask(reference: Any) -> Any:
    """The answer of the coordinator.

    Raises:
        RapruneError: its own error; or that it ended.
    """
    return answer(
        reference,
        lost="The run's coordinator ended",
        hint="`raprune resume` resumes the run from what is recorded.",
    )


def coordinator_name(uri: str) -> str:
    """Name of the coordinator of the run in this folder."""
    return f"raprune-coordinator-{hashlib.sha256(uri.encode()).hexdigest()[:12]}"
