"""The processes that a test starts: their ports; those below one, found and ended."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterable


def free_ports(count: int) -> int:
    """The first of so many ports in a row that nobody has, on any address.

    Below those that Linux gives to whoever asks for any: another test's connection cannot take one before the server
    that is started next has it. Each process of tests looks from another place.
    """
    for first in range(20_000 + 40 * (os.getpid() % 250), 32_000, 10):
        held: list[socket.socket] = []
        try:
            held += (socket.create_server(("", first + number)) for number in range(count))
            return first
        except OSError:
            continue
        finally:
            for one in held:
                one.close()
    raise AssertionError("no free ports")


def below(pid: int) -> list[int]:
    """The ids of the processes that `pid` has started, and these, and so on; `pid` itself is not among them."""
    # From procps, since Python has no such thing without psutil.
    listed = subprocess.run(["ps", "-e", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = {int(child): int(parent) for child, parent in (line.split() for line in listed.splitlines())}
    found = [pid]
    for parent in found:
        found += [child for child, its in parents.items() if its == parent]
    return found[1:]


def alive(pids: Iterable[int]) -> list[int]:
    """Those that run; a zombie, which only waits to be asked for its end, does not."""
    states = {pid: _state(pid) for pid in pids}
    return [pid for pid, state in states.items() if state and not state.startswith("Z")]


def kill(pids: Iterable[int], *, patience_s: float = 20.0) -> None:
    """End them at once, and wait until they are gone."""
    pids = list(pids)
    for pid in alive(pids):
        os.kill(pid, signal.SIGKILL)
    left_after(patience_s, pids)


def left_after(seconds: float, pids: Iterable[int]) -> list[int]:
    """Those that still run after so many seconds; none as soon as none does. Some of Ray's follow their parent late."""
    left, deadline = alive(pids), time.monotonic() + seconds
    while left and time.monotonic() < deadline:
        time.sleep(0.1)
        left = alive(left)
    return left


def _state(pid: int) -> str:
    return subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
