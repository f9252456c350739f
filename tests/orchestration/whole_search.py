"""Whole searches, carried out in this process or on the session's Ray, and what must be the same about two."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from raprune.orchestration.search import search
from raprune.records import Trial
from raprune.spec.job import SearchSpec


def run(spec: SearchSpec) -> str:
    """Carry out the search; its output on the terminal."""
    console = Console(file=io.StringIO(), width=120)
    assert search(spec, console=console) == str(Path(spec.output).absolute())
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def facts(trials: Sequence[Trial]) -> dict[str, tuple[Any, ...]]:
    """Everything about trials that is the same whoever carried them out."""
    return {t.trial_id: (t.proposal, t.state, t.candidate, t.metrics) for t in trials}
