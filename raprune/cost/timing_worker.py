"""The timing worker: it times ONNX files for runs on other machines (`raprune latency --serve`).

Plain JSON over HTTP, as `docs/timing_worker.md` describes it. A file is only ever given to ONNX Runtime, which runs its
own operators and no code of the file. Timings are made one at a time.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import hmac
import ipaddress
import json
import logging
import math
import os
import secrets
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from typing import Any

import torch

from raprune.cost.conditions import device_name, usable_cpus
from raprune.cost.onnx_networks import check_onnx_runtime
from raprune.cost.stopwatch import Repeats
from raprune.cost.timing_target import TOKEN, TOKEN_FILE, OnnxTarget, ThisMachine, given_token
from raprune.errors import RapruneError, UsageError

_LOG = logging.getLogger(__name__)

LARGEST = 4 * 2**30
"""Maximum number of bytes of a request, and of the files that wait to be timed."""
MOST_ELEMENTS = 2**28
"""Maximum number of elements of an input."""
MOST_RUNS, MOST_S = 10_000, 300.0
"""Maximum number of timings of a file, and maximum time for them."""
MIN_TOKEN = 16
"""Minimum number of characters of a token; shorter tokens can be guessed."""
IDLE_S = 60.0
"""Seconds without a byte after which a connection is closed."""


class BadRequestError(RapruneError):
    """A request that is not one of the protocol."""

    status = 400


class TooLargeError(BadRequestError):
    """A request that is larger than the worker takes."""

    status = 413


@dataclass
class TimingWorker:
    """The answers of a timing worker."""

    target: OnnxTarget = field(default_factory=ThisMachine)
    _files: dict[str, bytes] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    # A JSON edge: the protocol of a timing worker.
    def answer(self, method: str, path: str, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Return the answer to a request.

        Raises:
            BadRequestError: if the request is not one of the protocol.
            ModelError: if ONNX Runtime refuses a file.
        """
        routes: dict[tuple[str, str], Callable[[Mapping[str, Any]], dict[str, Any]]] = {
            ("GET", "/v1/device"): self._device,
            ("POST", "/v1/networks"): self._network,
            ("POST", "/v1/times"): self._times,
            ("POST", "/v1/profile"): self._profile,
        }
        route = routes.get((method, path))
        if route is None:
            raise BadRequestError(
                f"{method} {path}: no such request.", hint="Valid: " + ", ".join(p for _, p in routes)
            )
        # One timing at a time: two would slow down each other.
        with self._lock:
            return route(asked)

    def _device(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        runtime = f"ONNX Runtime {metadata.version('onnxruntime')}"
        return {"protocol": 1, "device": device_name(torch.device("cpu")), "cpus": usable_cpus(), "runtime": runtime}

    def _network(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        file = _file(asked)
        if sum(map(len, self._files.values())) + len(file) > LARGEST:
            self._files.clear()
            raise TooLargeError("The files that wait to be timed are too large together.", hint="Time fewer at a time.")
        name = hashlib.sha256(file).hexdigest()
        self._files[name] = file
        return {"network": name}

    def _times(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        names = asked.get("networks")
        if not isinstance(names, list) or not names or any(name not in self._files for name in map(str, names)):
            raise BadRequestError("networks: not a list of known networks.", hint="Send each to /v1/networks first.")
        files = [self._files[name] for name in names]
        try:
            times = self.target.medians(
                files, _shape(asked.get("shape")), threads=_threads(asked), repeats=_repeats(asked)
            )
        finally:
            self._files.clear()
        return {"milliseconds": times}

    def _profile(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        inputs = asked.get("inputs")
        if not isinstance(inputs, dict):
            raise BadRequestError("inputs: not an object of shapes.")
        shapes = {str(name): _shape(shape) for name, shape in inputs.items()}
        found = self.target.profile(_file(asked), shapes, threads=_threads(asked), repeats=_repeats(asked))
        return {"runs": found.runs, "events": [list(event) for event in found.events]}


def serve(worker: TimingWorker, *, host: str, port: int, token: str) -> ThreadingHTTPServer:
    """Return the server of a worker, bound and not yet running.

    Raises:
        UsageError: if the token is too short, the address cannot be bound, or ONNX Runtime is not installed.
    """
    check_onnx_runtime()
    if len(token) < MIN_TOKEN:
        raise UsageError(
            f"The token has {len(token)} characters; it must have at least {MIN_TOKEN}.",
            hint="Leave it out, and one is made.",
        )
    try:
        return ThreadingHTTPServer((host, port), _handler(worker, token))
    except (OSError, OverflowError) as error:
        raise UsageError(
            f"--host {host} --port {port}: cannot listen there: {error}.", hint="Give another --port."
        ) from None


def is_loopback(host: str) -> bool:
    """True if only this machine can reach the address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _handler(worker: TimingWorker, token: str) -> type[BaseHTTPRequestHandler]:
    expected = f"Bearer {token}".encode()

    class Handler(BaseHTTPRequestHandler):
        timeout = IDLE_S
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._handle("GET")

        def do_POST(self) -> None:
            self._handle("POST")

        def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002  # the name of the base class
            _LOG.info("%s %s", self.address_string(), format % arguments)

        def _handle(self, method: str) -> None:
            given = self.headers.get("Authorization", "").encode("utf-8", "replace")
            if not hmac.compare_digest(given, expected):
                # The body is not read: whoever has no token costs nothing.
                self.close_connection = True
                return self._send(401, {"error": "the token is wrong.", "hint": "The worker printed it at its start."})
            try:
                self._send(200, worker.answer(method, self.path, self._content() if method == "POST" else {}))
            except BadRequestError as error:
                self.close_connection = True
                self._send(error.status, {"error": error.message, "hint": error.hint})
            except RapruneError as error:
                self._send(422, {"error": error.message, "hint": error.hint})
            except Exception as error:  # ONNX Runtime raises errors of its own
                _LOG.info("A file was refused: %s", error)
                self._send(422, {"error": f"ONNX Runtime refuses the file: {error}", "hint": ""})

        def _content(self) -> Mapping[str, Any]:
            try:
                length = int(self.headers.get("Content-Length", ""))
            except ValueError:
                raise BadRequestError("The request has no Content-Length.") from None
            if not 0 <= length <= LARGEST:
                raise TooLargeError(f"The request has {length:,} bytes; at most {LARGEST:,} are taken.")
            try:
                content = json.loads(self.rfile.read(length))
            except ValueError as error:
                raise BadRequestError(f"The request is no JSON: {error}.") from None
            if not isinstance(content, dict):
                raise BadRequestError("The request is no JSON object.")
            return content

        def _send(self, status: int, content: Mapping[str, Any]) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return Handler


def _file(asked: Mapping[str, Any]) -> bytes:
    try:
        return base64.b64decode(str(asked["onnx"]), validate=True)
    except (KeyError, binascii.Error):
        raise BadRequestError("onnx: not a file in base64.") from None


def _shape(shape: object) -> tuple[int, ...]:
    if not isinstance(shape, list) or not all(type(size) is int and size > 0 for size in shape):
        raise BadRequestError("shape: not a list of whole numbers of at least 1.")
    if math.prod(shape) > MOST_ELEMENTS:
        raise TooLargeError(f"shape: more than {MOST_ELEMENTS:,} elements.")
    return tuple(shape)


def _threads(asked: Mapping[str, Any]) -> int:
    threads = asked.get("threads", 1)
    if type(threads) is not int or not 1 <= threads <= 4 * (os.cpu_count() or 1):
        raise BadRequestError("threads: not a whole number of at least 1, or more than the device has.")
    return threads


def _repeats(asked: Mapping[str, Any]) -> Repeats:
    most, least, limit_s = asked.get("most", 20), asked.get("least", 3), asked.get("limit_s", 3.0)
    if not all(type(number) is int and 1 <= number <= MOST_RUNS for number in (most, least)):
        raise BadRequestError(f"most, least: not whole numbers of 1 to {MOST_RUNS:,}.")
    if type(limit_s) not in (int, float) or not 0 <= limit_s <= MOST_S:
        raise BadRequestError(f"limit_s: not a number of 0 to {MOST_S:g}.")
    return Repeats(most=most, least=least, limit_s=float(limit_s))


def run(*, host: str, port: int, token_file: str | None) -> None:
    """Serve until Ctrl-C, and print the address and a new token unless one was given.

    Raises:
        UsageError: as `serve`, or if the file of the token cannot be read.
    """
    if token_file is not None:
        os.environ[TOKEN_FILE] = token_file
    is_given = bool(os.environ.get(TOKEN) or os.environ.get(TOKEN_FILE))
    token = given_token() if is_given else secrets.token_urlsafe(24)
    with serve(TimingWorker(), host=host, port=port, token=token) as server:
        print(f"Timing worker at http://{host}:{server.server_address[1]}, until Ctrl-C.", flush=True)
        if not is_given:
            print(f"Give the run its token: export {TOKEN}={token}", flush=True)
        if not is_loopback(host):
            print("Other machines reach it, and their requests are not encrypted.", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()
