"""Start Ray quietly in this process, or join a cluster; and the resources of its nodes."""

from __future__ import annotations

import logging
import os
import secrets
import sys
import warnings
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

from raprune.errors import RapruneError, Terminated, UsageError
from raprune.orchestration.interruption import hear, heard
from raprune.orchestration.jobs.metadata import cluster_address
from raprune.orchestration.ray_private import rebuild_uv_environment

SETTINGS = {
    # One line of ours instead of Tune's tables, loggers, warnings and traces.
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_THRESHOLD_S": "60",
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "86400",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    # A lost worker is noticed, and a finished group ends, two seconds sooner.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_DEDUP_LOGS": "0",
    # We handle Ctrl-C: Tune's handler would finish its step and swallow it.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # The store holds the run; Tune's own state is thrown away.
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",
    # The searcher bounds the number of pending tasks.
    "TUNE_MAX_PENDING_TRIALS_PG": "100000",
    # Relative paths of the job mean the same in a worker.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}

_UV = "RAY_ENABLE_UV_RUN_RUNTIME_ENV"


@contextmanager
def cluster(address: str | None) -> Iterator[None]:
    """Ray for the time of the block: join the cluster at `address`, or start Ray here and end it with the block.

    A submitted job joins the cluster that it was submitted to. If this process is connected to a cluster already, it
    stays so.

    Raises:
        UsageError: if no cluster answers at `address`.
        RapruneError: if Ray does not start.
    """
    address = cluster_address(address)
    _settle(address)
    import ray

    if ray.is_initialized():
        yield
        return
    with heard():
        try:
            connect(address)
        except SystemExit:
            # While Ray starts, it hears SIGTERM by handlers of its own, which end the process in silence.
            raise Terminated from None
        hear()
        try:
            yield
        finally:
            ray.shutdown()


def node_resources(but: Collection[str] = ()) -> list[Mapping[str, float]]:
    """Resources of each living node, without those of the ids in `but`."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"] and node["NodeID"] not in but]


def machine() -> str:
    """The CPUs and GPUs of this machine, in words, for the record of a run."""
    # Torch takes seconds to load, and most commands that connect need none.
    import torch

    from raprune.cost.conditions import device_name

    cpu = device_name(torch.device("cpu"))
    gpus = Counter(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
    parts = [f"{os.cpu_count()} x {cpu}", *(f"{count} x {name}" for name, count in gpus.items())]
    return ", ".join(parts)


def connect(address: str | None, *, num_cpus: int | None = None, num_gpus: int | None = None) -> None:
    """Join the cluster at `address`; without one, start Ray here with that many CPUs and GPUs, or with all there are.

    Raises:
        UsageError: if no cluster answers at `address`.
        RapruneError: if Ray does not start.
    """
    _settle(address)
    import ray

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            ray.init(
                address=address or "local",
                num_cpus=num_cpus,
                num_gpus=num_gpus,
                include_dashboard=False if address is None else None,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        except Exception as error:
            # Ray raises a plain Exception, for one, if a busy machine does not start it within half a minute.
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            if address is None:
                raise RapruneError(
                    f"Ray did not start: {reason}",
                    hint="The machine may be busy, or short of memory or disk. Try again; Ray's own logs say more.",
                ) from error
            raise UsageError(
                f"resources.address (--address) {address!r}: no Ray cluster answers there: {reason}",
                hint="`ray status` on the cluster's head shows its address; RAY_AUTH_TOKEN must be the cluster's.",
            ) from error


def _settle(address: str | None) -> None:
    """Put Ray's settings into the environment, from which Ray and its processes read them."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    if address is None:
        # The node of this process is not preempted: a group has one process less to start.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        # A task's process waits for the next one: Ray would end it after a second, and a new one imports torch.
        os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "60000")
        # Else Ray would write a token into the home folder.
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        if "ray" not in sys.modules:
            # Read when Ray is imported; from 2.59 on a local cluster asks for tokens without it.
            os.environ.setdefault("RAY_AUTH_MODE", "token")
    # Under `uv run` Ray would build the environment again for its workers, which share this one or have their own.
    os.environ.setdefault(_UV, "0")
    rebuild_uv_environment(os.environ[_UV] == "1")
    for name in ("ray", "ray.tune", "ray.train", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # It reports tasks whose worker was lost, which the searcher has handled.
    logging.getLogger("ray.tune.tune").setLevel(logging.CRITICAL)
