"""The driver's side of a job that Ray Jobs started: it finds its cluster, and writes metadata for the Jobs tab.

`raprune submit`, `ray job submit -- python -m raprune search` and a `RayJob` of KubeRay all start such a driver.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable

from raprune.orchestration.ray_private import merge_job_metadata
from raprune.results.progress import Progress

CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""The environment variable by which Ray tells a driver what it was submitted with."""

RUN, BUDGET, BEST, PAGE = "raprune_run", "raprune_budget", "raprune_best", "raprune_page"
"""Keys of a job's metadata."""

_LOG = logging.getLogger(__name__)
_LOCK = threading.Lock()
_told: dict[str, str] = {}


def submission_id() -> str | None:
    """The submission id of the job whose driver this process is; None where no job started it."""
    try:
        metadata = json.loads(os.environ.get(CONFIG, "{}")).get("metadata", {})
        return str(metadata["job_submission_id"])
    except (ValueError, KeyError, AttributeError, TypeError):
        return None


def cluster_address(address: str | None) -> str | None:
    """Address of the search's cluster: `address`, else that which this driver was submitted to; None: this machine."""
    return address or ("auto" if submission_id() is not None else None)


def tell(**metadata: str) -> None:
    """Merge `metadata` into that of this driver's job; without a job, or if Ray stores it otherwise, do nothing.

    Everybody who sees the dashboard sees it.
    """
    job = submission_id()
    with _LOCK:
        new = {key: value for key, value in metadata.items() if _told.get(key) != value}
        if job is None or not new:
            return
        try:
            merge_job_metadata(job, new)
        except Exception as error:
            # The Jobs API cannot change metadata, so this writes to its storage; the log and the store say the same.
            _LOG.info("the job's metadata stays as it is: %s", error)
        _told.update(new)


def telling(read: Callable[[], Progress]) -> Callable[[], Progress]:
    """A function that reads the progress by `read`, and tells the best candidate so far."""

    def read_and_tell() -> Progress:
        now = read()
        tell_best(now)
        return now

    return read_and_tell


def tell_best(now: Progress) -> None:
    """Tell the most accurate candidate within the budget, if there is one."""
    if now.best is not None:
        best = now.best
        tell(**{BEST: f"{best.val_accuracy:.2%} at {best.flops_fraction:.1%} FLOPs ({best.candidate})"})
