"""Rows of a benchmark that stay: a run replaces the rows that it measured, and no others.

The rows of a table stand in a file of JSON lines beside it, each with the commit, the date and the machine that gave
it. The table is written from all of them, so that a run over a part of the rows loses nothing.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Callable, Hashable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

Row = TypeVar("Row")


@dataclass(frozen=True)
class Origin:
    """Where a row comes from."""

    commit: str
    """Short hash of the commit; a plus behind it says that files of the package differed from it."""
    date: str
    """Day, as 2026-11-28."""
    machine: str
    """Number and kind of the processors and the version of PyTorch."""


def origin_now(device: str = "cpu") -> Origin:
    """Return the origin of what is measured now on `device`."""
    return Origin(commit=_commit(), date=datetime.now(UTC).date().isoformat(), machine=_machine(device))


class KeptRows(Generic[Row]):
    """Rows of one kind in a file of JSON lines; `key` tells which rows are the same one, measured again."""

    def __init__(self, path: Path, kind: Callable[..., Row], key: Callable[[Row], Hashable]) -> None:
        self._path = path
        self._kind = kind
        self._key = key
        self.rows: dict[Hashable, Row] = {}
        self.origins: dict[Hashable, Origin] = {}
        for line in path.read_text().splitlines() if path.exists() else []:
            content: dict[str, Any] = json.loads(line)
            row = kind(**{name: value for name, value in content.items() if name != "origin"})
            self._take(row, Origin(**content["origin"]))

    def __contains__(self, key: Hashable) -> bool:
        return key in self.rows

    def add(self, row: Row, origin: Origin) -> None:
        """Add a row, or replace the one with the same key, and write the file."""
        self._take(row, origin)
        lines = [
            json.dumps({**asdict(kept), "origin": asdict(self.origins[key])})  # type: ignore[call-overload]
            for key, kept in self.rows.items()
        ]
        # A new file, renamed into place: a kill in the middle of the writing leaves the old rows.
        written = self._path.with_suffix(".part")
        written.write_text("".join(f"{line}\n" for line in lines))
        os.replace(written, self._path)

    def _take(self, row: Row, origin: Origin) -> None:
        key = self._key(row)
        self.rows[key], self.origins[key] = row, origin


def _commit() -> str:
    def git(*arguments: str) -> str:
        folder = Path(__file__).parent
        return subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True).stdout

    changed = git("status", "--porcelain", "--untracked-files=no", "--", "../../raprune", ".").strip()
    tables = (".md", ".jsonl")
    differs = any(not line.endswith(tables) for line in changed.splitlines())
    return git("rev-parse", "--short", "HEAD").strip() + ("+" if differs else "")


def _machine(device: str) -> str:
    card = torch.cuda.get_device_name() if device.startswith("cuda") else ""
    processors = f"{len(os.sched_getaffinity(0))} {platform.machine()} cores"
    return ", ".join(part for part in (card, processors, f"PyTorch {torch.__version__.partition('+')[0]}") if part)
