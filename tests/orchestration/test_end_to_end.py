"""A cluster of separate processes, a head and two workers, as `cluster/local.sh` starts it: what users submit to.

One cluster for all tests here, its token its own. The last test is the whole story; it costs the cluster a worker.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from playwright.sync_api import Page, expect, sync_playwright

import raprune
from raprune.models import build_model
from raprune.orchestration.jobs import packages
from raprune.orchestration.jobs.metadata import PAGE, RUN
from raprune.spec.job import ModelSpec
from raprune.store.folder import Store
from tests.orchestration.chaos import AGENTS, MARK, wait_until, wait_until_gone
from tests.orchestration.processes import free_ports
from tests.tools import require

ROOT = Path(__file__).parents[2]
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]

pytestmark = [pytest.mark.nightly, pytest.mark.ray]


@dataclass
class Cluster:
    """Started processes, and how to reach them."""

    url: str
    token: str
    work: Path
    """A working folder for jobs; runs are beside it."""
    environment: dict[str, str]
    pids: list[int]
    """The head's, then the workers'."""

    def raprune(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """The command, to its end."""
        command = [sys.executable, "-m", "raprune", *arguments]
        settings = self.environment | environment
        return subprocess.run(command, cwd=self.work, env=settings, capture_output=True, text=True, timeout=300)

    def begin(self, *arguments: str) -> subprocess.Popen[str]:
        """The command, begun; what it prints comes by its `stdout`."""
        # Ctrl-C also where the tests themselves run in the background, which ignores it.
        start = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); import raprune.__main__ as m"
        return subprocess.Popen(
            [sys.executable, "-c", f"{start}; m.main()", *arguments],
            cwd=self.work,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def jobs(self) -> list[dict[str, Any]]:
        """What `raprune jobs` says, the newest first."""
        listed = self.raprune("jobs", "--json", "--all")
        assert listed.returncode == 0, listed.stderr
        rows: list[dict[str, Any]] = json.loads(listed.stdout)
        return rows

    def get(self, path: str, token: str | None) -> Any:
        """What the dashboard answers."""
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        with urllib.request.urlopen(urllib.request.Request(self.url + path, headers=headers), timeout=30) as answer:
            return json.load(answer)

    def actors(self) -> set[str]:
        """The classes of the living actors that are neither Serve's nor a job's supervisor."""
        listed = self.get("/api/v0/actors?limit=1000", self.token)["data"]["result"]["result"]
        alive = {actor["class_name"] for actor in listed if actor["state"] == "ALIVE"}
        return {name for name in alive if not name.startswith(("Serve", "ProxyActor", "JobSupervisor"))}

    def node_of(self, pid: int) -> int | None:
        """The number in `pids` of the node that a process belongs to; None for one that is no more."""
        parents = parents_of_all()
        above = set()
        while pid := parents.get(pid, 0):
            above.add(pid)
        return next((number for number, node in enumerate(self.pids) if node in above), None)

    def lose(self, number: int) -> None:
        """A node with all that runs there is gone from one moment to the next."""
        parents = parents_of_all()
        lost = {self.pids[number]}
        while more := {pid for pid, parent in parents.items() if parent in lost} - lost:
            lost |= more
        for pid in sorted(lost):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def parents_of_all() -> dict[int, int]:
    """Process -> its parent."""
    found = {}
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if folder.name.isdigit():
                found[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    return found


class Forward:
    """A port of this machine that leads to another one, as `ssh -L` makes it, until the connection breaks."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def cut(self) -> None:
        """Break what is connected."""
        broken, self._open = self._open, []
        for one in broken:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self.cut()
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self._target))
            self._open += [near, far]
            self._threads.append(threading.Thread(target=self._carry, args=(near, far)))
            self._threads[-1].start()

    @staticmethod
    def _carry(near: socket.socket, far: socket.socket) -> None:
        ends = {near: far, far: near}
        with near, far, contextlib.suppress(OSError):
            while True:
                for one in select.select(list(ends), [], [])[0]:
                    content = one.recv(65536)
                    if not content:
                        return
                    ends[one].sendall(content)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    # Sockets lie below it, whose paths are short.
    folder = Path(tempfile.mkdtemp(prefix="rap-", dir="/tmp"))
    work = tmp_path_factory.mktemp("e2e") / "work"
    work.mkdir()
    port, token, mark = free_ports(4), secrets.token_hex(32), f"{folder.name}-{os.getpid()}"
    url = f"http://127.0.0.1:{port + 2}"
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    clean = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    shared = {**clean, MARK: mark, "PATH": path, "RAY_AUTH_TOKEN": token, "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
    nodes = {"DASHBOARD": "1", "WORKERS": "2", "CPUS": "1", "PORT": str(port), "DASHBOARD_PORT": str(port + 2)}

    def local(what: str) -> subprocess.CompletedProcess[bytes]:
        command = ["bash", "-c", f"source cluster/local.sh {what}"]
        settings = {**shared, **nodes, "FOLDER": str(folder)}
        with (folder / "local.log").open("ab") as log:
            return subprocess.run(command, cwd=ROOT, env=settings, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    try:
        assert local("start").returncode == 0, (folder / "local.log").read_text()
        pids = [int(pid) for pid in (folder / "pids").read_text().split()]
        # The address of another cluster must not win over the one that is asked for.
        environment = shared | {"RAY_ADDRESS": "127.0.0.1:1", "RAY_API_SERVER_ADDRESS": url, "OMP_NUM_THREADS": "1"}
        yield Cluster(url, token, work, environment, pids)
    finally:
        local("stop")
        # Ray's agents are not ours: they end by themselves minutes after their node.
        assert wait_until_gone(mark, but=AGENTS, seconds=60) == set()
        shutil.rmtree(folder, ignore_errors=True)


PATIENT = """
import time
from dataclasses import dataclass

from raprune.methods.random import Random


@dataclass(frozen=True, kw_only=True)
class Patient(Random):
    \"\"\"Random, and slow enough to watch.\"\"\"

    def repair(self, *arguments, **others):
        time.sleep(0.5)
        return super().repair(*arguments, **others)
"""
"""A method of the user's own, which goes with the job."""


def job(cluster: Cluster, name: str, *, trials: int, port: int = 0) -> tuple[str, Store]:
    """A small search on the digits as a job file in the working folder, and where its run will be."""
    (cluster.work / "patient.py").write_text(PATIENT)
    run = Store(cluster.work.parent / name)
    (cluster.work / f"{name}.toml").write_text(
        f'output = "{run.uri}"\nmethods = ["patient:Patient"]\n'
        '[model]\nname = "digits-net"\n[data]\nname = "digits"\nmax_images = 400\n'
        "[dense]\nepochs = 2\nlr = 0.1\n"
        f"[search]\ntrials = {trials}\ncalibration_images = 64\n"
        f"[finalists]\ncount = 4\neach_method = false\ntrain = {{ epochs = 2, lr = 0.05 }}\n"
        f"[page]\nserve = {'true' if port else 'false'}\nport = {port or 8000}\n"
    )
    return f"{name}.toml", run


def recorded(store: Store) -> dict[str, float]:
    """Trial -> when it started, of all that are recorded."""
    if not store.is_run():
        return {}
    return {row["trial_id"]: row["started_at"] for row in store.rows(["trial_id", "started_at"])}


def patiently(condition: Callable[[], Any]) -> Any:
    """What `condition` gives once it is true, which takes seconds on a machine that is not busy."""
    return wait_until(condition, seconds=150, every=0.5)


def test_the_cluster_asks_for_its_token(cluster: Cluster, tmp_path: Path) -> None:
    for token, status in ((None, 401), ("wrong", 403)):
        with pytest.raises(urllib.error.HTTPError) as refused:
            cluster.get("/api/jobs/", token)
        refused.value.close()
        assert refused.value.code == status
    wrong = cluster.raprune("submit", "--output", "s3://bucket/run", RAY_AUTH_TOKEN="not-the-token-of-this-cluster")
    assert wrong.returncode == 2
    assert "the cluster does not know this token" in wrong.stderr and "RAY_AUTH_TOKEN_PATH" in wrong.stderr
    none = cluster.raprune("jobs", RAY_AUTH_TOKEN="", HOME=str(tmp_path))
    assert none.returncode == 2
    assert "asks for a token, and none was found" in none.stderr
    (tmp_path / "token").write_text(f"{cluster.token}\n")
    by_file = cluster.raprune("jobs", RAY_AUTH_TOKEN="", RAY_AUTH_TOKEN_PATH=str(tmp_path / "token"))
    assert by_file.returncode == 0 and "No jobs of raprune" in by_file.stdout
    for said in (wrong, none, by_file):
        assert "not-the-token" not in said.stdout + said.stderr and cluster.token not in said.stdout + said.stderr
        assert "Traceback" not in said.stderr


def test_too_large_a_folder_is_not_sent(cluster: Cluster, tmp_path: Path) -> None:
    with (tmp_path / "pictures.bin").open("wb") as file:
        file.truncate(packages.LIMIT * 11)
    refused = cluster.raprune("submit", "--working-dir", str(tmp_path), "--output", "s3://bucket/run")
    assert refused.returncode == 2
    assert "pictures.bin" in refused.stderr and ".rayignore" in refused.stderr
    assert cluster.jobs() == []


def test_a_job_that_fails_ends_with_its_exit_code(cluster: Cluster) -> None:
    failed = cluster.raprune("submit", "--model", "nowhere:net", "--output", str(cluster.work.parent / "failed"))
    assert failed.returncode == 2, failed.stdout + failed.stderr
    assert "importing nowhere raised ModuleNotFoundError" in failed.stdout, "the log is followed"
    assert re.search(r"raysubmit_\w+ FAILED with exit code 2", failed.stdout)
    row = cluster.jobs()[0]
    assert (row["state"], row["exit_code"]) == ("FAILED", 2)
    said = cluster.raprune("logs", row["id"])
    assert said.returncode == 0 and "importing nowhere" in said.stdout
    unknown = cluster.raprune("logs", "raysubmit_nothing")
    assert unknown.returncode == 2 and "raysubmit_nothing: no such job" in unknown.stderr


def test_a_job_is_followed_stopped_and_goes_on(cluster: Cluster) -> None:
    file, run = job(cluster, "stopped", trials=30)
    begun = cluster.raprune("submit", file, "--json")
    assert begun.returncode == 0, begun.stdout + begun.stderr
    job_id = json.loads(begun.stdout)["id"]

    following = cluster.begin("logs", job_id, "--follow")
    assert following.stdout is not None
    assert patiently(lambda: len(recorded(run)) >= 4), cluster.raprune("logs", job_id).stdout
    following.send_signal(signal.SIGINT)
    said = following.communicate(timeout=60)[0]
    assert following.returncode == 130, said
    assert f"No longer following {job_id}, which keeps running." in said and "Asked for: keep at most 30%" in said
    assert f"raprune stop {job_id} --address {cluster.url}" in said
    row = cluster.jobs()[0]
    assert (row["id"], row["state"], row["run"], row["budget"]) == (job_id, "RUNNING", run.uri, "FLOPs 30%")

    stopped = cluster.raprune("stop", job_id)
    assert stopped.returncode == 0 and f"{job_id}: STOPPED." in stopped.stdout, stopped.stdout + stopped.stderr
    log = cluster.raprune("logs", job_id).stdout
    assert "Terminated." in log and f"raprune resume {run.uri}" in log, log
    assert wait_until(lambda: not cluster.actors(), seconds=30), cluster.actors()
    before = recorded(run)
    assert 4 <= len(before) < 30 and run.run()["state"] == "searching"

    # By Ray's own command, which anybody may have in a script; it looks for a token only where it is told to.
    command = ["ray", "job", "submit", "--address", cluster.url, "--working-dir", "."]
    resumed = subprocess.run(
        [*command, "--", "python", "-m", "raprune", "search", file, "--resume"],
        cwd=cluster.work,
        # Its own preference for RAY_ADDRESS is why `raprune submit` sets that aside.
        env=cluster.environment | {"RAY_AUTH_MODE": "token"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert f"{run.uri} holds a run: resuming it." in resumed.stdout
    assert "ignored" not in resumed.stdout, "what was decided at the beginning is no change of the job"
    assert run.run()["spec"]["search"]["lookahead"] == 4
    after = recorded(run)
    assert before.items() <= after.items(), "what was finished is neither lost nor run again"
    assert sum(name.startswith("search") for name in after) == 30
    assert run.run()["state"] == "finished"
    row = cluster.jobs()[0]
    assert row["state"] == "SUCCEEDED" and "% at " in row["best"]


def test_the_whole_story(cluster: Cluster, tmp_path: Path) -> None:
    """Submitted, two workers busy, watched in a browser, a worker killed, ended, downloaded, loaded.

    Meanwhile the connection over which the job is followed breaks.
    """
    file, run = job(cluster, "story", trials=60, port=free_ports(1))
    forward = Forward(int(cluster.url.rpartition(":")[2]))
    submitted = cluster.begin("submit", file, "--address", f"127.0.0.1:{forward.port}")
    assert submitted.stdout is not None
    try:
        busy = patiently(lambda: two_nodes_of(cluster, run))
        assert busy, submitted.stdout.read()
        row = patiently(lambda: next((row for row in cluster.jobs() if row["page"]), None))
        assert (row["name"], row["state"], row["run"]) == ("story", "RUNNING", run.uri)
        with browser_at(row["page"]) as page:
            expect(page.locator("#figures")).to_contain_text("of 60", timeout=60_000)
            forward.cut()
            cluster.lose(2)
            known = len(recorded(run))
            assert patiently(lambda: len(recorded(run)) >= known + 3), "the other worker goes on"
            said = submitted.communicate(timeout=400)[0]
            assert submitted.returncode == 0, said
            expect(page.locator("#run-state")).to_contain_text("finished", timeout=60_000)
            best = front(row["page"])[-1]
            page.goto(f"{row['page']}#trial={best['trial_id']}")
            with page.expect_download() as download:
                page.locator("#detail-body .downloads a[href$='.zip']").click()
            download.value.save_as(tmp_path / "by-browser.zip")
            page.screenshot(path=tmp_path / "page.png", full_page=True)
            assert runs_in_plain_pytorch(tmp_path / "by-browser.zip", tmp_path / "by-browser") == best["params"]
    finally:
        if submitted.poll() is None:
            submitted.kill()
            submitted.communicate()
        forward.close()
    assert re.search(r"raysubmit_\w+ SUCCEEDED, best \d", said), said
    assert said.count("Asked for: keep at most 30%") == 1, "what was said is not said again"
    assert f"Page: {row['page']}" in said and cluster.token not in said
    assert len([name for name in recorded(run) if name.startswith("search")]) == 60
    ended = cluster.jobs()[0]
    assert ended["best"] in said
    assert wait_until(lambda: not cluster.actors(), seconds=30), cluster.actors()
    details = cluster.get(f"/api/jobs/{ended['id']}", cluster.token)
    assert details["metadata"][RUN] == run.uri and details["metadata"][PAGE] == row["page"]
    assert cluster.token not in json.dumps(details)

    rows = front(row["page"])
    assert len(rows) >= 2
    for candidate in rows:
        archive = tmp_path / f"{candidate['candidate']}.zip"
        archive.write_bytes(fetch(f"{row['page']}download/{candidate['candidate']}.zip", raw=True))
        assert runs_in_plain_pytorch(archive, tmp_path / candidate["candidate"]) == candidate["params"]

    again = cluster.raprune("submit", file, "--name", "again")
    assert again.returncode == 0 and "The run is finished." in again.stdout, "submitted again, a run goes on"
    assert cluster.jobs()[0]["name"] == "again"


def two_nodes_of(cluster: Cluster, run: Store) -> bool:
    """Whether trials were recorded by processes of both workers."""
    if not run.is_run():
        return False
    pids = {int(row["worker"].rpartition(":")[2]) for row in run.rows(["worker"])}
    return {1, 2} <= {cluster.node_of(pid) for pid in pids}


@contextlib.contextmanager
def browser_at(address: str) -> Iterator[Page]:
    """The page in Chromium."""
    chromium = require("chromium")
    with sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=chromium, args=QUIET)
        page = opened.new_context(viewport={"width": 1440, "height": 1000}).new_page()
        page.goto(address)
        yield page
        opened.close()


def front(page: str) -> list[dict[str, Any]]:
    """The front of a finished run, as its page has it: every network of it is stored."""
    trials, rows = fetch(f"{page}api/trials")["columns"], fetch(f"{page}api/rows")
    places = [place for place, costs in zip(rows["trial"], rows["on_front"], strict=True) if "flops" in costs]
    return [
        {name: values[place] for name, values in trials.items()} | {"candidate": trials["network"][place]}
        for place in places
    ]


def fetch(address: str, *, raw: bool = False) -> Any:
    """What the page's server answers, as JSON or as it is."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(address, timeout=30) as answer:
        content = answer.read()
    return content if raw else json.loads(content)


def runs_in_plain_pytorch(archive: Path, folder: Path) -> int:
    """The parameters of a network that was downloaded, once it was loaded and run; neither needs Ray."""
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(folder)
    [recipe] = folder.rglob("recipe.json")
    dense = build_model(ModelSpec(name="digits-net"), num_classes=10, image_shape=(1, 8, 8))
    small = raprune.load(dense, str(recipe.parent))
    assert isinstance(small, torch.nn.Module)
    with torch.no_grad():
        assert small(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    return sum(parameter.numel() for parameter in small.parameters())
