"""cluster/slurm.sbatch as Slurm would run it: its nodes are this machine, twice; its commands are played by scripts."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from raprune.store.folder import Store
from tests.orchestration.processes import below, left_after

SCRIPT = Path(__file__).parents[3] / "cluster" / "slurm.sbatch"

SRUN = r"""#!/usr/bin/env bash
# Runs its command here, once for each task, and passes SIGTERM on.
tasks=1
while [[ $1 == --* ]]; do
    case $1 in --ntasks=*) tasks=${1#*=} ;; esac
    shift
done
echo "$*" >> "$PLAYED/srun"
pids=()
trap 'kill -TERM "${pids[@]}"' TERM
for _ in $(seq "$tasks"); do "$@" & pids+=($!); done
for pid in "${pids[@]}"; do while kill -0 "$pid" 2> /dev/null; do wait "$pid"; done; done
"""

SCONTROL = r"""#!/usr/bin/env bash
echo "$*" >> "$PLAYED/scontrol"
if [ "$1 $2" = "show hostnames" ]; then echo node-a; echo node-b; fi
"""


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """The environment of a batch script with two nodes of one processor."""
    for name, text in {"srun": SRUN, "scontrol": SCONTROL}.items():
        command = tmp_path / "bin" / name
        command.parent.mkdir(exist_ok=True)
        command.write_text(text)
        command.chmod(0o755)
    tools = Path(sys.executable).parent
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return clean | {
        "PATH": f"{tmp_path / 'bin'}:{tools}:{os.environ['PATH']}",
        "PLAYED": str(tmp_path),
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NODELIST": "node-[a-b]",
        "SLURM_CPUS_PER_TASK": "1",
        "RAY_AUTH_TOKEN": "of-another-cluster",
    }


def test_a_job_without_a_place_to_go_on_from_is_refused(slurm: dict[str, str]) -> None:
    done = subprocess.run(["bash", SCRIPT, "job.toml"], env=slurm, capture_output=True, text=True)
    assert done.returncode == 2 and "give --output" in done.stderr
    assert not list(Path(slurm["PLAYED"]).glob(".raprune-*"))


@pytest.mark.nightly
def test_a_job_whose_nodes_do_not_come_up_ends_at_once_and_is_not_tried_again(slurm: dict[str, str]) -> None:
    asked = ["bash", str(SCRIPT), "--output", "run"]
    done = subprocess.run(asked, env=slurm | {"SLURM_CPUS_PER_TASK": "-1"}, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "Ray did not start on all nodes" in done.stderr
    assert "requeue" not in (Path(slurm["PLAYED"]) / "scontrol").read_text()
    assert not list(Path(slurm["PLAYED"]).glob(".raprune-*"))


@pytest.mark.nightly
@pytest.mark.ray
def test_a_job_whose_time_is_up_cleans_up_and_is_put_into_the_queue_again(slurm: dict[str, str]) -> None:
    folder = Path(slurm["SLURM_SUBMIT_DIR"])
    run = folder / "run"
    token = folder / f".raprune-{slurm['SLURM_JOB_ID']}.token"
    # More than it gets done before its time is up.
    search = ["--budget-flops", "0.3", "--trials", "500", "--finalists", "1", "--output", str(run)]
    with (folder / "log").open("w") as log:
        job = subprocess.Popen(["bash", SCRIPT, *search], env=slurm, stdout=log, stderr=log)
    started: list[int] = []
    try:
        deadline = time.monotonic() + 240
        while not list(run.glob("trials/*.parquet")):
            assert job.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.2)
        assert stat.S_IMODE(token.stat().st_mode) == 0o600
        secret = token.read_text()
        assert len(secret) == 64
        started = below(job.pid)
        nodes = [line for line in (folder / "srun").read_text().splitlines() if line.startswith("ray start")]
        assert ["--head" in node for node in nodes] == [True, False]
    finally:
        # sbatch --signal=B:USR1: to the batch script alone.
        job.send_signal(signal.SIGUSR1)
        job.wait(120)
    said = (folder / "log").read_text()
    assert job.returncode == 143, said
    assert "The time is nearly up" in said and "raprune resume" in said
    assert (folder / "scontrol").read_text().splitlines()[-1] == f"requeue {slurm['SLURM_JOB_ID']}"
    assert Store(str(run)).run()["state"] != "finished" and Store(str(run)).trials()
    assert not left_after(20, started)
    assert not token.exists() and not Path(f"/tmp/raprune-{slurm['SLURM_JOB_ID']}").exists()
    assert secret not in said and secret not in (folder / "srun").read_text()
