"""Devices that time ONNX files in ONNX Runtime: this machine, or another one by its timing worker.

`docs/timing_worker.md` describes the protocol of a timing worker: JSON over HTTP, networks as ONNX files.
"""

from __future__ import annotations

import base64
import http.client
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.error import HTTPError, URLError
from urllib.request import ProxyHandler, Request, build_opener

import numpy as np
import torch

from raprune.cost.onnx_networks import profiled, session_of
from raprune.cost.stopwatch import Repeats, Stopwatch
from raprune.errors import ModelError, TargetError, UsageError
from raprune.models.programs import INPUT

TOKEN, TOKEN_FILE = "RAPRUNE_LATENCY_TOKEN", "RAPRUNE_LATENCY_TOKEN_FILE"
"""Environment variables with the token of a timing worker, or with the path of a file that holds it."""
TIMEOUT_S = 600.0
"""Maximum time for an answer of a timing worker."""
WARM_UP = 2
"""Number of runs of a profiled file that are not timed."""


@dataclass(frozen=True)
class NodeTimes:
    """The profile of a file."""

    runs: int
    """Number of runs of the file, with those of the warm-up."""
    events: tuple[tuple[str, str, float], ...]
    """Name of the node, type of the node and milliseconds, for each node of each run in their order."""


class OnnxTarget(Protocol):
    """A device that times ONNX files in ONNX Runtime."""

    def medians(self, files: Sequence[bytes], shape: Sequence[int], *, threads: int, repeats: Repeats) -> list[float]:
        """Return the median milliseconds of a batch of `shape` through each file; the files take turns."""
        ...

    def profile(self, file: bytes, inputs: Mapping[str, Sequence[int]], *, threads: int, repeats: Repeats) -> NodeTimes:
        """Run a file with constant inputs of these shapes, and return the times of its nodes."""
        ...


class ThisMachine:
    """The CPU of this machine."""

    def __init__(self, stopwatch: Stopwatch | None = None) -> None:
        """`stopwatch` times whole networks; by default it measures wall time."""
        self._stopwatch = stopwatch or Stopwatch(torch.device("cpu"), clock=time.perf_counter)

    def medians(self, files: Sequence[bytes], shape: Sequence[int], *, threads: int, repeats: Repeats) -> list[float]:
        feed = {INPUT: np.ones(tuple(shape), dtype=np.float32)}

        def runner(file: bytes) -> Callable[[], object]:
            session = session_of(file, threads=threads)
            return lambda: session.run(None, feed)

        return [float(ms) for ms in self._stopwatch.medians([runner(file) for file in files], repeats)]

    def profile(self, file: bytes, inputs: Mapping[str, Sequence[int]], *, threads: int, repeats: Repeats) -> NodeTimes:
        feed = {name: np.full(tuple(shape), 0.5, dtype=np.float32) for name, shape in inputs.items()}
        runs = 0
        with profiled(file, threads=threads) as (session, events):
            until = time.perf_counter() + repeats.limit_s
            while runs < WARM_UP + repeats.most and (runs < WARM_UP + repeats.least or time.perf_counter() < until):
                session.run(None, feed)
                runs += 1
        return NodeTimes(runs, tuple((e["name"], e["args"]["op_name"], e["dur"] / 1e3) for e in events))


class ServedTarget:
    """Another device, whose timing worker listens at an address."""

    def __init__(self, address: str) -> None:
        """`address` is `http://HOST:PORT`; the token is read from the environment.

        Raises:
            UsageError: if there is no token.
        """
        self.address = address.rstrip("/")
        self._token = given_token()
        # A proxy of the environment is for the internet; a target is in the own network.
        self._opener = build_opener(ProxyHandler({}))

    def device(self) -> str:
        """Return the name of the device with its runtime.

        Raises:
            TargetError: if no timing worker answers, or it refuses the token.
        """
        about = self._ask("GET", "/v1/device")
        with self._understood():
            return f"{about['device']}, {about['runtime']}"

    def medians(self, files: Sequence[bytes], shape: Sequence[int], *, threads: int, repeats: Repeats) -> list[float]:
        networks = []
        for file in files:
            stored = self._ask("POST", "/v1/networks", {"onnx": _encoded(file)})
            with self._understood():
                networks.append(str(stored["network"]))
        asked = {"networks": networks, "shape": list(shape), "threads": threads, **_limits(repeats)}
        found = self._ask("POST", "/v1/times", asked)
        with self._understood():
            times = [_time(ms) for ms in found["milliseconds"]]
            if len(times) != len(files) or not all(times):
                raise ValueError(f"{times} are no times of {len(files)} networks")
            return times

    def profile(self, file: bytes, inputs: Mapping[str, Sequence[int]], *, threads: int, repeats: Repeats) -> NodeTimes:
        shapes = {name: list(shape) for name, shape in inputs.items()}
        asked = {"onnx": _encoded(file), "inputs": shapes, "threads": threads, **_limits(repeats)}
        found = self._ask("POST", "/v1/profile", asked)
        with self._understood():
            events = tuple((str(name), str(kind), _time(ms)) for name, kind, ms in found["events"])
            if type(found["runs"]) is not int or found["runs"] <= WARM_UP:
                raise ValueError(f"{found['runs']} runs")
            return NodeTimes(found["runs"], events)

    @contextmanager
    def _understood(self) -> Iterator[None]:
        """Turn the errors of an answer that lacks what it should hold into one of the target."""
        try:
            yield
        except KeyError as error:
            raise self._nonsense(f"it has no {error}") from None
        except (TypeError, ValueError) as error:
            raise self._nonsense(str(error)) from None

    # A JSON edge: the protocol of a timing worker.
    def _ask(self, method: str, path: str, content: Mapping[str, Any] | None = None) -> dict[str, Any]:
        body = None if content is None else json.dumps(content).encode()
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"}
        request = Request(f"{self.address}{path}", data=body, headers=headers, method=method)
        try:
            with self._opener.open(request, timeout=TIMEOUT_S) as answer:
                found = json.loads(answer.read())
        except HTTPError as error:
            raise self._refused(error) from None
        except (URLError, OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            raise TargetError(
                f"latency.target {self.address}: the timing worker does not answer: {reason}.",
                hint="Start it on the target: raprune latency --serve. Then repeat the command, or continue a run that "
                "has begun by `raprune resume`.",
            ) from error
        except ValueError as error:
            raise self._nonsense(str(error)) from error
        if not isinstance(found, dict):
            raise self._nonsense("no JSON object")
        return found

    def _refused(self, error: HTTPError) -> Exception:
        try:
            told = json.loads(error.read())
            reason, hint = str(told["error"]), str(told.get("hint", ""))
        except (ValueError, KeyError, TypeError):
            return self._nonsense(f"status {error.code}")
        if error.code == 422:
            return ModelError(f"latency.target {self.address}: {reason}", hint=hint)
        return TargetError(f"latency.target {self.address}: {reason}", hint=hint)

    def _nonsense(self, what: str) -> TargetError:
        return TargetError(
            f"latency.target {self.address}: the answer is not that of a timing worker: {what}.",
            hint="Check host and port; a timing worker is started by `raprune latency --serve`.",
        )


def given_token() -> str:
    """Return the token of the environment.

    Raises:
        UsageError: if there is none.
    """
    token = os.environ.get(TOKEN, "").strip()
    file = os.environ.get(TOKEN_FILE, "")
    if not token and file:
        try:
            token = Path(file).read_text().strip()
        except OSError as error:
            raise UsageError(
                f"{TOKEN_FILE}={file}: cannot be read: {error.strerror}.", hint="Give a file that holds the token."
            ) from None
    if not token:
        raise UsageError(
            f"latency.target needs the token of its timing worker, and neither {TOKEN} nor {TOKEN_FILE} is set.",
            hint="`raprune latency --serve` prints the token where it starts.",
        )
    return token


def _limits(repeats: Repeats) -> dict[str, float]:
    return {"most": repeats.most, "least": repeats.least, "limit_s": repeats.limit_s}


def _time(milliseconds: object) -> float:
    if type(milliseconds) not in (int, float) or not 0 <= milliseconds < math.inf:  # type: ignore[operator]
        raise ValueError(f"{milliseconds!r} is no time in milliseconds")
    return float(milliseconds)  # type: ignore[arg-type]


def _encoded(file: bytes) -> str:
    return base64.b64encode(file).decode()
