"""Section `together`: several processes that train one network, on one device."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from acceptance.bench import Bench
from acceptance.machine import ROOT
from acceptance.processes import ended, environment

LIMIT_S, DRY_LIMIT_S = 60.0, 300.0
"""Seconds that a group may take; NCCL can wait for ever. A dry run may be on a machine that has other work."""


def run(bench: Bench) -> None:
    """Run NCCL in a group of one, as it takes no two processes on one card, and gloo in a group of two."""
    for backend, size in (("nccl", 1), ("gloo", 2)) if bench.on_gpu else (("gloo", 2),):
        texts = _group(bench, backend, size)
        fine = all(text.splitlines()[-1:] and "fine" in text.splitlines()[-1] for text in texts)
        bench.check(f"{backend}, {size} on one device", fine, texts[0][-300:].strip() if not fine else "")


def _group(bench: Bench, backend: str, size: int) -> list[str]:
    """Return the output of each process of a group."""
    with tempfile.TemporaryDirectory(dir=bench.work) as folder:
        command = [sys.executable, "-m", "acceptance.rank"]
        processes = [
            subprocess.Popen(
                [*command, str(rank), str(size), backend, bench.device, str(Path(folder) / "group")],
                env=environment(bench, GLOO_SOCKET_IFNAME="lo", NCCL_SOCKET_IFNAME="lo"),
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for rank in range(size)
        ]
        with ended(processes):
            return [_output(process, DRY_LIMIT_S if bench.sizes.dry else LIMIT_S) for process in processes]


def _output(process: subprocess.Popen[str], limit_s: float) -> str:
    try:
        return process.communicate(timeout=limit_s)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        return f"{process.communicate()[0]}\nended after {limit_s:.0f} s"
