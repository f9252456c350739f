from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raprune.orchestration.cluster.placement import capacity, missing, place
from raprune.spec.job import ResourceSpec
from tests.orchestration.processes import below, free_ports, kill

HEAD = {"CPU": 0.0}
BOX = {"CPU": 8.0, "GPU": 1.0}


@pytest.mark.parametrize(
    ("nodes", "resources", "asked"),
    [
        ([HEAD], {}, [{"CPU": 1.0}]),
        ([HEAD], {"workers": 2}, [{"CPU": 1.0}] * 2),
        ([HEAD], {"workers": 2, "gpus_per_trial": 1}, [{"CPU": 1.0, "GPU": 1.0}] * 2),
        # The first node shows that trials have a GPU each.
        ([HEAD, BOX], {"workers": 8}, [{"CPU": 1.0, "GPU": 1.0}] * 8),
        ([HEAD, BOX], {}, []),
        ([HEAD, BOX, BOX], {"workers": 2}, []),
        ([HEAD, BOX], {"workers": 8, "gpus_per_trial": 0}, []),
    ],
)
def test_autoscaler_is_asked_for_the_missing_workers(
    nodes: list[dict[str, float]], resources: dict[str, float], asked: list[dict[str, float]]
) -> None:
    spec = ResourceSpec.model_validate(resources)
    assert missing(nodes, spec) == asked
    if not asked:
        assert place(nodes, spec, lookahead=8).workers <= capacity(nodes, spec)


@pytest.fixture
def growing() -> Iterator[dict[str, str]]:
    """The environment of a driver on a cluster that grows from a head without processors to two nodes of one each.

    By Ray's autoscaler (v1, that of `ray up`), whose nodes are processes here.
    """
    # Ray's second port, of its client's server, must be free as well: where it is not, the head ends.
    port = free_ports(2)
    # Sockets lie below it: short.
    folder = Path(tempfile.mkdtemp(prefix="rap", dir="/tmp"))
    host = subprocess.run(
        [sys.executable, "-c", "import ray.util; print(ray.util.get_node_ip_address())"], capture_output=True, text=True
    ).stdout.strip()
    config = _config(f"{host}:{port}")
    (folder / "fake.json").write_text(json.dumps(config))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "f" * 64,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        "RAY_FAKE_CLUSTER": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    }
    ray = Path(sys.executable).parent / "ray"
    command = [str(ray), "start", "--head", "--block", f"--port={port}", f"--ray-client-server-port={port + 1}"]
    command += ["--num-cpus=0", "--num-gpus=0", "--include-dashboard=false", "--dashboard-agent-listen-port=0"]
    command += [f"--temp-dir={folder / 'ray'}", f"--autoscaling-config={folder / 'fake.json'}"]
    with (folder / "head.log").open("w") as log:
        head = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 120
        while "Ray runtime started" not in (folder / "head.log").read_text():
            assert head.poll() is None and time.monotonic() < deadline, (folder / "head.log").read_text()
            time.sleep(0.2)
        yield environment | {"RAY_ADDRESS": f"{host}:{port}", "HEAD_LOG": str(folder / "head.log")}
    finally:
        started = below(head.pid)
        head.terminate()
        head.wait(60)
        kill(started)
        shutil.rmtree(folder, ignore_errors=True)


def _config(address: str) -> dict[str, Any]:
    kinds = {
        "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "worker": {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 2},
    }
    return {
        "cluster_name": "growing",
        "max_workers": 2,
        # Longer than the test: a node that idles while it looks must not go between two looks.
        "idle_timeout_minutes": 5,
        "provider": {"type": "fake_multinode", "gcs_address": address, "launch_multiple": True},
        "available_node_types": kinds,
        "head_node_type": "ray.head.default",
        "file_mounts": {},
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
        "rsync_exclude": [],
        "rsync_filter": [],
        "setup_commands": [],
        "initialization_commands": [],
        "head_setup_commands": [],
        "worker_setup_commands": [],
        "head_start_ray_commands": [],
        "worker_start_ray_commands": [],
        "auth": {},
        "upscaling_speed": 1.0,
        "docker": {},
    }


GROW = """
from rich.console import Console
from raprune.orchestration.cluster.connect import cluster, node_resources
from raprune.orchestration.cluster.placement import place
from raprune.orchestration.cluster.scaling import with_room
from raprune.spec.job import ResourceSpec

def nodes():
    return sum(node.get("CPU", 0) > 0 for node in node_resources())

with cluster("auto"):
    assert nodes() == 0
    two = with_room(ResourceSpec(workers=2, scale_up_s=120), console=Console())
    assert (nodes(), two.workers, place(node_resources(), two, lookahead=8).workers) == (2, 2, 2)
    # Three never come; the search goes on with two.
    three = with_room(ResourceSpec(workers=3, scale_up_s=4), console=Console())
    assert (three.workers, place(node_resources(), three, lookahead=8).workers) == (2, 2)
    # Nothing is left that would keep nodes up.
    from ray.experimental.internal_kv import _internal_kv_get
    assert _internal_kv_get("autoscaler_resource_request") == b"[]"
"""


@pytest.mark.nightly
@pytest.mark.ray
def test_a_cluster_grows_for_a_search_that_lets_it_shrink_again(growing: dict[str, str]) -> None:
    done = subprocess.run([sys.executable, "-c", GROW], env=growing, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr + Path(growing["HEAD_LOG"]).read_text()
    assert "Cluster scaling up: waiting up to 120 s for 2 x 1 CPU." in done.stdout
    assert "Cluster scaled up: 2 workers available after" in done.stdout
