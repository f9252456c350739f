"""What all tests share: how examples are drawn, where bytecode lies, one Ray cluster once a test asks for it."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from tests.store.s3_server import Bucket

# The same examples each time, and none too slow on a machine that has other work.
settings.register_profile("raprune", deadline=None, derandomize=True)
settings.load_profile("raprune")

os.environ.setdefault("OMP_NUM_THREADS", "1")

# Ray reads it once in a process, at its first use: a test that starts a cluster with tokens fails in a process where an
# earlier one used Ray without.
os.environ.setdefault("RAY_AUTH_MODE", "token")

# As on raprune's own local clusters: a process that waits for another task saves the import of torch.
os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "60000")

# A shell without job control has its background commands ignore Ctrl-C, and so would all that the tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A start of Ray is a dozen processes. Where no bytecode may be written beside the sources, each would compile all that
# it loads, about 5 s; so they share a folder that goes when the session ends.
if os.environ.pop("PYTHONDONTWRITEBYTECODE", ""):
    bytecode = tempfile.mkdtemp(prefix="raprune-bytecode-")
    os.environ["PYTHONPYCACHEPREFIX"] = bytecode
    atexit.register(shutil.rmtree, bytecode, ignore_errors=True)


RAY_GROUP = "ray"
"""Group of the tests that share the session's Ray cluster."""


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """Ray with three processors, its own token, no dashboard and no telemetry."""
    from raprune.orchestration.cluster.connect import connect

    # Ten times as often as Ray does: what is exported is there in a second or two.
    os.environ.setdefault("RAY_metrics_report_interval_ms", "1000")
    connect(None, num_cpus=3)
    import ray

    yield
    ray.shutdown()


@pytest.fixture
def bucket() -> Iterator[Bucket]:
    """A bucket of S3 on a server of this process."""
    from tests.store.s3_server import Bucket

    started = Bucket()
    yield started
    started.stop()


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out files without a nightly test when only those are asked for: to import all takes half a minute."""
    if config.option.markexpr != "nightly" or collection_path.suffix != ".py" or "test_" not in collection_path.name:
        return None
    return True if "nightly" not in collection_path.read_text() else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give the session's Ray cluster to one of xdist's workers; the others take the remaining files, each as a whole.

    The tests of the cluster come first: they take longest.
    """
    for item in items:
        uses_cluster = "ray_cluster" in getattr(item, "fixturenames", ())
        file = f"{item.path.parent.name}/{item.path.stem}"
        item.add_marker(pytest.mark.xdist_group(RAY_GROUP if uses_cluster else file))
    items.sort(key=lambda item: "ray_cluster" not in getattr(item, "fixturenames", ()))
