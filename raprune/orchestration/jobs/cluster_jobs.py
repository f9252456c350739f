"""Jobs of a running cluster by Ray's Jobs API at its dashboard: find one, list all, follow its log to its end.

Nothing here joins the cluster: a laptop that reaches the dashboard's port, forwarded or not, will do.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

from rich.console import Console

from raprune.errors import EXIT_FAILURE, EXIT_INTERRUPTED, EXIT_TERMINATED, RapruneError, UsageError
from raprune.orchestration.jobs.dashboard import (
    dashboard_url,
    find_token,
    not_let_in,
    only_address,
    probe,
    reason_of,
)
from raprune.orchestration.jobs.metadata import BEST, BUDGET, PAGE, RUN
from raprune.orchestration.ray_private import quiet_job_client
from raprune.report.formats import first_lines
from raprune.store.address import last_part

_LOST_S = 120.0
"""Time without an answer after which following a job ends."""

_LOOK_S = 1.0

_SAME_NAME_SHOWN = 8
"""Number of jobs of one name that an error lists."""


@dataclass(frozen=True, kw_only=True)
class SubmittedJob:
    """A job of a cluster."""

    id: str
    """Ray's submission id."""
    name: str | None = None
    state: str
    run: str | None = None
    """Folder of its run; None: not a job of raprune."""
    budget: str | None = None
    best: str | None = None
    """The most accurate candidate so far, in words."""
    page: str | None = None
    """URL of the run's page."""
    since: float | None = None
    """Seconds since the epoch at which it started."""
    ended: float | None = None
    """Seconds since the epoch at which it ended; None: it has not."""
    exit_code: int | None = None
    message: str | None = None
    """Ray's own words on its state."""

    @classmethod
    def of(cls, details: Any) -> Self:
        """The job in Ray's own words."""
        metadata = details.metadata or {}
        return cls(
            id=details.submission_id,
            name=metadata.get("job_name") or (last_part(metadata[RUN]) if RUN in metadata else None),
            state=str(getattr(details.status, "value", details.status)),
            run=metadata.get(RUN),
            budget=metadata.get(BUDGET),
            best=metadata.get(BEST),
            page=metadata.get(PAGE),
            since=None if details.start_time is None else details.start_time / 1000,
            ended=(details.end_time or details.start_time or 1) / 1000 if details.status.is_terminal() else None,
            exit_code=details.driver_exit_code,
            message=details.message,
        )


@dataclass(frozen=True)
class Cluster:
    """A cluster's Jobs API. Use it through `connect`."""

    url: str
    """URL of its dashboard."""
    client: Any

    @contextmanager
    def asked(self) -> Iterator[None]:
        """Inside, an error on the way to the dashboard becomes one of ours, of a few lines."""
        import requests
        from ray.exceptions import AuthenticationError

        try:
            yield
        except AuthenticationError:
            raise not_let_in(self.url, find_token() is not None) from None
        except (requests.exceptions.RequestException, ConnectionError) as error:
            raise RapruneError(
                f"{self.url}: the dashboard no longer answers: {reason_of(error)}",
                hint="Submitted jobs keep running meanwhile. Try again.",
            ) from None
        except RuntimeError as error:
            # Ray's client raises it for every answer but 200.
            raise RapruneError(f"{self.url}: the cluster refused: {first_lines(str(error))}") from None

    def job(self, job_id: str) -> SubmittedJob:
        """One job.

        Raises:
            UsageError: if there is no such job.
        """
        try:
            with self.asked():
                return SubmittedJob.of(self.client.get_job_info(job_id))
        except RapruneError as error:
            if "404" not in error.message and "does not exist" not in error.message:
                raise
            raise UsageError(
                f"{job_id}: no such job at {self.url}.",
                hint=f"raprune jobs --address {self.url} lists them; they go with the cluster.",
            ) from None

    def find(self, wanted: str) -> SubmittedJob:
        """The job with the id `wanted`; else the one with that name, of several the only one that has not ended.

        Raises:
            UsageError: if there is no such job, or the name does not tell which is meant.
        """
        try:
            return self.job(wanted)
        except UsageError:
            named = [job for job in self.jobs() if job.name == wanted]
            if not named:
                raise
        unended = [job for job in named if job.ended is None]
        found = named if len(named) == 1 else unended
        if len(found) == 1:
            return found[0]
        shown = unended or named
        listed = [f"    {job.id}  {job.state}" for job in shown[:_SAME_NAME_SHOWN]]
        more = [f"    and {len(shown) - _SAME_NAME_SHOWN} more"] if len(shown) > _SAME_NAME_SHOWN else []
        what = "have not ended" if unended else "have ended"
        raise UsageError(
            "\n".join([f"{wanted}: {len(shown)} jobs of this name {what}:", *listed, *more]),
            hint="Give the id of one of them.",
        )

    def jobs(self) -> list[SubmittedJob]:
        """All submitted jobs, the newest first."""
        with self.asked():
            listed = self.client.list_jobs()
        found = [SubmittedJob.of(details) for details in listed if details.submission_id is not None]
        return sorted(found, key=lambda job: -(job.since or 0))

    def commands(self, job_id: str) -> tuple[str, str]:
        """The commands to follow a job, and to stop it."""
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
            say(console, f"No longer following {job_id}, which keeps running.", *self.commands(job_id))
            return EXIT_INTERRUPTED
        return tell_end(ended, console)

    async def _follow(self, job_id: str, console: Console) -> None:
        """Print until the job has ended. A log that begins again after a broken connection is not printed twice."""
        said, said_state = 0, ""
        heard_at = time.monotonic()
        while True:
            seen = 0
            try:
                async for text in self._tail(job_id):
                    heard_at = time.monotonic()
                    seen += len(text)
                    if seen > said:
                        write(console, text[max(0, len(text) - (seen - said)) :])
                        said = seen
                job = await asyncio.to_thread(self.job, job_id)
                heard_at = time.monotonic()
                if job.ended is not None:
                    return
                if job.state == "PENDING" and said_state != "PENDING":
                    say(console, f"Waiting for it to start: {job.message}")
                    said_state = "PENDING"
            except UsageError:
                raise
            except (RapruneError, OSError) as error:
                if time.monotonic() - heard_at > _LOST_S:
                    raise RapruneError(
                        f"{self.url}: the dashboard does not answer any more: {reason_of(error)}",
                        hint=f"The job may still be running. {self.commands(job_id)[0]}",
                    ) from None
            await asyncio.sleep(_LOOK_S)

    async def _tail(self, job_id: str) -> AsyncIterator[str]:
        import aiohttp

        try:
            async for text in self.client.tail_job_logs(job_id):
                yield text
        except (aiohttp.ClientError, RuntimeError) as error:
            raise RapruneError(reason_of(error)) from None


def connect(address: str | None) -> Cluster:
    """The Jobs API of the dashboard at `address`, by the token that is found as Ray finds it.

    Raises:
        UsageError: if nobody answers there, if it is no dashboard, or if it does not let us in.
    """
    url = dashboard_url(address)
    token = find_token()
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    probe(url, headers)
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    quiet_job_client()
    with only_address(url):
        try:
            return Cluster(url, JobSubmissionClient(url, headers=headers))
        except AuthenticationError:
            raise not_let_in(url, token is not None) from None
        except (RuntimeError, ConnectionError) as error:
            raise UsageError(
                f"--address {url}: {first_lines(str(error))}", hint="It must be a Ray cluster's dashboard."
            ) from None


def tell_end(job: SubmittedJob, console: Console) -> int:
    """Print how a job ended, and return its exit code."""
    best = f", best {job.best}" if job.best else ""
    if job.state == "SUCCEEDED":
        say(console, f"{job.id} SUCCEEDED{best}. Its run: {job.run}" if job.run else f"{job.id} SUCCEEDED.")
        return 0
    if job.state == "STOPPED":
        say(console, f"{job.id} was stopped{best}. Submit it again with the same --output to resume its run.")
        return EXIT_TERMINATED
    code = job.exit_code
    say(console, f"{job.id} FAILED{'' if code is None else f' with exit code {code}'}.")
    if code is None:
        # It ended before it had a log.
        say(console, *_ends(job.message or "Ray does not say why."))
    return int(code) if code is not None and 0 < code < 256 else EXIT_FAILURE


def _ends(text: str, first: int = 2, last: int = 6, width: int = 300) -> list[str]:
    """The first and the last lines of a long message: Ray's traces are in the middle."""
    lines = [line.strip()[:width] for line in text.splitlines() if line.strip()]
    return lines if len(lines) <= first + last else [*lines[:first], "...", *lines[-last:]]


def say(console: Console, *lines: str) -> None:
    """Print the lines as they are."""
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def write(console: Console, text: str) -> None:
    """Print a log as it is, without rich's folding."""
    console.file.write(text)
    console.file.flush()
