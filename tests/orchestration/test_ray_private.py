"""Each private name of Ray that raprune uses: what it does today, and what breaks when Ray changes it."""

from __future__ import annotations

import ast
import json
import logging
import time
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import raprune
from raprune.orchestration import ray_private

ROOT = Path(raprune.__path__[0])
MODULES = sorted(path for path in ROOT.rglob("*.py") if path.name != "ray_private.py")


def private_names(source: str) -> set[str]:
    """Private attributes, imports, arguments and module names that a source takes from Ray or from any foreign object.

    A private attribute counts unless its object is `self` or `cls`; `os._exit` is documented and none.
    """
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ray"):
            names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            found |= {name for name in names if name.startswith("_") and name != "__future__"}
        elif isinstance(node, ast.Import):
            parts = [part for alias in node.names if alias.name.startswith("ray") for part in alias.name.split(".")]
            found |= {part for part in parts if part.startswith("_")}
        elif isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            owner = ast.unparse(node.value)
            if owner not in ("self", "cls") and ast.unparse(node) != "os._exit":
                found.add(f"{owner}.{node.attr}")
        elif isinstance(node, ast.keyword) and (node.arg or "").startswith("_"):
            found.add(str(node.arg))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("ray._"):
            found.add(node.value)
    return found


@pytest.mark.parametrize("path", [p for p in MODULES if p.is_relative_to(ROOT / "orchestration")], ids=lambda p: p.stem)
def test_module_of_orchestration_names_nothing_private_of_ray(path: Path) -> None:
    assert private_names(path.read_text()) == set()


def test_private_names_in_a_source_are_found() -> None:
    """The test above would pass on everything if this reading found nothing."""
    source = (
        "import ray\nfrom ray._private import ray_constants\nfrom ray.serve.context import _get_global_client\n"
        "ray._config.metrics()\ncontroller._actors\nserve.delete('a', _blocking=False)\nself._own\n"
        "LOGGER = 'ray._private.packaging'\n"
    )
    assert private_names(source) == {
        *("_private", "_get_global_client", "ray._config", "controller._actors", "_blocking", "ray._private.packaging"),
    }


def test_rebuild_uv_environment_off_leaves_the_runtime_environment_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else every worker of a driver under `uv run` builds the environment again: minutes, and a download."""
    from ray._private import ray_constants, worker
    from ray._private.runtime_env import uv_runtime_env_hook

    monkeypatch.setattr(ray_constants, "RAY_ENABLE_UV_RUN_RUNTIME_ENV", True)
    monkeypatch.setattr(uv_runtime_env_hook, "_get_uv_run_cmdline", lambda: ["uv", "run", "raprune"])
    monkeypatch.setattr(uv_runtime_env_hook, "hook", lambda environment: {"py_executable": "uv run"})
    assert worker._maybe_modify_runtime_env(None, False) == {"py_executable": "uv run"}
    ray_private.rebuild_uv_environment(False)
    assert worker._maybe_modify_runtime_env(None, False) != {"py_executable": "uv run"}


def test_quiet_job_client_silences_the_loggers_that_the_client_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else `raprune submit` mixes Ray's lines about uploads into its own."""
    from ray._private.runtime_env import packaging
    from ray.dashboard.modules import dashboard_sdk
    from ray.dashboard.modules.job import sdk

    loggers = (dashboard_sdk.logger, sdk.logger, packaging.default_logger)
    for logger in loggers:
        monkeypatch.setattr(logger, "level", logging.INFO)
    ray_private.quiet_job_client()
    assert [logger.level for logger in loggers] == [logging.ERROR] * len(loggers)


@pytest.mark.ray
def test_dashboard_url_without_a_dashboard_is_empty(ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a search waits at its end for a Prometheus that cannot know of it, or leaves before its last numbers."""
    assert not ray_private.dashboard_url()
    monkeypatch.setenv("RAY_OVERRIDE_DASHBOARD_URL", "http://head:8265")
    assert ray_private.dashboard_url() == "head:8265"


@pytest.mark.ray
def test_metrics_report_interval_is_the_one_that_ray_was_started_with(ray_cluster: None) -> None:
    """Else gauges are set less often than Ray drops them, and vanish from the dashboards."""
    assert ray_private.metrics_report_interval_s() == 1.0


@pytest.mark.ray
def test_tune_keeps_as_many_idle_actors_as_asked_for(ray_cluster: None, tmp_path: Path) -> None:
    """Else Tune ends workers that have nothing to do for a moment; each costs seconds and a copy of the data."""
    controller, trial = tune_controller(tmp_path)
    cache, size = controller._actor_cache, trial.placement_group_factory
    assert cache.total_max_objects == 0
    ray_private.keep_idle_actors(controller, trial, 3)
    kept = [cache.cache_object(size, f"actor {number}") for number in range(4)]
    assert kept == [True, True, True, False]


@pytest.mark.ray
def test_has_actor_is_true_once_tune_has_given_one(ray_cluster: None, tmp_path: Path) -> None:
    """Else Tune ends a new worker before it ever ran, because a free one took its task."""
    controller, trial = tune_controller(tmp_path)
    controller.add_trial(trial)
    assert not ray_private.has_actor(controller, trial)
    controller._schedule_trial_actor(trial)
    assert ray_private.has_actor(controller, trial)
    controller.cleanup()


@pytest.mark.ray
def test_merge_job_metadata_keeps_what_ray_wrote_and_is_read_by_the_jobs_api(ray_cluster: None) -> None:
    """Else the Jobs tab and `raprune jobs` show neither the best candidate nor the page of a running search."""
    import ray
    from ray.dashboard.modules.job.common import JobInfoStorageClient
    from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_put

    key = JobInfoStorageClient.JOB_DATA_KEY.format(job_id="raysubmit_test")
    info = {"status": "RUNNING", "entrypoint": "raprune search", "metadata": {"job_name": "digits", "best": "old"}}
    _internal_kv_put(key, json.dumps(info), namespace="job")
    try:
        ray_private.merge_job_metadata("raysubmit_test", {"best": "new"})
        stored = ray.get(ray.remote(_job_info).options(num_cpus=0).remote("raysubmit_test"))
        assert stored.metadata == {"job_name": "digits", "best": "new"} and stored.entrypoint == "raprune search"
    finally:
        _internal_kv_del(key, namespace="job")


@pytest.mark.ray
def test_serve_options_and_deletion_without_waiting(ray_cluster: None) -> None:
    """Else the page starts a second Serve beside a running one, and a replica that ends itself waits for itself."""
    with warnings.catch_warnings():
        # Ray declares its settings in a way that newer versions of pydantic warn of.
        warnings.simplefilter("ignore")
        from ray import serve

    assert ray_private.serve_http_options() is None

    @serve.deployment(ray_actor_options={"num_cpus": 0})
    class Empty:
        """An application without a duty."""

    try:
        serve.start(proxy_location="Disabled", http_options={"host": "127.0.0.1", "port": 8123})
        options = ray_private.serve_http_options()
        assert options is not None and (options["host"], options["port"]) == ("127.0.0.1", 8123)
        application: Any = Empty
        serve.run(application.bind(), name="empty", route_prefix=None)
        ray_private.delete_application_soon("empty")
        until = time.monotonic() + 30
        while "empty" in serve.status().applications and time.monotonic() < until:
            time.sleep(0.1)
        assert "empty" not in serve.status().applications
    finally:
        serve.shutdown()


def tune_controller(folder: Path) -> Any:
    """A controller of Tune that keeps its actors, and a trial of it."""
    from ray.train._internal.storage import StorageContext
    from ray.tune.execution.tune_controller import TuneController
    from ray.tune.experiment import Trial
    from ray.tune.registry import register_trainable

    register_trainable("raprune-test", _trainable())
    storage = StorageContext(storage_path=str(folder), experiment_dir_name="search")
    trial = Trial("raprune-test", storage=storage, placement_group_factory=None)
    return TuneController(storage=storage, reuse_actors=True), trial


def _trainable() -> Any:
    from ray import tune

    class Idle(tune.Trainable):
        """A trainable that is never started."""

    return Idle


def _job_info(job: str) -> Any:
    import asyncio

    import ray
    from ray.dashboard.modules.job.common import JobInfoStorageClient

    client = import_module("ray._raylet").GcsClient(address=ray.get_runtime_context().gcs_address)
    return asyncio.run(JobInfoStorageClient(client).get_info(job))
