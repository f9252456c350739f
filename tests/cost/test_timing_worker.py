"""The timing worker and its client, over HTTP on loopback, with a target that gives made-up times."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from raprune.cost import timing_worker
from raprune.cost.stopwatch import Repeats
from raprune.cost.timing_target import TOKEN, TOKEN_FILE, NodeTimes, ServedTarget, given_token
from raprune.cost.timing_worker import TimingWorker, is_loopback, serve
from raprune.errors import ModelError, TargetError, UsageError
from raprune.pruning.preparation import prepare
from raprune.spec.toml import load_spec

SECRET = "a-token-of-the-tests"
REPEATS = Repeats(most=5, limit_s=1.0)


class MadeUp:
    """A target whose times are the sizes of the files."""

    def medians(self, files: Sequence[bytes], shape: Sequence[int], *, threads: int, repeats: Repeats) -> list[float]:
        return [float(len(file)) for file in files]

    def profile(self, file: bytes, inputs: Mapping[str, Sequence[int]], *, threads: int, repeats: Repeats) -> NodeTimes:
        if file == b"refused":
            raise RuntimeError("no such operator")
        return NodeTimes(repeats.most, (("o0_", "Conv", 0.5 * len(inputs)),))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    monkeypatch.setattr(timing_worker, "check_onnx_runtime", lambda: None)
    monkeypatch.setattr("raprune.cost.timing_worker.metadata.version", lambda name: "1.0")
    monkeypatch.setenv(TOKEN, SECRET)
    with serving(TimingWorker(MadeUp())) as running:
        yield running


@contextmanager
def serving(worker: TimingWorker) -> Iterator[ThreadingHTTPServer]:
    with serve(worker, host="127.0.0.1", port=0, token=SECRET) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def address(server: ThreadingHTTPServer) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}"


def test_target_gets_times_and_profiles_of_a_worker(server: ThreadingHTTPServer) -> None:
    target = ServedTarget(address(server))
    assert target.device().endswith(", ONNX Runtime 1.0")
    assert target.medians([b"ab", b"abc"], (1, 3, 8, 8), threads=1, repeats=REPEATS) == [2.0, 3.0]
    assert target.profile(b"file", {"x": (1, 2)}, threads=1, repeats=REPEATS) == NodeTimes(5, (("o0_", "Conv", 0.5),))


def test_target_with_another_token_is_refused(server: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN, "another-token-of-the-tests")
    with pytest.raises(TargetError, match="the token is wrong"):
        ServedTarget(address(server)).device()


def test_target_tells_a_file_that_the_runtime_refuses_from_a_worker_that_is_gone(server: ThreadingHTTPServer) -> None:
    target = ServedTarget(address(server))
    with pytest.raises(ModelError, match="no such operator"):
        target.profile(b"refused", {}, threads=1, repeats=REPEATS)
    server.shutdown()
    server.server_close()
    with pytest.raises(TargetError, match="does not answer") as caught:
        target.device()
    assert "raprune resume" in caught.value.hint


class Garbled(TimingWorker):
    """A worker, or another program, whose answers are JSON of another kind."""

    def __init__(self, answers: Mapping[str, Any]) -> None:
        super().__init__()
        self.answers = answers

    def answer(self, method: str, path: str, asked: Mapping[str, Any]) -> Any:
        return self.answers[path]


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ({"/v1/device": {}}, "no 'device'"),
        ({"/v1/device": ["a device"]}, "no JSON object"),
        ({"/v1/networks": {}}, "no 'network'"),
        ({"/v1/networks": {"network": "a"}, "/v1/times": {}}, "no 'milliseconds'"),
        ({"/v1/networks": {"network": "a"}, "/v1/times": {"milliseconds": [1.0, 2.0]}}, "no times of 1 networks"),
        ({"/v1/networks": {"network": "a"}, "/v1/times": {"milliseconds": [0]}}, "no times of 1 networks"),
        ({"/v1/networks": {"network": "a"}, "/v1/times": {"milliseconds": ["soon"]}}, "'soon' is no time"),
        ({"/v1/networks": {"network": "a"}, "/v1/times": {"milliseconds": [float("nan")]}}, "nan is no time"),
        ({"/v1/networks": {"network": "a"}, "/v1/times": {"milliseconds": None}}, "not iterable"),
        ({"/v1/profile": {"runs": 5}}, "no 'events'"),
        ({"/v1/profile": {"runs": 1, "events": []}}, "1 runs"),
        ({"/v1/profile": {"runs": 5, "events": [["o0_", "Conv"]]}}, "not enough values"),
        ({"/v1/profile": {"runs": 5, "events": [["o0_", "Conv", -1.0]]}}, "-1.0 is no time"),
    ],
)
def test_answer_that_is_no_timing_is_an_error_of_the_target(
    monkeypatch: pytest.MonkeyPatch, answers: Mapping[str, Any], reason: str
) -> None:
    monkeypatch.setattr(timing_worker, "check_onnx_runtime", lambda: None)
    monkeypatch.setenv(TOKEN, SECRET)
    asks = {
        "/v1/device": lambda target: target.device(),
        "/v1/profile": lambda target: target.profile(b"file", {}, threads=1, repeats=REPEATS),
        "/v1/networks": lambda target: target.medians([b"file"], (1, 3, 8, 8), threads=1, repeats=REPEATS),
    }
    with serving(Garbled(answers)) as server:
        target = ServedTarget(address(server))
        with pytest.raises(TargetError, match="not that of a timing worker") as caught:
            asks[next(iter(answers))](target)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/times", b"no json", 400),
        ("/v1/times", b"[]", 400),
        ("/v1/times", b'{"networks": ["unknown"]}', 400),
        ("/v1/networks", b'{"onnx": "%%%"}', 400),
        ("/v1/profile", b'{"onnx": "", "inputs": {"x": [-1]}}', 400),
        ("/v1/profile", b'{"onnx": "", "inputs": {"x": [65536, 65536]}}', 413),
        ("/v1/profile", b'{"onnx": "", "inputs": {}, "most": true}', 400),
        ("/v1/profile", b'{"onnx": "", "inputs": {}, "limit_s": 1e9}', 400),
        ("/v1/other", b"{}", 400),
    ],
)
def test_worker_refuses_garbage_with_a_reason(server: ThreadingHTTPServer, path: str, body: bytes, status: int) -> None:
    headers = {"Authorization": f"Bearer {SECRET}"}
    with pytest.raises(HTTPError) as caught:
        urlopen(Request(address(server) + path, data=body, headers=headers, method="POST"), timeout=10)
    assert caught.value.code == status
    assert json.loads(caught.value.read())["error"]


def test_token_comes_from_a_file_and_is_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.delenv(TOKEN, raising=False)
    monkeypatch.delenv(TOKEN_FILE, raising=False)
    with pytest.raises(UsageError, match=TOKEN):
        given_token()
    monkeypatch.setenv(TOKEN_FILE, f"{tmp_path}/token")
    with pytest.raises(UsageError, match="cannot be read"):
        given_token()
    with open(f"{tmp_path}/token", "w") as file:
        file.write(SECRET + "\n")
    assert given_token() == SECRET


def test_short_token_is_refused_and_loopback_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing_worker, "check_onnx_runtime", lambda: None)
    with pytest.raises(UsageError, match="at least 16"):
        serve(TimingWorker(MadeUp()), host="127.0.0.1", port=0, token="short")
    assert [is_loopback(host) for host in ("127.0.0.1", "localhost", "::1", "0.0.0.0", "a")] == [True] * 3 + [False] * 2


def test_target_of_a_job_in_eager_pytorch_is_refused() -> None:
    with pytest.raises(UsageError, match="takes ONNX files"):
        prepare(load_spec(None, {"latency.target": "http://127.0.0.1:1"}))
