"""The machine of a run: card, driver, versions, commit and date; and the processes on the card."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import time
from importlib import metadata
from pathlib import Path

import torch

from raprune.cost.conditions import device_name

ROOT = Path(__file__).resolve().parents[3]
COMMIT = ROOT / ".device" / "commit.json"
"""File in which `build.py` notes the commit: a copy of the files has no history."""


def describe(device: str, *, dry: bool) -> dict[str, str]:
    """Return the machine of a run, in the order in which a table shows it."""
    card = {"card": device_name(torch.device(device))}
    if device == "cuda":
        cudnn = torch.backends.cudnn.version()
        memory = torch.cuda.get_device_properties(0).total_memory
        card |= {"memory": f"{memory / 1e9:.1f} GB", "driver": _driver(), "cuda": str(torch.version.cuda)}
        card |= {"cudnn": str(cudnn)}
    return {
        **card,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "ray": _version("ray"),
        "raprune": _version("raprune"),
        "cpus": str(os.cpu_count()),
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "device": device,
        "mode": "dry" if dry else "full",
    }


def commit() -> str:
    """Return the commit of the files, with `+` if some are changed; that of `build.py` where git knows none."""
    try:
        head = _output("git", "-C", str(ROOT), "rev-parse", "HEAD")
        changed = bool(_output("git", "-C", str(ROOT), "status", "--porcelain"))
    except (OSError, subprocess.SubprocessError):
        if not COMMIT.is_file():
            return "unknown"
        noted = json.loads(COMMIT.read_text())
        head, changed = noted["commit"], noted["changed"]
    return f"{head[:12]}{'+' if changed else ''}"


def processes_on_card() -> dict[int, int]:
    """Return the MiB of each process on the card by its id; nothing where the driver does not show processes."""
    try:
        text = _output("nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits")
    except (OSError, subprocess.SubprocessError):
        return {}
    # A driver that does not tell something writes a word in brackets instead.
    rows = re.findall(r"^(\d+), *(\d+|\[.*\])$", text, re.MULTILINE)
    return {int(pid): int(memory) if memory.isdigit() else 0 for pid, memory in rows}


def _driver() -> str:
    try:
        return _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").splitlines()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return "unknown"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
