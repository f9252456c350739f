"""Jobs of a cluster by id and by name, and their list at any width: a client that answers from a list, no cluster."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from enum import Enum

import pytest
from rich.console import Console

from raprune.errors import UsageError
from raprune.orchestration.jobs import client as jobs
from raprune.orchestration.jobs.cluster_jobs import Cluster
from raprune.orchestration.jobs.metadata import BEST, BUDGET, RUN


class Status(Enum):
    PENDING = "PENDING"
    RUNNING = "RUNNING"
    STOPPED = "STOPPED"

    def is_terminal(self) -> bool:
        return self is Status.STOPPED


@dataclass
class Details:
    """What Ray's client says of a job."""

    submission_id: str
    status: Status
    name: str
    start_time: int = 1_800_000_000_000
    end_time: int | None = None
    driver_exit_code: int | None = None
    message: str = ""

    @property
    def metadata(self) -> dict[str, str]:
        return {
            "job_name": self.name,
            RUN: "s3://bucket/of/the/team/runs/resnet56-cifar10-20260101",
            BUDGET: "30 % FLOPs",
            BEST: "91.53% at 11.8% FLOPs (3f2a9c81ab03)",
        }


@dataclass
class Client:
    """Answers as Ray's client of the Jobs API."""

    known: list[Details]
    stopped: list[str] = field(default_factory=list)

    def get_job_info(self, job_id: str) -> Details:
        for details in self.known:
            if details.submission_id == job_id:
                return details
        raise RuntimeError(f"Request failed with status code 404: Job {job_id} does not exist")

    def list_jobs(self) -> list[Details]:
        return self.known

    def get_job_logs(self, job_id: str) -> str:
        return f"log of {job_id}\n"

    def stop_job(self, job_id: str) -> None:
        self.stopped.append(job_id)
        self.get_job_info(job_id).status = Status.STOPPED


IDS = tuple(f"raysubmit_{letter * 16}" for letter in "abcd")
KNOWN = (
    Details(IDS[0], Status.STOPPED, "nightly"),
    Details(IDS[1], Status.RUNNING, "nightly"),
    Details(IDS[2], Status.STOPPED, "done"),
    Details(IDS[3], Status.PENDING, "a-name-that-is-quite-long-for-a-job"),
)


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Client:
    made = Client(list(KNOWN))
    monkeypatch.setattr(jobs, "connect", lambda address: Cluster("http://head:8265", made))
    return made


def printed(width: int = 140) -> Console:
    return Console(file=io.StringIO(), width=width, color_system=None)


def text(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("wanted", "number"), [(IDS[2], 2), ("nightly", 1), ("done", 2), ("a-name-that-is-quite-long-for-a-job", 3)]
)
def test_logs_take_an_id_or_a_name(client: Client, wanted: str, number: int) -> None:
    console = printed()
    assert jobs.print_logs(wanted, None, follow=False, console=console) == 0
    assert text(console) == f"log of {IDS[number]}\n"


def test_stop_of_a_name_ends_the_job_that_has_not_ended(client: Client) -> None:
    client.known = [Details(d.submission_id, d.status, d.name) for d in KNOWN]
    jobs.stop("nightly", None, console=printed())
    assert client.stopped == [IDS[1]]


def test_name_of_no_job_is_refused(client: Client) -> None:
    with pytest.raises(UsageError, match="weekly: no such job") as refused:
        jobs.stop("weekly", None, console=printed())
    assert "raprune jobs" in refused.value.hint


@pytest.mark.parametrize(("status", "told"), [(Status.RUNNING, "have not ended"), (Status.STOPPED, "have ended")])
def test_name_of_several_jobs_is_refused_with_their_ids(client: Client, status: Status, told: str) -> None:
    client.known = [Details(f"raysubmit_{number:016}", status, "nightly") for number in range(20)]
    with pytest.raises(UsageError, match=f"20 jobs of this name {told}") as refused:
        jobs.stop("nightly", None, console=printed())
    lines = refused.value.message.splitlines()
    assert len(lines) == 10 and "and 12 more" in lines[-1]
    assert all(line.split() == [f"raysubmit_{number:016}", status.value] for number, line in enumerate(lines[1:-1]))
    assert client.stopped == []


@pytest.mark.parametrize("width", [60, 80, 100, 120, 240])
def test_list_of_jobs_at_any_width_has_ids_and_states_whole(client: Client, width: int) -> None:
    console = printed(width)
    jobs.print_jobs(None, everything=False, as_json=False, console=console)
    shown = text(console)
    assert max(len(line.rstrip()) for line in shown.splitlines()) <= width and "…" not in shown
    for details in KNOWN:
        (line,) = [line for line in shown.splitlines() if details.submission_id in line]
        assert {details.submission_id, details.status.value} <= set(line.split())
    assert ("s3://bucket/of/the/team/runs/resnet56-cifar10-20260101" in shown) == (width == 240)
