"""`raprune serve` in a process of its own."""

from __future__ import annotations

import http.client
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from raprune.cli import app
from raprune.errors import UsageError
from raprune.page.serve import listen, page_token
from raprune.store.folder import Store
from tests.factories import make_live_run as make_run

TOKEN = "0123456789abcdef-token"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_run(tmp_path_factory.mktemp("serve") / "run")


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.delenv("RAPRUNE_PAGE_TOKEN", raising=False)
    return tmp_path / "raprune" / "page-token"


class Serving:
    """The command, with all that it has said."""

    def __init__(self, *words: str, **environment: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "raprune.cli", "serve", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | environment,
        )
        self.said = ""
        while "Ctrl-C" not in self.said:
            assert self._process.stdout is not None
            line = self._process.stdout.readline()
            assert line, self.said
            self.said += line
        found = re.search(r"http://[^/]*:(\d+)/", self.said)
        assert found
        self.port = int(found[1])

    def get(self, path: str, **headers: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        found = answer.status, answer.read()
        connection.close()
        return found

    def end(self, how: signal.Signals = signal.SIGINT) -> tuple[int, float]:
        """Exit code, and the seconds until it came."""
        began = time.monotonic()
        self._process.send_signal(how)
        rest, _ = self._process.communicate(timeout=20)
        self.said += rest
        return self._process.returncode, time.monotonic() - began


@pytest.fixture
def serving(store: Store) -> Iterator[Serving]:
    serving = Serving(store.uri, "--port", "0")
    yield serving
    if serving._process.poll() is None:
        serving.end(signal.SIGKILL)


def test_server_with_an_open_page_ends_at_ctrl_c(serving: Serving, store: Store) -> None:
    assert f"The page of {store.name}: http://127.0.0.1:{serving.port}/" in serving.said
    assert serving.get("/api/run")[0] == 200
    watching = http.client.HTTPConnection("127.0.0.1", serving.port, timeout=20)
    watching.request("GET", "/api/events")
    assert watching.getresponse().status == 200
    code, seconds = serving.end()
    assert code == 0 and seconds < 10
    assert "Traceback" not in serving.said and "ERROR" not in serving.said
    watching.close()


def test_page_for_other_machines_has_a_token_that_no_other_user_reads(store: Store, state: Path) -> None:
    serving = Serving(store.uri, "--port", "0", "--host", "0.0.0.0")
    try:
        token = state.read_text().strip()
        assert stat.S_IMODE(state.stat().st_mode) == 0o600 and stat.S_IMODE(state.parent.stat().st_mode) == 0o700
        assert len(token) >= 32 and str(state) in serving.said
        assert serving.get("/api/run")[0] == 401
        assert serving.get("/api/run", authorization=f"Bearer {token}")[0] == 200
        assert serving.get(f"/?token={token}")[0] == 303
        assert serving.get(f"/api/run?token={token}x")[0] == 401
    finally:
        serving.end()
    assert token not in serving.said
    again = page_token(None, needed=True)
    assert again is not None and again.text == token


def test_token_of_a_file_opens_the_page(store: Store, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    serving = Serving(store.uri, "--port", "0", "--token-file", str(tmp_path / "token"))
    try:
        assert serving.get("/api/run")[0] == 401
        assert serving.get("/api/run", authorization=f"Bearer {TOKEN}")[0] == 200
    finally:
        serving.end()
    assert TOKEN not in serving.said and str(tmp_path / "token") in serving.said


def test_token_of_the_environment_is_taken(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert page_token(None, needed=False) is None and not state.exists()
    monkeypatch.setenv("RAPRUNE_PAGE_TOKEN", TOKEN)
    token = page_token(None, needed=False)
    assert token is not None and token.text == TOKEN and TOKEN not in token.place


def test_token_that_other_users_can_read_is_refused(state: Path) -> None:
    assert page_token(None, needed=True) is not None
    state.chmod(0o644)
    with pytest.raises(UsageError, match="other users can read"):
        page_token(None, needed=True)


@pytest.mark.parametrize("text", ["", "short", "a b c d e f g h i j k", "0123456789abcdef\n0123456789abcdef", "ü" * 20])
def test_invalid_token_is_refused_and_not_repeated(tmp_path: Path, text: str) -> None:
    (tmp_path / "token").write_text(text)
    with pytest.raises(UsageError) as refused:
        page_token(str(tmp_path / "token"), needed=False)
    assert "16 characters" in refused.value.message and (not text or text not in str(refused.value))


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["nowhere"], 1, "no such folder"),
        (["EMPTY"], 1, "holds no run"),
        (["RUN", "--port", "70000"], 2, "--port 70000"),
        (["RUN", "--port", "-1"], 2, "--port -1"),
        (["RUN", "--host", "no such host"], 2, "--host 'no such host'"),
        (["RUN", "--host", "203.0.113.7"], 2, "--host 203.0.113.7"),
        (["RUN", "--port", "0", "--token-file", "/no/such/file"], 2, "--token-file /no/such/file"),
        (["RUN", "--port", "0", "--token-file", "/"], 2, "--token-file /"),
        (["no-such-scheme://bucket/run"], 1, "no filesystem opens this"),
    ],
)
def test_serve_of_an_impossible_request_is_an_error_of_one_screen(
    store: Store, tmp_path: Path, words: list[str], code: int, said: str
) -> None:
    places = {"RUN": store.uri, "EMPTY": str(tmp_path)}
    ended = CliRunner().invoke(app, ["serve", *(places.get(word, word) for word in words)])
    assert ended.exit_code == code, ended.output
    assert said in ended.output and "Traceback" not in ended.output and len(ended.output.splitlines()) < 8


def test_port_in_use_is_an_error_that_names_another_port(store: Store) -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        ended = CliRunner().invoke(app, ["serve", store.uri, "--port", str(port)])
    assert ended.exit_code == 1
    assert f"--port {port}: another program uses this port" in ended.output and f"--port {port + 1}" in ended.output


def test_server_listens_on_ipv6() -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    try:
        with listen("::1", 0) as listener:
            assert listener.getsockname()[1] > 0
    except UsageError:
        pytest.skip("no IPv6 here")


def test_serve_imports_neither_torch_nor_ray() -> None:
    code = (
        "import sys\nimport raprune.page.serve\n"
        "print([name for name in ('torch', 'ray', 'matplotlib', 'plotly', 'optuna') if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
