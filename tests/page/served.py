"""A run's page on a port of this machine, and runs to show."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from raprune.page.access import Access
from raprune.page.app import make_app
from raprune.page.feed import Feed
from raprune.page.overview import Overview
from raprune.page.runs_app import make_runs_app
from raprune.page.serve import config_of, listen
from raprune.store.folder import Store


@dataclass(frozen=True)
class Answer:
    """The answer to a request."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Served:
    """A served page that answers requests."""

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port

    def get(self, path: str, method: str = "GET", **headers: str) -> Answer:
        """The answer to a request for `path`, as it is given, without following redirects."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=20)
        try:
            connection.request(method, path, headers={name.replace("_", "-"): v for name, v in headers.items()})
            answer = connection.getresponse()
            return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def raw(self, request: bytes, *, patience_s: float = 20.0) -> bytes:
        """The answer to any bytes, until the server closes the connection or is silent for `patience_s`."""
        parts: list[bytes] = []
        with socket.create_connection((self.host, self.port), timeout=patience_s) as connection:
            try:
                connection.sendall(request)
                while part := connection.recv(2**16):
                    parts.append(part)
            except (TimeoutError, ConnectionError):
                pass
        return b"".join(parts)


@contextmanager
def served(store: Store, rule: Access | None = None, **how: Any) -> Iterator[Served]:
    """The page of the run in `store`, by the server that `raprune serve` uses."""
    feed = Feed(store, every_s=how.pop("every_s", 0.05), **how)
    closing = threading.Event()
    app = make_app(feed, rule or Access(), name="the run", is_closing=closing.is_set)
    with _listening(app, closing) as port:
        yield Served("127.0.0.1", port)


@contextmanager
def served_runs(folder: Store, rule: Access | None = None, *, every_s: float = 0.05) -> Iterator[Served]:
    """The page of the runs in `folder`, by the server that `raprune serve` uses."""
    closing = threading.Event()
    app = make_runs_app(Overview(folder, every_s=every_s), rule or Access(), is_closing=closing.is_set)
    with _listening(app, closing) as port:
        yield Served("127.0.0.1", port)


@contextmanager
def _listening(app: ASGIApp, closing: threading.Event) -> Iterator[int]:
    with listen("127.0.0.1", 0) as listener:
        server = uvicorn.Server(config_of(app))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            closing.set()
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()


def wait_until(holds: Callable[[], Any], seconds: float = 20.0) -> bool:
    """True if `holds` gives a true value within `seconds`."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if holds():
            return True
        time.sleep(0.05)
    return False
