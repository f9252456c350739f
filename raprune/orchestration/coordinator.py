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

from raprune.errors import RapruneError, StoreError
from raprune.orchestration.gauges import RESTED, Facts, Heart
from raprune.orchestration.lease import ORPHANED_S, Lease, LeaseAnswer
from raprune.orchestration.recorder import Recorder
from raprune.orchestration.remote import answer
from raprune.orchestration.seats import Seat, Seated, Seats
from raprune.records import Trial
from raprune.results.progress import Progress, progress
from raprune.results.stages import Work
from raprune.store.files import UnreachableStoreError
from raprune.store.folder import RUN_FILE, Store

NAMESPACE = "raprune"

COORDINATOR = "coordinator"
"""Name under which the coordinator itself waits for a filesystem."""

SENDERS = 64
"""Records that may wait for one part; further ones wait for the next."""

_RUNNING_S = 10.0
"""Time for which the number of running trials that a driver told stays valid."""


class Coordinator:
    """The actor of the module. Get it by `find_coordinator`.

    `Recorder` writes the records, all that wait together; other calls are answered while it waits for a store that is
    unavailable.
    """

    def __init__(self, store: Store, orphaned_s: float = ORPHANED_S) -> None:
        self._lock = threading.Lock()
        self._outages: dict[str, str] = {}
        self._seats = Seats()
        self._store = store.told(lambda why: self.wait(COORDINATOR, why))
        self._run = self._store.record()
        self._recorder = Recorder(self._store, check=self._check_session)
        self._progress: Progress | None = None
        self._progress_due = 0.0
        self._works: dict[str, Work] = {}
        self._lease = Lease(heard_at=time.monotonic())
        self._running, self._running_at = 0, 0.0
        self._heart = Heart(self._store.name, self._facts)
        threading.Thread(target=self._end_when_orphaned, args=(orphaned_s,), daemon=True).start()

    @ray.method(concurrency_group="records")
    def record(self, trials: Sequence[Trial], session: str | None = None) -> None:
        """Record the trials of one task, all or none; they are durable when this returns. See `Recorder.record`.

        Raises:
            RapruneError: if the run is another driver's session by now.
            StoreError: if they could not be written.
        """
        self._recorder.record(trials, session)
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
        # Workers wait for the records that the coordinator has not written.
        self._seats.wait(None if who == COORDINATOR else who, waits=why is not None)

    @ray.method(concurrency_group="records")
    def reaches_store(self) -> bool:
        """True if the run's folder answers here, at this moment."""
        try:
            return Store(self._store.uri).exists(RUN_FILE)
        except StoreError:
            return False

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

    def actor(self, worker: str) -> bytes | None:
        """Handle of a worker's actor, packed; None for a worker that is not known."""
        return self._seats.actor(worker)

    def tell(self, key: str, work: Work) -> None:
        """Note the progress of a piece of work: of a trial, by its id, or of another task, by its own name."""
        self._seats.hear(key)
        with self._lock:
            if not self._recorder.is_recorded(key):
                self._works[key] = work

    def works(self) -> dict[str, Work]:
        """Progress of the pieces of work that processes told of, without those of recorded trials."""
        with self._lock:
            return dict(self._works)

    def has(self, trial_id: str) -> bool:
        """True if the trial is recorded."""
        return self._recorder.is_recorded(trial_id)

    def trial(self, trial_id: str) -> Trial:
        """One trial with its channels, recorded or about to be.

        Raises:
            StoreError: if nobody has sent it.
        """
        found = self._recorder.find(trial_id)
        if found is None:
            raise StoreError(
                f"{self._store.name}: trial {trial_id} is not recorded.",
                hint="`raprune resume` resumes the run from what is recorded.",
            )
        return found

    def missing(self, trial_ids: Sequence[str]) -> list[str]:
        """Those of the trials that are neither recorded nor about to be."""
        return self._recorder.missing(trial_ids)

    def trials(self) -> list[Trial]:
        """All recorded trials, in the order of their records, without the channels that stay."""
        return [trial.outline for trial in self._recorder.trials]

    def progress(self, running: int = 0, *, exact: bool = True) -> Progress:
        """The state of the run, with `running` trials under way.

        Unless it is to be `exact`, the state may be older than the last records: in a run of 100,000 trials it takes a
        second to compute, and is asked for every second. So it is computed in a twentieth of the time at most.
        """
        now = time.monotonic()
        self._running, self._running_at = running, now
        if exact or self._progress is None or now >= self._progress_due:
            self._progress = progress(self._run, self._recorder.trials, running=running, live=True)
            self._progress_due = time.monotonic() + RESTED * (time.monotonic() - now)
        return self._progress

    def _check_session(self, session: str | None) -> None:
        """Refuse the records of a driver's session that has lost the run to another driver.

        Raises:
            RapruneError: if so.
        """
        if session is not None and self._lease.holder not in (None, session):
            raise RapruneError(
                f"{self._store.name}: another driver took this run over.",
                hint="The run continues there; this driver ends.",
            )

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
            trials=self._recorder.trials,
            running=self.running(),
            silent_s=time.monotonic() - self._lease.heard_at,
            store_waits=len(self._outages),
        )


def find_coordinator(store: Store, *, orphaned_s: float = ORPHANED_S) -> ActorHandle[Any]:
    """The coordinator of the run in `store`, ready: the living one, else a new one on the node of this process.

    On another node, it could be cut off together with workers: it would continue to record there, while Ray starts a
    second one for the driver. A new one ends by itself `orphaned_s` after the last heartbeat of a driver (see `lease`).

    Raises:
        StoreError: if the store cannot be read.
    """
    remote: Any = ray.remote
    actor = remote(concurrency_groups={"records": SENDERS})(Coordinator)
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


def is_cut_off(coordinator: Any, error: Exception) -> bool:
    """True if the run's folder did not answer to this process but answers to the coordinator: the node is at fault.

    Raises:
        RapruneError: if the coordinator ended.
    """
    return isinstance(error, UnreachableStoreError) and bool(ask(coordinator.reaches_store.remote()))


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
