"""A private network of hosts on this machine, whose cables can be slow, lossy or cut. Needs root on Linux, and `ip`.

A host is a network namespace with its own address, host name and Ray folder; it shares files and process ids with this
machine. Its `eth0` is a TAP device whose other end is a switch in this process, so that no frame reaches an interface
of this machine. The switch delays, loses and holds back real frames, as `tc netem` does, which many kernels of virtual
machines and containers are built without.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import heapq
import itertools
import os
import random
import secrets
import select
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import pytest

from tests.tools import require

SUBNET = "10.231.0"

T = TypeVar("T")

_CLONE_NEWNET = 0x40000000
_TUNSETIFF, _IFF_TAP, _IFF_NO_PI = 0x400454CA, 0x0002, 0x1000
_FRAME = 65536
_GROUP_BIT = 1
"""Bit of the first byte of an address that stands for several hosts."""


@dataclass
class Cable:
    """The connection of one host with the switch."""

    device: int
    """File descriptor of the TAP device."""
    delay_s: float = 0.0
    """Delay of each frame that leaves the host."""
    loss: float = 0.0
    """Probability that a frame that leaves the host is lost, in [0, 1]."""
    is_cut: bool = False


@dataclass
class Switch:
    """Hands frames on between hosts, in a thread of its own."""

    random: random.Random = field(default_factory=lambda: random.Random(0))
    cables: dict[str, Cable] = field(default_factory=dict)
    parted: set[frozenset[str]] = field(default_factory=set)
    """Pairs of hosts that do not reach each other."""
    num_lost: int = 0
    """Number of frames that `loss` has dropped."""
    num_held_back: int = 0
    """Number of frames that a cut has dropped."""
    _waiting: list[tuple[float, int, str, bytes]] = field(default_factory=list)
    """Heap of frames: when they are due, a number that keeps their order, for whom, and the frame."""
    _numbers: Iterator[int] = field(default_factory=itertools.count)
    _over: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, daemon=True, name="switch")
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()
        for cable in self.cables.values():
            os.close(cable.device)

    def _run(self) -> None:
        while not self._over.is_set():
            devices = {cable.device: name for name, cable in list(self.cables.items())}
            due = self._waiting[0][0] - time.monotonic() if self._waiting else 0.1
            for device in select.select(list(devices), [], [], min(max(due, 0.0), 0.1))[0]:
                # A device whose host has its link down gives an error.
                with contextlib.suppress(OSError):
                    self._take(devices[device], os.read(device, _FRAME))
            while self._waiting and self._waiting[0][0] <= time.monotonic():
                _, _, name, frame = heapq.heappop(self._waiting)
                with contextlib.suppress(OSError):
                    os.write(self.cables[name].device, frame)

    def _take(self, source: str, frame: bytes) -> None:
        wanted = None if frame[0] & _GROUP_BIT else frame[:6]
        for name in list(self.cables):
            if name != source and wanted in (None, mac(name)):
                self._hand_on(source, name, frame)

    def _hand_on(self, source: str, target: str, frame: bytes) -> None:
        cable = self.cables[source]
        if cable.is_cut or self.cables[target].is_cut or {source, target} in self.parted:
            self.num_held_back += 1
        elif cable.loss and self.random.random() < cable.loss:
            self.num_lost += 1
        else:
            heapq.heappush(self._waiting, (time.monotonic() + cable.delay_s, next(self._numbers), target, frame))


@dataclass
class Network:
    """Hosts by name, and the switch between them."""

    folder: Path
    """For files that each host has for itself."""
    mark: str = field(default_factory=lambda: f"raprune-{secrets.token_hex(3)}")
    switch: Switch = field(default_factory=Switch)
    addresses: dict[str, str] = field(default_factory=dict)

    def add(self, name: str) -> str:
        """Add a host; its address."""
        number = len(self.addresses) + 1
        space = self.namespace(name)
        ip("netns", "add", space)
        self.addresses[name] = f"{SUBNET}.{number}"
        device = inside(space, _tap)
        self.switch.cables[name] = Cable(device)
        ip("-n", space, "link", "set", "lo", "up")
        ip("-n", space, "link", "set", "eth0", "address", mac(name).hex(":"))
        ip("-n", space, "addr", "add", f"{self.addresses[name]}/24", "dev", "eth0")
        self.link(name, up=True)
        return self.addresses[name]

    def link(self, name: str, *, up: bool) -> None:
        """Take the host's own interface down, or up again: programs on the host get errors at once."""
        space = self.namespace(name)
        ip("-n", space, "link", "set", "eth0", "up" if up else "down")
        if up:
            # Programs learn their own address from the route to the world, of which nothing is there.
            ip("-n", space, "route", "replace", "default", "via", f"{SUBNET}.254")

    def cut(self, name: str, *, is_cut: bool) -> None:
        """Hold back every frame of a host without a word to anybody, or no longer."""
        self.switch.cables[name].is_cut = is_cut

    def worsen(self, *, delay_s: float, loss: float) -> None:
        """Set delay and loss of every cable."""
        for cable in self.switch.cables.values():
            cable.delay_s, cable.loss = delay_s, loss

    def namespace(self, name: str) -> str:
        return f"{self.mark}-{name}"

    def command(self, name: str, arguments: Sequence[str]) -> list[str]:
        """The command that runs `arguments` on a host."""
        own = self.folder / name
        own.mkdir(exist_ok=True)
        Path("/tmp/ray").mkdir(exist_ok=True)
        setting = 'hostname "$0" && mount --bind "$1" /tmp/ray && shift && exec "$@"'
        space = f"--net=/run/netns/{self.namespace(name)}"
        return ["nsenter", space, "unshare", "--uts", "--mount", "sh", "-c", setting, name, str(own), *arguments]

    def close(self) -> None:
        """Remove the hosts. Nothing may run on them any more."""
        self.switch.stop()
        for name in self.addresses:
            ip("netns", "del", self.namespace(name))


def mac(name: str) -> bytes:
    """Hardware address of a host, which the switch knows it by."""
    return b"\x02" + name.encode()[:5].ljust(5, b"\0")


def inside(namespace: str, work: Callable[[], T]) -> T:
    """The result of `work`, called by a thread of a network namespace; its sockets and threads belong there."""

    def run() -> T:
        libc = ctypes.CDLL(None, use_errno=True)
        with open(f"/run/netns/{namespace}") as space:
            if libc.setns(space.fileno(), _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), f"setns {namespace}")
        return work()

    # The thread ends with the block: no other work runs in the namespace.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(run).result()


def _tap() -> int:
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", b"eth0", _IFF_TAP | _IFF_NO_PI))
    return device


def ip(*arguments: str) -> None:
    subprocess.run([require("ip", package="iproute2"), *arguments], check=True, capture_output=True, text=True)


def require_network() -> None:
    """Skip the test where this user may not make hosts: not even CI can do that for itself."""
    tool, space = require("ip", package="iproute2"), f"raprune-probe-{os.getpid()}"
    made = subprocess.run([tool, "netns", "add", space], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"this user may not make network namespaces: {made.stderr.strip()}")
    try:
        os.close(inside(space, _tap))
        entered = ["nsenter", f"--net=/run/netns/{space}", "unshare", "--uts", "--mount", "hostname", space]
        subprocess.run(entered, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"this user may not make hosts of network namespaces: {error}")
    finally:
        subprocess.run([tool, "netns", "del", space], check=True, capture_output=True)
