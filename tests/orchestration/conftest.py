"""One run that nothing happens to, for all that are disturbed."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from raprune.orchestration.search import search
from raprune.spec.job import load_spec
from raprune.store.folder import Store
from tests.orchestration.chaos import small_job


@pytest.fixture(scope="session")
def undisturbed(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Store:
    [job] = small_job(tmp_path_factory.mktemp("undisturbed"))
    return Store(search(load_spec(Path(job)), console=Console(file=io.StringIO())))
