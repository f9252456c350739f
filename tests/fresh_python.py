"""A fresh Python, and what it has loaded."""

from __future__ import annotations

import subprocess
import sys


def loaded_by(code: str) -> set[str]:
    """Names of the heavy libraries that a fresh Python has loaded after `code`."""
    heavy = ("torch", "torchvision", "ray", "optuna", "plotly", "matplotlib", "pandas")
    ran = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\nprint(*[m for m in {heavy!r} if m in sys.modules])"],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(ran.stdout.strip().splitlines()[-1].split()) if ran.stdout.strip() else set()
