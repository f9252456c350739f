"""cluster/local.sh, sourced as its head says."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.orchestration.processes import alive, below, free_ports, left_after

SCRIPT = Path(__file__).parents[3] / "cluster" / "local.sh"


@pytest.fixture
def folder() -> Iterator[Path]:
    # Sockets lie below it: short.
    made = Path(tempfile.mkdtemp(prefix="local-", dir="/tmp"))
    yield made
    shutil.rmtree(made, ignore_errors=True)


def source(action: str, folder: Path, *, then: str = "", **settings: str) -> subprocess.CompletedProcess[str]:
    """`source cluster/local.sh ACTION`, and `then` in the same shell."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = clean | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "FOLDER": str(folder)}
    # Into files: what start leaves running would hold a pipe open.
    with (folder / "said").open("w+") as said:
        command = ["bash", "-c", f"source {SCRIPT} {action}; code=$?; {then}\nexit $code"]
        done = subprocess.run(command, env=environment | settings, stdout=said, stderr=said, timeout=300)
        said.seek(0)
        return subprocess.CompletedProcess(command, done.returncode, said.read())


def hesitant_ray(folder: Path) -> str:
    """A PATH with a `ray` that goes by another name for a second, as a shell's new child does on a busy machine."""
    own = Path(sys.executable).parent
    script = folder / "bin" / "ray"
    script.parent.mkdir()
    script.write_text(f'#!/bin/bash\nexec -a shell bash -c \'sleep 1; exec {own / "ray"} "$@"\' -- "$@"\n')
    script.chmod(0o755)
    return f"{script.parent}:{own}:{os.environ['PATH']}"


def own_address() -> str:
    """Of this machine, as others see it; no packet is sent for it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        asked.connect(("192.0.2.1", 9))
        return str(asked.getsockname()[0])


@pytest.mark.nightly
@pytest.mark.ray
def test_a_local_cluster_comes_up_with_its_dashboard_on_loopback_and_goes_without_a_trace(folder: Path) -> None:
    port, token = free_ports(3), secrets.token_hex(32)
    settings = {"PORT": str(port), "DASHBOARD": "1", "DASHBOARD_PORT": str(port + 2), "WORKERS": "1"}
    settings["PATH"] = hesitant_ray(folder)
    show = 'echo "at $RAY_ADDRESS $RAY_API_SERVER_ADDRESS mode $RAY_AUTH_MODE"'
    started: list[int] = []
    try:
        first = source("start", folder, then=show, RAY_AUTH_TOKEN=token, **settings)
        pids = [int(line) for line in (folder / "pids").read_text().split()]
        started = [*pids, *(process for pid in pids for process in below(pid))]
        dashboard = f"http://127.0.0.1:{port + 2}"
        assert first.returncode == 0, first.stdout
        assert f"at 127.0.0.1:{port} {dashboard} mode token" in first.stdout
        assert token not in first.stdout
        assert len(pids) == 2 and set(pids) <= set(alive(started))
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((own_address(), port + 2))

        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(f"{dashboard}/api/version")
        allowed = urllib.request.Request(f"{dashboard}/api/version", headers={"Authorization": f"Bearer {token}"})
        with urllib.request.urlopen(allowed) as answer:
            assert answer.status == 200

        again = source("start", folder, **settings)
        assert again.returncode == 1 and "runs: 'source cluster/local.sh stop' ends it" in again.stdout
        assert set(pids) <= set(alive(started))
    finally:
        stopped = source("stop", folder, then='echo "left: $RAY_ADDRESS$RAY_AUTH_TOKEN"', RAY_AUTH_TOKEN=token)
    assert stopped.returncode == 0 and "left: \n" in stopped.stdout
    assert not left_after(20, started) and not (folder / "pids").exists()


def test_a_cluster_that_does_not_start_says_why_and_leaves_nothing(folder: Path) -> None:
    failed = source("start", folder, PORT="80000")
    assert failed.returncode == 1
    assert f"Ray did not start; the end of {folder}/head.log:" in failed.stdout
    assert not (folder / "pids").exists()


def test_stop_leaves_a_process_alone_that_took_over_an_id(folder: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as other:
        (folder / "pids").write_text(f"{other.pid}\n")
        assert source("stop", folder).returncode == 0
        assert alive([other.pid])
        other.kill()


def test_anything_else_is_refused_with_the_usage(folder: Path) -> None:
    refused = source("restart", folder)
    assert refused.returncode == 1 and "usage: source cluster/local.sh start|stop" in refused.stdout
