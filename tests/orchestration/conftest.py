"""Runs that nothing happens to, for all that look at one or disturb a copy."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from raprune.orchestration.search import search
from raprune.report import figures
from raprune.spec.toml import load_spec
from raprune.store.folder import Store
from tests.factories import small_search
from tests.orchestration.chaos import small_job
from tests.orchestration.in_process import Executor, in_process
from tests.orchestration.whole_search import run


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The run that runs on Ray must equal, whatever is killed: `test_search_on_ray.py` holds that it is Ray's too."""
    [job] = small_job(tmp_path_factory.mktemp("undisturbed"))
    with in_process():
        return Store(search(load_spec(Path(job)), console=Console(file=io.StringIO())))


@pytest.fixture
def executor(monkeypatch: pytest.MonkeyPatch) -> Iterator[Executor]:
    """Searches of the test run in this process, without Ray, and leave out the pictures of their reports.

    The pictures take half of such a search. Those of `finished` are drawn; `tests/report` looks at them.
    """
    monkeypatch.setattr(figures, "element", lambda *_, **__: "<svg></svg>")
    monkeypatch.setattr(figures, "picture", lambda *_: b"")
    with in_process() as executor:
        yield executor


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A small search that has ended, run in this process, for all that look at one or resume a copy of it."""
    spec = small_search(tmp_path_factory.mktemp("run") / "run")
    with in_process():
        text = run(spec)
    assert "Normalisation: mean (" in text
    assert "12 of 12" in text or "dense" in text
    return Store(spec.output)
