"""Processes that sections start."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from acceptance.bench import Bench
from acceptance.machine import ROOT

DEVICE = Path(__file__).resolve().parents[1]
"""Folder `jobs/device`, for imports of `acceptance`."""


def environment(bench: Bench, **changes: str) -> dict[str, str]:
    """Return the variables of a process: raprune and `acceptance` can be imported, no Ray cluster is given."""
    given = os.environ.get("PYTHONPATH")
    path = [str(ROOT), str(DEVICE), *([given] if given else [])]
    hidden = {} if bench.on_gpu else {"CUDA_VISIBLE_DEVICES": ""}
    variables = {**os.environ, **hidden, "PYTHONPATH": os.pathsep.join(path), "PYTHONUNBUFFERED": "1", **changes}
    variables.pop("RAY_ADDRESS", None)
    return variables


@contextmanager
def ended(processes: Sequence[subprocess.Popen[str]]) -> Iterator[None]:
    """Kill those of the processes that still run at the end of the context, however it ends."""
    try:
        yield
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()


def watch(
    command: list[str], log: Path, *, environment: dict[str, str], limit_s: float, look: Callable[[], None]
) -> int | None:
    """Run a command with its output in `log`, and call `look` every second; return its exit code.

    None: the command took longer than `limit_s`. It is then asked to end, and after 15 s killed with its children.
    """
    with log.open("w") as output:
        # A session of its own, so that a search that hangs is ended with the Ray that it started.
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        return _waited(process, limit_s, look)
    finally:
        if process.poll() is None:
            _end(process)


def _waited(process: subprocess.Popen[bytes], limit_s: float, look: Callable[[], None]) -> int | None:
    spent_s = 0
    while spent_s < limit_s:
        try:
            return process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            spent_s += 1
        look()
    return None


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=15)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
