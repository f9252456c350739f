"""Tools that tests need and that a machine may lack: a browser, Prometheus, timm.

A missing tool skips its tests; in CI, where `.ci/run` installs every tool and sets RAPRUNE_CI, it fails them. Data that
is not there may skip everywhere: it is not ours to install.
"""

from __future__ import annotations

import importlib
import os
import shutil
from types import ModuleType
from typing import NoReturn

import pytest


def require(tool: str, *, package: str | None = None) -> str:
    """Path of a program; without the program the test is skipped, or fails in CI.

    `package`: the Debian package that it is in, if that has another name.
    """
    # A browser may be elsewhere than on the PATH.
    named = os.environ.get(f"RAPRUNE_{tool.upper()}")
    path = shutil.which(named or tool)
    return (
        path if path is not None else _missing(f"{named or tool} is not installed: apt-get install {package or tool}")
    )


def require_module(name: str) -> ModuleType:
    """An installed module; without the module the test is skipped, or fails in CI."""
    try:
        return importlib.import_module(name)
    except ImportError:
        _missing(f"{name} is not installed: uv sync --group dev")


def _missing(why: str) -> NoReturn:
    if os.environ.get("RAPRUNE_CI") == "1":
        pytest.fail(f"{why}. In CI a missing tool is a failure.", pytrace=False)
    pytest.skip(why)
