"""A Ray cluster on hosts of their own: a head, where drivers are, and nodes that do the work."""

from __future__ import annotations

import os
import re
import secrets
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.orchestration.chaos import MARK, TITLES, Victim, processes_of, wait_until
from tests.orchestration.network import Network
from tests.orchestration.processes import kill

HEAD = "head"
PORT = 6379
STARTED = b"Ray runtime started"

DETECTION = {
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "5000",
    "RAY_health_check_failure_threshold": "3",
}
"""A node is lost about 18 s after its last answer: Ray's own settings (3 s, 10 s, 5 times) take more than a minute."""


class Cluster:
    """Ray on the hosts of a network. The head offers no CPU: whatever computes does so on another host."""

    def __init__(self, network: Network, nodes: Sequence[str], environment: Mapping[str, str]) -> None:
        self.network = network
        self.nodes = tuple(nodes)
        self.environment = {
            **os.environ,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
            MARK: network.mark,
            **DETECTION,
            **environment,
        }
        self._started: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def address(self) -> str:
        """The address at which drivers and nodes join."""
        return f"{self.network.addresses[HEAD]}:{PORT}"

    def start(self) -> None:
        """Start Ray on every host that has none, on the head first."""
        lacking = [name for name in (HEAD, *self.nodes) if not self.runs(name)]
        for wave in ([HEAD], list(self.nodes)):
            begun = [name for name in wave if name in lacking]
            for name in begun:
                self._begin(name)
            for name in begun:
                self._await(name)

    def runs(self, name: str) -> bool:
        """True if Ray runs on the host."""
        return name in self._started and self._started[name].poll() is None

    def await_end(self, name: str) -> None:
        """Wait until Ray on a host has ended by itself, as it does when it learns that it was taken for lost."""
        self._started[name].wait(timeout=60)

    def stop(self) -> None:
        """End all that was started on the hosts."""
        # Some of Ray's processes start others in the place of those that end.
        while left := processes_of(self.network.mark):
            kill(left)
        for started in self._started.values():
            started.wait(timeout=10)

    def hosts_of(self, victim: Victim) -> set[str]:
        """The hosts on which such processes run."""
        spaces = {os.stat(f"/run/netns/{self.network.namespace(name)}").st_ino: name for name in (HEAD, *self.nodes)}
        pids = [pid for pid, title in processes_of(self.network.mark).items() if re.search(TITLES[victim], title)]
        return {spaces[os.stat(f"/proc/{pid}/ns/net").st_ino] for pid in pids}

    def log(self, name: str) -> Path:
        """What `ray start` printed on a host."""
        return self.network.folder / f"{name}.log"

    def _begin(self, name: str) -> None:
        own = ["--head", f"--port={PORT}", "--num-cpus=0", "--include-dashboard=false"]
        options = own if name == HEAD else [f"--address={self.address}", "--num-cpus=1"]
        here = [f"--node-ip-address={self.network.addresses[name]}", "--object-store-memory=200000000"]
        with self.log(name).open("wb") as file:
            self._started[name] = subprocess.Popen(
                self.network.command(
                    name, [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *here, *options]
                ),
                env=self.environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _await(self, name: str) -> None:
        log = self.log(name)
        wait_until(lambda: STARTED in log.read_bytes() or not self.runs(name), seconds=120)
        assert STARTED in log.read_bytes(), f"Ray on {name}:\n{log.read_text()}"
