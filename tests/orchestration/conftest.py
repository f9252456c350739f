"""One run that nothing happens to, for all that are disturbed."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from raprune.orchestration.search import search
from raprune.spec.job import load_spec
from raprune.store.folder import Store
from tests.factories import small_search
from tests.orchestration.chaos import small_job
from tests.orchestration.whole_search import run


@pytest.fixture(scope="session")
def undisturbed(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Store:
    [job] = small_job(tmp_path_factory.mktemp("undisturbed"))
    return Store(search(load_spec(Path(job)), console=Console(file=io.StringIO())))


@pytest.fixture(scope="session")
def finished(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A small search that has ended, for all that look at one or resume a copy of it."""
    spec = small_search(tmp_path_factory.mktemp("run") / "run")
    text = run(spec)
    assert "Normalisation: mean (" in text
    assert "12 of 12" in text or "dense" in text
    return Store(spec.output)
