"""One Ray cluster for the whole session, started by the first test that asks for it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """Ray with three processors, its own token, no dashboard and no telemetry."""
    from raprune.orchestration.cluster import connect

    # Ten times as often as Ray does: what is exported is there in a second or two.
    os.environ.setdefault("RAY_metrics_report_interval_ms", "1000")
    connect(None, num_cpus=3)
    import ray

    yield
    ray.shutdown()
