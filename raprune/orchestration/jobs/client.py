"""The commands for jobs on a running cluster: submit, list, print the log, stop.

plan (submission.py) -> zip (packages.py) -> upload -> follow the log -> the job's exit code
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from raprune.errors import RapruneError
from raprune.orchestration.jobs.cluster_jobs import SubmittedJob, connect, say, write
from raprune.orchestration.jobs.kuberay import Pods, manifest
from raprune.orchestration.jobs.metadata import BUDGET, RUN
from raprune.orchestration.jobs.packages import pack
from raprune.orchestration.jobs.submission import (
    ENTRYPOINT,
    JOB_FILE,
    STOP_WAIT_S,
    package_folder,
    plan,
    runtime_env,
)

_LOOK_S = 0.5
"""Time between two looks at whether a stopped job has ended."""

_LEFT_OUT_SHOWN = 6

_GIVE_WAY = ("RUN", "BUDGET", "SINCE")
"""Columns of the list of jobs that a narrow terminal leaves out, the least important first.

Names and the best candidate are folded there; ids and states are never cut."""


def submit(
    job: Path | None,
    overrides: Mapping[str, Any],
    *,
    address: str | None,
    working_dir: Path = Path(),
    install: str | None = None,
    name: str | None = None,
    wait: bool = True,
    as_json: bool = False,
    dry_run: bool = False,
    console: Console,
) -> int:
    """Submit the job of the TOML file `job` with `overrides`, and follow it; returns the exit code.

    The exit code is the job's own, or 0 if it is not followed (`wait` false, or `as_json`), or 130 after Ctrl-C, which
    leaves the job running. `dry_run` prints the job as the cluster would get it, and sends nothing.

    Raises:
        UsageError: if the job cannot be right, or no dashboard lets us in at `address`.
        RapruneError: if the cluster does not take it.
    """
    made = plan(job, overrides, folder=working_dir, name=name)
    cluster = None if dry_run else connect(address)
    with tempfile.TemporaryDirectory(prefix="raprune-") as scratch:
        target = Path(scratch) / "working-dir.zip"
        package = pack(working_dir, target, always=made.always, extra={JOB_FILE: made.toml})
        notes = [f"Working folder {working_dir.absolute()}: {package}{_left_out(package.left_out)}.", *made.notes]
        if cluster is None:
            print("".join(f"# {note}\n" for note in notes) + made.toml, end="")
            return 0
        if not as_json:
            say(console, *notes)
        environment = runtime_env(working_dir=str(target), install=install, package=package_folder())
        with cluster.asked():
            job_id = cluster.client.submit_job(
                entrypoint=ENTRYPOINT, runtime_env=environment, metadata=dict(made.metadata)
            )
    page = f"{cluster.url}/#/jobs/{job_id}"
    if as_json:
        print(json.dumps({"id": job_id, "run": made.metadata[RUN], "dashboard": page, "notes": notes}, indent=2))
        return 0
    say(
        console,
        f"Submitted {job_id}: {made.metadata['job_name']}, {made.metadata[BUDGET]}, its run in {made.metadata[RUN]}",
        f"In the dashboard: {page}",
    )
    if not wait:
        say(console, *cluster.commands(job_id))
        return 0
    return cluster.follow(job_id, console)


def print_manifest(
    job: Path | None, overrides: Mapping[str, Any], pods: Pods, *, install: str | None = None, name: str | None = None
) -> None:
    """Print the job as a KubeRay `RayJob`, after comments with what the user should know.

    Raises:
        UsageError: if the job cannot be right.
    """
    made = plan(job, overrides, folder=None, name=name)
    text = manifest(made, pods, install=install)
    notes = "".join(f"# {note}\n" for note in made.notes)
    print(f"{notes}{text}", end="")


def print_jobs(address: str | None, *, everything: bool, as_json: bool, console: Console) -> None:
    """Print the cluster's jobs, the newest first: those of raprune, or all.

    Raises:
        UsageError: if no dashboard lets us in at `address`.
    """
    cluster = connect(address)
    jobs = [job for job in cluster.jobs() if everything or job.run is not None]
    if as_json:
        print(json.dumps([asdict(job) for job in jobs], indent=2))
        return
    if not jobs:
        others = "" if everything else " of raprune (--all shows others)"
        say(console, f"No jobs{others} at {cluster.url}.")
        return
    columns = {
        "JOB": [job.id for job in jobs],
        "NAME": [job.name or "-" for job in jobs],
        "STATE": [job.state for job in jobs],
        "RUN": [job.run or "-" for job in jobs],
        "BUDGET": [job.budget or "-" for job in jobs],
        "BEST": [job.best or "-" for job in jobs],
        "SINCE": [_since(job) or "-" for job in jobs],
    }
    for name in _GIVE_WAY:
        if sum(max(map(len, (header, *cells))) + 1 for header, cells in columns.items()) - 1 > console.width:
            del columns[name]
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for header in columns:
        table.add_column(header, overflow="fold", no_wrap=header in ("JOB", "STATE"))
    for cells in zip(*columns.values(), strict=True):
        table.add_row(*map(escape, cells))
    console.print(table)


def print_logs(wanted: str, address: str | None, *, follow: bool, console: Console) -> int:
    """Print what the job with the id or name `wanted` has printed; with `follow` also what is to come.

    Returns the exit code: `follow`'s, or 0.

    Raises:
        UsageError: if there is no such job, or several have the name.
    """
    cluster = connect(address)
    job_id = cluster.find(wanted).id
    if follow:
        return cluster.follow(job_id, console)
    with cluster.asked():
        write(console, cluster.client.get_job_logs(job_id))
    return 0


def stop(wanted: str, address: str | None, *, console: Console) -> None:
    """Ask the job with the id or name `wanted` to end, and wait until it has; its run can be resumed.

    Raises:
        UsageError: if there is no such job, or several have the name.
        RapruneError: if it does not end.
    """
    cluster = connect(address)
    before = cluster.find(wanted)
    job_id = before.id
    if before.ended is not None:
        say(console, f"{job_id} has ended already: {before.state}.")
        return
    with cluster.asked():
        cluster.client.stop_job(job_id)
    until = time.monotonic() + STOP_WAIT_S + 30
    while (now := cluster.job(job_id)).ended is None:
        if time.monotonic() > until:
            raise RapruneError(f"{job_id} does not end; it is {now.state}.", hint=cluster.commands(job_id)[0])
        time.sleep(_LOOK_S)
    say(console, f"{job_id}: {now.state}.")
    if now.run is not None:
        say(console, f"Finished trials are kept; submit it again with --output {now.run} to resume the run.")


def _since(job: SubmittedJob) -> str | None:
    if job.since is None:
        return None
    lasted = int((job.ended or time.time()) - job.since)
    hours, minutes, seconds = lasted // 3600, lasted // 60 % 60, lasted % 60
    return f"{datetime.fromtimestamp(job.since):%Y-%m-%d %H:%M} ({hours}:{minutes:02}:{seconds:02})"


def _left_out(names: tuple[str, ...]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - _LEFT_OUT_SHOWN} more" if len(names) > _LEFT_OUT_SHOWN else ""
    return f", without {', '.join(names[:_LEFT_OUT_SHOWN])}{more}"
