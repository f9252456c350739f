"""Jobs on a running cluster, by Ray's Jobs API at its dashboard: submit, list, follow, stop.

    plan (submission.py) -> zip (parcel.py) -> upload -> follow the log -> the job's exit code

Nothing here joins the cluster: a laptop that reaches the dashboard's port, forwarded or not, will do.
"""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from raprune.errors import EXIT_FAILURE, EXIT_INTERRUPTED, EXIT_TERMINATED, RapruneError, UsageError
from raprune.orchestration.jobs.kuberay import Pods, manifest
from raprune.orchestration.jobs.metadata import BEST, BUDGET, PAGE, RUN
from raprune.orchestration.jobs.packages import pack
from raprune.orchestration.jobs.submission import (
    ENTRYPOINT,
    JOB_FILE,
    STOP_WAIT_S,
    package_folder,
    plan,
    runtime_env,
)
from raprune.orchestration.ray_private import quiet_job_client
from raprune.report.formats import first_lines
from raprune.store.address import last_part

ADDRESS = "http://127.0.0.1:8265"
"""Of a dashboard, where neither --address nor the environment names one: Ray's own, on this machine."""

API_ADDRESS = "RAY_API_SERVER_ADDRESS"

_ANSWER_S = 15.0
"""For a dashboard to say who it is."""

_LOST_S = 120.0
"""So long without an answer, and following a job ends."""

_LOOK_S = 1.0

_LEFT_OUT_SHOWN = 6

_GIVE_WAY = ("RUN", "BUDGET", "SINCE")
"""Columns of the list of jobs, from the least important on, that a narrow terminal goes without; names and the best are
folded there, ids and states are whole."""

_SAME_NAME_SHOWN = 8
"""Jobs of one name that an error lists."""


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

    That is the job's own, or 0 where it is not followed (`wait` false, or `as_json`), or 130 after Ctrl-C, which leaves
    the job alone. `dry_run` prints the job as it would be there, and sends nothing.

    Raises:
        UsageError: if the job cannot be right, or no dashboard lets us in at `address`.
        RapruneError: if the cluster does not take it.
    """
    made = plan(job, overrides, folder=working_dir, name=name)
    cluster = None if dry_run else connect(address)
    with tempfile.TemporaryDirectory(prefix="raprune-") as scratch:
        target = Path(scratch) / "working-dir.zip"
        parcel = pack(working_dir, target, always=made.always, extra={JOB_FILE: made.toml})
        notes = [f"Working folder {working_dir.absolute()}: {parcel}{_left_out(parcel.left_out)}.", *made.notes]
        if cluster is None:
            print("".join(f"# {note}\n" for note in notes) + made.toml, end="")
            return 0
        if not as_json:
            _say(console, *notes)
        environment = runtime_env(working_dir=str(target), install=install, package=package_folder())
        with cluster.asked():
            job_id = cluster.client.submit_job(
                entrypoint=ENTRYPOINT, runtime_env=environment, metadata=dict(made.metadata)
            )
    page = f"{cluster.url}/#/jobs/{job_id}"
    if as_json:
        print(json.dumps({"id": job_id, "run": made.metadata[RUN], "dashboard": page, "notes": notes}, indent=2))
        return 0
    _say(
        console,
        f"Submitted {job_id}: {made.metadata['job_name']}, {made.metadata[BUDGET]}, its run in {made.metadata[RUN]}",
        f"In the dashboard: {page}",
    )
    if not wait:
        _say(console, *cluster.commands(job_id))
        return 0
    return cluster.follow(job_id, console)


def print_manifest(
    job: Path | None, overrides: Mapping[str, Any], pods: Pods, *, install: str | None = None, name: str | None = None
) -> None:
    """Print the job as a KubeRay `RayJob`, what to know about it as comments first.

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
    rows = [row for row in cluster.jobs() if everything or row["run"] is not None]
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    if not rows:
        others = "" if everything else " of raprune (--all shows others)"
        _say(console, f"No jobs{others} at {cluster.url}.")
        return
    columns = {
        "JOB": [row["id"] for row in rows],
        "NAME": [row["name"] or "-" for row in rows],
        "STATE": [row["state"] for row in rows],
        "RUN": [row["run"] or "-" for row in rows],
        "BUDGET": [row["budget"] or "-" for row in rows],
        "BEST": [row["best"] or "-" for row in rows],
        "SINCE": [_since(row) or "-" for row in rows],
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
    job_id = cluster.find(wanted)["id"]
    if follow:
        return cluster.follow(job_id, console)
    with cluster.asked():
        _write(console, cluster.client.get_job_logs(job_id))
    return 0


def stop(wanted: str, address: str | None, *, console: Console) -> None:
    """Ask the job with the id or name `wanted` to end, and wait until it has; its run can be resumed.

    Raises:
        UsageError: if there is no such job, or several have the name.
        RapruneError: if it does not end.
    """
    cluster = connect(address)
    before = cluster.find(wanted)
    job_id = before["id"]
    if before["ended"] is not None:
        _say(console, f"{job_id} has ended already: {before['state']}.")
        return
    with cluster.asked():
        cluster.client.stop_job(job_id)
    until = time.monotonic() + STOP_WAIT_S + 30
    while (now := cluster.job(job_id))["ended"] is None:
        if time.monotonic() > until:
            raise RapruneError(f"{job_id} does not end; it is {now['state']}.", hint=cluster.commands(job_id)[0])
        time.sleep(_LOOK_S / 2)
    _say(console, f"{job_id}: {now['state']}.")
    if now["run"] is not None:
        _say(console, f"Nothing that was finished is lost; submitted again with --output {now['run']}, it goes on.")


@dataclass(frozen=True)
class Cluster:
    """A cluster's Jobs API. Use it through `connect`."""

    url: str
    """Of its dashboard."""
    client: Any

    @contextmanager
    def asked(self) -> Iterator[None]:
        """Inside, what goes wrong on the way to the dashboard is told in one screen."""
        import requests
        from ray.exceptions import AuthenticationError

        try:
            yield
        except AuthenticationError:
            raise _not_let_in(self.url, find_token() is not None) from None
        except (requests.exceptions.RequestException, ConnectionError) as error:
            raise RapruneError(
                f"{self.url}: the dashboard no longer answers: {_reason(error)}",
                hint="Jobs that were submitted go on without it being asked. Try again.",
            ) from None
        except RuntimeError as error:
            # Ray's client raises it for every answer but 200.
            raise RapruneError(f"{self.url}: the cluster refused: {first_lines(str(error))}") from None

    def job(self, job_id: str) -> dict[str, Any]:
        """One job, as a row of `jobs`.

        Raises:
            UsageError: if there is no such job.
        """
        try:
            with self.asked():
                return _row(self.client.get_job_info(job_id))
        except RapruneError as error:
            if "404" not in error.message and "does not exist" not in error.message:
                raise
            raise UsageError(
                f"{job_id}: no such job at {self.url}.",
                hint=f"raprune jobs --address {self.url} lists them; they go with the cluster.",
            ) from None

    def find(self, wanted: str) -> dict[str, Any]:
        """The job with the id `wanted`; else the one with that name, of several the only one that has not ended.

        Raises:
            UsageError: if there is no such job, or the name does not tell which is meant.
        """
        try:
            return self.job(wanted)
        except UsageError:
            named = [row for row in self.jobs() if row["name"] == wanted]
            if not named:
                raise
        unended = [row for row in named if row["ended"] is None]
        found = named if len(named) == 1 else unended
        if len(found) == 1:
            return found[0]
        shown = unended or named
        listed = [f"    {row['id']}  {row['state']}" for row in shown[:_SAME_NAME_SHOWN]]
        more = [f"    and {len(shown) - _SAME_NAME_SHOWN} more"] if len(shown) > _SAME_NAME_SHOWN else []
        what = "have not ended" if unended else "have ended"
        raise UsageError(
            "\n".join([f"{wanted}: {len(shown)} jobs of this name {what}:", *listed, *more]),
            hint="Give the id of one of them.",
        )

    def jobs(self) -> list[dict[str, Any]]:
        """All submitted jobs, the newest first."""
        with self.asked():
            listed = self.client.list_jobs()
        rows = [_row(details) for details in listed if details.submission_id is not None]
        return sorted(rows, key=lambda row: -(row["since"] or 0))

    def commands(self, job_id: str) -> tuple[str, str]:
        """How to follow a job, and how to stop it."""
        return (
            f"Follow it: raprune logs {job_id} --address {self.url} --follow",
            f"Stop it: raprune stop {job_id} --address {self.url}",
        )

    def follow(self, job_id: str, console: Console) -> int:
        """Print a job's log as it comes until the job ends; returns its exit code, or 130 after Ctrl-C."""
        try:
            asyncio.run(self._follow(job_id, console))
            ended = self.job(job_id)
        except KeyboardInterrupt:
            _say(console, f"No longer following {job_id}, which goes on.", *self.commands(job_id))
            return EXIT_INTERRUPTED
        return _tell_end(ended, console)

    async def _follow(self, job_id: str, console: Console) -> None:
        """Print until the job has ended, also over a connection that breaks: the log begins anew then."""
        said, said_state = 0, ""
        heard_at = time.monotonic()
        while True:
            seen = 0
            try:
                async for text in self._tail(job_id):
                    heard_at = time.monotonic()
                    seen += len(text)
                    if seen > said:
                        _write(console, text[max(0, len(text) - (seen - said)) :])
                        said = seen
                row = await asyncio.to_thread(self.job, job_id)
                heard_at = time.monotonic()
                if row["ended"] is not None:
                    return
                if row["state"] == "PENDING" and said_state != "PENDING":
                    _say(console, f"Waiting for it to start: {row['message']}")
                    said_state = "PENDING"
            except UsageError:
                raise
            except (RapruneError, OSError) as error:
                if time.monotonic() - heard_at > _LOST_S:
                    raise RapruneError(
                        f"{self.url}: the dashboard does not answer any more: {_reason(error)}",
                        hint=f"The job may go on. {self.commands(job_id)[0]}",
                    ) from None
            await asyncio.sleep(_LOOK_S)

    async def _tail(self, job_id: str) -> AsyncIterator[str]:
        import aiohttp

        try:
            async for text in self.client.tail_job_logs(job_id):
                yield text
        except (aiohttp.ClientError, RuntimeError) as error:
            raise RapruneError(_reason(error)) from None


def connect(address: str | None) -> Cluster:
    """The Jobs API of the dashboard at `address`, by the token that is found as Ray finds it.

    Raises:
        UsageError: if nobody answers there, if it is no dashboard, or if it does not let us in.
    """
    url = dashboard_url(address)
    token = find_token()
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    _probe(url, headers)
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    quiet_job_client()
    with _only_address(url):
        try:
            return Cluster(url, JobSubmissionClient(url, headers=headers))
        except AuthenticationError:
            raise _not_let_in(url, token is not None) from None
        except (RuntimeError, ConnectionError) as error:
            raise UsageError(
                f"--address {url}: {first_lines(str(error))}", hint="It must be a Ray cluster's dashboard."
            ) from None


def dashboard_url(address: str | None) -> str:
    """The URL of a dashboard, without a slash at its end.

    Raises:
        UsageError: if `address` names none.
    """
    given = address or os.environ.get(API_ADDRESS) or ADDRESS
    text = given if "://" in given else f"http://{given}"
    try:
        parts = urlsplit(text)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        valid = False
    if not valid:
        raise UsageError(
            f"--address {given}: not the address of a Ray dashboard.",
            hint="Give its URL: http://HEAD:8265. `ray start` prints it, and `ray status` runs beside it.",
        )
    if parts.username or parts.password:
        raise UsageError(
            "--address: it holds a user or a password.",
            hint="Ray's token is taken from RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token.",
        )
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"


def find_token() -> str | None:
    """The cluster's token, where Ray looks for it: RAY_AUTH_TOKEN, the file RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token.

    Raises:
        UsageError: if the file that RAY_AUTH_TOKEN_PATH names cannot be read, or is empty.
    """
    token = os.environ.get("RAY_AUTH_TOKEN", "").strip()
    if token:
        return token
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(named).expanduser() if named else Path.home() / ".ray" / "auth_token"
    try:
        token = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        if named:
            raise UsageError(
                f"RAY_AUTH_TOKEN_PATH={named}: not readable: {_reason(error)}",
                hint="It must name the file that holds the cluster's token.",
            ) from None
        return None
    if named and not token:
        raise UsageError(f"RAY_AUTH_TOKEN_PATH={named}: the file is empty.", hint="It must hold the cluster's token.")
    return token or None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A token goes to where the user said, and nowhere else."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _probe(url: str, headers: Mapping[str, str]) -> None:
    """Find out who answers at `url`; Ray's client would wait without end, and say less.

    Raises:
        UsageError: if that is no dashboard that lets us in.
    """
    request = urllib.request.Request(f"{url}/api/version", headers=dict(headers))
    try:
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=_ANSWER_S) as response:
            if "ray_version" in json.loads(response.read(10_000)):
                return
        answer = "something that is no Ray dashboard"
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in (401, 403):
            raise _not_let_in(url, bool(headers)) from None
        answer = f"something that is no Ray dashboard (HTTP {error.code})"
    except (HTTPException, ConnectionResetError):
        answer = "something that does not speak HTTP"
    except ValueError:
        answer = "something that is no Ray dashboard"
    except (urllib.error.URLError, OSError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise UsageError(
            f"--address {url}: nobody answers there: {_reason(reason)}",
            hint="The dashboard listens on its head node's loopback unless it was started with --dashboard-host. "
            "Forward its port: ssh -L 8265:127.0.0.1:8265 HEAD, or kubectl port-forward service/HEAD-SERVICE 8265",
        ) from None
    raise UsageError(
        f"--address {url}: {answer} answers there.",
        hint="The dashboard's port is 8265 unless it was started with another; 6379 is where nodes join, 10001 is for "
        "Ray Client, and 8000 for Serve.",
    )


def _not_let_in(url: str, with_token: bool) -> UsageError:
    what = "does not know this token" if with_token else "asks for a token, and none was found"
    return UsageError(
        f"--address {url}: the cluster {what}.",
        hint="It must be the cluster's own, in RAY_AUTH_TOKEN, in the file that RAY_AUTH_TOKEN_PATH names, or in "
        "~/.ray/auth_token; they are looked at in this order. On the head: ray get-auth-token",
    )


@contextmanager
def _only_address(url: str) -> Iterator[None]:
    """Ray's client prefers what the environment says to the address that it is given; inside, that is the same."""
    before = os.environ.get(API_ADDRESS)
    os.environ[API_ADDRESS] = url
    try:
        yield
    finally:
        if before is None:
            del os.environ[API_ADDRESS]
        else:
            os.environ[API_ADDRESS] = before


def _row(details: Any) -> dict[str, Any]:
    metadata = details.metadata or {}
    state = str(getattr(details.status, "value", details.status))
    return {
        "id": details.submission_id,
        "name": metadata.get("job_name") or (last_part(metadata[RUN]) if RUN in metadata else None),
        "state": state,
        "run": metadata.get(RUN),
        "budget": metadata.get(BUDGET),
        "best": metadata.get(BEST),
        "page": metadata.get(PAGE),
        "since": None if details.start_time is None else details.start_time / 1000,
        "ended": (details.end_time or details.start_time or 1) / 1000 if details.status.is_terminal() else None,
        "exit_code": details.driver_exit_code,
        "message": details.message,
    }


def _tell_end(row: Mapping[str, Any], console: Console) -> int:
    """Say how a job ended, and return its exit code."""
    best = f", best {row['best']}" if row["best"] else ""
    if row["state"] == "SUCCEEDED":
        _say(
            console, f"{row['id']} SUCCEEDED{best}. Its run: {row['run']}" if row["run"] else f"{row['id']} SUCCEEDED."
        )
        return 0
    if row["state"] == "STOPPED":
        _say(console, f"{row['id']} was stopped{best}. Submitted again with the same --output, it goes on.")
        return EXIT_TERMINATED
    code = row["exit_code"]
    _say(console, f"{row['id']} FAILED{'' if code is None else f' with exit code {code}'}.")
    if code is None:
        # It did not come so far as to have a log.
        _say(console, *_ends(row["message"] or "Ray does not say why."))
    return int(code) if code is not None and 0 < code < 256 else EXIT_FAILURE


def _ends(text: str, first: int = 2, last: int = 6, width: int = 300) -> list[str]:
    """The first and the last lines of a long message, between which Ray has its traces."""
    lines = [line.strip()[:width] for line in text.splitlines() if line.strip()]
    return lines if len(lines) <= first + last else [*lines[:first], "...", *lines[-last:]]


def _since(row: Mapping[str, Any]) -> str | None:
    if row["since"] is None:
        return None
    lasted = int((row["ended"] or time.time()) - row["since"])
    hours, minutes, seconds = lasted // 3600, lasted // 60 % 60, lasted % 60
    return f"{datetime.fromtimestamp(row['since']):%Y-%m-%d %H:%M} ({hours}:{minutes:02}:{seconds:02})"


def _left_out(names: tuple[str, ...]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - _LEFT_OUT_SHOWN} more" if len(names) > _LEFT_OUT_SHOWN else ""
    return f", without {', '.join(names[:_LEFT_OUT_SHOWN])}{more}"


def _say(console: Console, *lines: str) -> None:
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _write(console: Console, text: str) -> None:
    """A log as it is, without rich's folding."""
    console.file.write(text)
    console.file.flush()


def _reason(error: object) -> str:
    strerror = getattr(error, "strerror", None)
    text = (strerror if isinstance(strerror, str) else str(error)).strip()
    return text.splitlines()[0] if text else type(error).__name__
