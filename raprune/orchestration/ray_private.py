"""The private names of Ray that raprune uses, one function for each.

Ray may change any of them without notice, so no other module names one. `tests/orchestration/test_ray_private.py` has a
test for each function that says what breaks. Ray is imported inside the functions: `cluster/connect.py` calls the first
of them before Ray has read its settings.
"""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.tune.experiment import Trial as TuneTrial

_CLIENT_LOGGERS = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)


def rebuild_uv_environment(is_on: bool) -> None:
    """Decide if Ray builds the environment of `uv run` again for its workers.

    Ray reads its variable RAY_ENABLE_UV_RUN_RUNTIME_ENV when it is imported, which may have happened already.
    """
    from ray._private import ray_constants

    ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV = is_on


def dashboard_url() -> str | None:
    """Address of the dashboard of the joined cluster; empty or None if it has no dashboard."""
    import ray

    return ray._private.worker.get_dashboard_url()


def metrics_report_interval_s() -> float:
    """Seconds between two exports of metrics by Ray's processes."""
    import ray

    return ray._config.metrics_report_interval_ms() / 1000


def keep_idle_actors(tune_controller: Any, trial: TuneTrial, count: int) -> None:
    """Have Tune keep `count` more idle actors of the trial's size for reuse, where it would end all but one."""
    tune_controller._actor_cache.increase_max(trial.placement_group_factory, count)


def has_actor(tune_controller: Any, trial: TuneTrial) -> bool:
    """True if Tune has given the trial an actor, started or still starting."""
    return trial in tune_controller._trial_to_actor


def serve_http_options() -> dict[str, Any] | None:
    """HTTP options of the cluster's Ray Serve as JSON; None if Serve does not run."""
    from ray.serve.context import _get_global_client

    client: Any = _get_global_client(raise_if_no_controller_running=False)
    return None if client is None else client.get_serve_details().get("http_options") or {}


def delete_application_soon(name: str) -> None:
    """Ask Ray Serve to delete an application, without waiting for it: a replica may so delete its own."""
    from ray import serve

    serve.delete(name, _blocking=False)


def merge_job_metadata(job: str, metadata: dict[str, str]) -> None:
    """Merge `metadata` into that of the job with this submission id, which the Jobs API cannot change.

    Only the driver of the job may call this: Ray itself writes before the driver starts and after it has ended.
    """
    from ray._private.ray_constants import KV_NAMESPACE_JOB
    from ray.dashboard.modules.job.common import JobInfoStorageClient
    from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_put

    key = JobInfoStorageClient.JOB_DATA_KEY.format(job_id=job)
    stored = json.loads(_internal_kv_get(key, namespace=KV_NAMESPACE_JOB))
    stored["metadata"] = {**(stored.get("metadata") or {}), **metadata}
    _internal_kv_put(key, json.dumps(stored), overwrite=True, namespace=KV_NAMESPACE_JOB)


def quiet_job_client() -> None:
    """Silence the progress messages of Ray's job client, which would stand between the lines for the user.

    Call it after the client was imported: its modules set their own levels.
    """
    for name in _CLIENT_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
