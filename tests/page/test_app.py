"""The page over HTTP, by the server that `raprune serve` uses, from real stores."""

from __future__ import annotations

import gzip
import http.client
import io
import json
import socket
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from raprune.page.access import Access
from raprune.page.guard import HEADERS
from raprune.page.sending import STATIC
from raprune.results.stages import FILE, FINETUNE, SEARCH, Stages
from raprune.store.folder import RUN_FILE, Store
from tests.factories import live_trial as trial
from tests.factories import make_live_run as make_run
from tests.page.served import Answer, Served, served, wait_until

TOKEN = "0123456789abcdef-token"
PATHS = [
    "/",
    "/api/run",
    "/api/trials",
    "/api/trials?after=5",
    "/api/trials/finetune-00000",
    "/api/rows",
    "/api/history",
    "/api/ablation",
    "/api/pick?flops=0.2",
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_run(tmp_path_factory.mktemp("app") / "run")


@pytest.fixture(scope="module")
def page(store: Store) -> Iterator[Served]:
    with served(store) as page:
        yield page


@pytest.fixture(scope="module")
def closed(store: Store) -> Iterator[Served]:
    with served(store, Access.of(TOKEN, "run")) as page:
        yield page


@pytest.mark.parametrize("path", PATHS)
def test_address_of_the_page_answers_with_security_headers(page: Served, path: str) -> None:
    answer = page.get(path)
    assert answer.status == 200 and answer.body
    for name, value in HEADERS.items():
        assert answer.headers[name] == value
    assert "script-src 'self';" in answer.headers["content-security-policy"]
    assert "access-control-allow-origin" not in answer.headers and "server" not in answer.headers
    if path.startswith("/api"):
        assert answer.headers["content-type"] == "application/json"
        assert isinstance(answer.json, dict)


@pytest.mark.parametrize("path", PATHS)
def test_unchanged_answer_is_not_sent_again(page: Served, path: str) -> None:
    first = page.get(path)
    again = page.get(path, if_none_match=first.headers["etag"])
    assert again.status == 304 and not again.body
    assert again.headers["x-content-type-options"] == "nosniff"


def test_answer_is_compressed_if_the_client_accepts_gzip(page: Served) -> None:
    plain, packed = page.get("/api/trials"), page.get("/api/trials", accept_encoding="br, gzip")
    assert packed.headers["content-encoding"] == "gzip" and gzip.decompress(packed.body) == plain.body
    assert len(packed.body) < len(plain.body) and "accept-encoding" in plain.headers["vary"]
    assert "content-encoding" not in page.get("/api/trials", accept_encoding="gzip;q=0").headers


@pytest.mark.parametrize("path", [*PATHS, "/api/events", "/download/finetune-00000/weights.safetensors"])
def test_head_request_has_no_body(page: Served, path: str) -> None:
    assert page.get(path, "HEAD").status == 200
    assert page.get(path, "HEAD").body == b""


def test_files_of_the_page_are_all_served(page: Served) -> None:
    names = [path.name for path in STATIC.iterdir()]
    assert "index.html" in names
    for name in names:
        answer = page.get(f"/static/{name}")
        assert answer.status == 200 and answer.body == (STATIC / name).read_bytes()
    assert page.get("/").body == (STATIC / "index.html").read_bytes()


def test_download_of_a_stored_network_has_its_bytes(page: Served, store: Store) -> None:
    candidate = page.get("/api/pick").json["candidate"]
    for name, repeat in ((candidate, 0), ("finetune-00000", 0), ("finetune-00000-s1", 1)):
        weights = page.get(f"/download/{name}/weights.safetensors")
        assert weights.body == bytes([repeat]) * 3_000_000
        assert weights.headers["content-length"] == "3000000" and "no-store" in weights.headers["cache-control"]
        assert weights.headers["content-disposition"] == 'attachment; filename="weights.safetensors"'
        assert page.get(f"/download/{name}/recipe.json").json["repeat"] == repeat
        packed = page.get(f"/download/{name}.zip")
        assert packed.headers["content-type"] == "application/zip"
        with zipfile.ZipFile(io.BytesIO(packed.body)) as archive:
            assert archive.testzip() is None
            folder = candidate + (f"-s{repeat}" if repeat else "")
            assert sorted(archive.namelist()) == [f"{folder}/recipe.json", f"{folder}/weights.safetensors"]
            assert archive.read(f"{folder}/weights.safetensors") == weights.body
            assert archive.read(f"{folder}/recipe.json") == store.read_bytes(f"models/{folder}/recipe.json")


def test_download_of_a_network_that_is_not_stored_names_the_export_command(page: Served) -> None:
    for path in ("search-00000/recipe.json", "search-00000.zip", "nobody/weights.safetensors"):
        answer = page.get(f"/download/{path}")
        assert answer.status == 404 and "raprune export" in answer.json["hint"]


SECRETS = ("root:", "hush-hush", "created_at", "weights_hash")


@pytest.mark.parametrize(
    "path",
    [
        "/../run.json",
        "/..",
        "/static/../app.py",
        "/static/..%2fapp.py",
        "/static/%2e%2e/app.py",
        "/static/%2e%2e%2f%2e%2e%2fcli.py",
        "/static/..%5capp.py",
        "/static/....//app.py",
        "/static/%252e%252e%252fapp.py",
        "/static//etc/passwd",
        "/static/%2fetc%2fpasswd",
        "/static/index.html%00.js",
        "/static/.",
        "/static/",
        "/static",
        "/static/__init__.py",
        "/static/app.py",
        "/static/file:%2f%2f%2fetc%2fpasswd",
        "/static/\u00e9".encode().decode("latin-1"),
        "/static/%c0%ae%c0%ae%c0%afapp.py",
        "/static/%ff%fe",
        "/download/../run.json",
        "/download/..%2f..%2frun.json",
        "/download/%2e%2e/recipe.json",
        "/download/%2e%2e%2f%2e%2e/recipe.json",
        "/download/..%2f..%2f.zip",
        "/download/.zip",
        "/download//recipe.json",
        "/download/models/recipe.json",
        "/download/finetune-00000/../../run.json",
        "/download/finetune-00000/run.json",
        "/download/finetune-00000/recipe.json/..",
        "/download/finetune-00000%2frecipe.json%00/weights.safetensors",
        "/api/trials/..%2f..%2frun.json",
        "/api/trials/%2e%2e",
        "/api/trials/search-00000%00",
        "/api/curves/..%2frun",
        "/api/nothing",
        "/run.json",
        "/models/",
        "/trials/part-000000.parquet",
        "//evil.example/",
        "/-/routes",
    ],
)
def test_hostile_path_leads_nowhere(page: Served, path: str) -> None:
    answer = raw_get(page, path)
    assert 400 <= answer.status < 500, answer
    assert not any(secret in answer.body.decode("utf-8", "replace") for secret in SECRETS)
    if answer.headers.get("content-type") == "application/json":
        assert set(answer.json) == {"error", "hint"}


def raw_get(page: Served, path: str) -> Answer:
    """The answer to exactly this path: no client has a say in it."""
    came = page.raw(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode("latin-1"))
    head, _, body = came.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return Answer(int(first.split()[1]), headers, body)


HOST = b"Host: localhost\r\n"


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"POST /api/run HTTP/1.1\r\n" + HOST + b"Content-Length: 2\r\n\r\n{}", 405),
        (b"PUT /download/x.zip HTTP/1.1\r\n" + HOST + b"\r\n", 405),
        (b"DELETE /api/trials/search-00000 HTTP/1.1\r\n" + HOST + b"\r\n", 405),
        (b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n", 405),
        (b"TRACE / HTTP/1.1\r\n" + HOST + b"\r\n", 405),
        (b"GET /api/run HTTP/1.1\r\n" + HOST + b"Content-Length: 9999999\r\n\r\nxx", 413),
        (b"GET /api/run HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 413),
        (b"GET /" + b"a" * 2000 + b" HTTP/1.1\r\n" + HOST + b"\r\n", 414),
        (b"GET /api/pick?flops=" + b"1" * 3000 + b" HTTP/1.1\r\n" + HOST + b"\r\n", 414),
        (b"GET / HTTP/1.1\r\n" + HOST + b"X: " + b"a" * 20_000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\n" + HOST + b"".join(b"X%d: aaaaaaaa\r\n" % n for n in range(1500)) + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\n" + HOST + b"X: " + b"a" * 200_000 + b"\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.0\r\n\r\n", 403),
        (b"GET / HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n", 403),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n", 400),
        (b"GET http://evil.example/ HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost : localhost\r\n\r\n", 400),
        (b"GET / HTTP/banana\r\n" + HOST + b"\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (b"\x00" * 100, 400),
        (b"GET /\x00 HTTP/1.1\r\n" + HOST + b"\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + HOST + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 413),
        (b"GET / HTTP/1.1\r\n" + HOST + b"Content-Length: abc\r\n\r\n", 400),
        (b"GET /api/trials?after=-1 HTTP/1.1\r\n" + HOST + b"\r\n", 400),
        (b"GET /api/trials?after=1e3 HTTP/1.1\r\n" + HOST + b"\r\n", 400),
        (b"GET /api/trials?after=99999999999999999999 HTTP/1.1\r\n" + HOST + b"\r\n", 400),
        (b"GET /api/trials?after=%D9%A3 HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"GET /api/pick?flops=__import__('os') HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    ],
)
def test_malformed_request_is_refused_and_the_server_continues(page: Served, request_: bytes, status: int) -> None:
    came = page.raw(request_.replace(b"\r\n" + HOST, b"\r\nConnection: close\r\n" + HOST, 1))
    assert came.startswith(b"HTTP/1.1 %d " % status), came[:300]
    assert b"Traceback" not in came
    assert page.get("/api/rows").status == 200


def test_websocket_request_is_not_upgraded(page: Served) -> None:
    upgrade = b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: eA==\r\nSec-WebSocket-Version: 13\r\n"
    came = page.raw(b"GET /api/nothing HTTP/1.1\r\n" + HOST + upgrade + b"\r\n", patience_s=1.0)
    assert b" 101 " not in came.split(b"\r\n")[0]


@pytest.mark.parametrize("path", [*PATHS, "/api/events", "/download/finetune-00000.zip", "/nothing", "/api/trials/x"])
def test_page_with_a_token_closes_every_address(closed: Served, path: str) -> None:
    for headers in ({}, {"authorization": "Bearer wrong"}, {"cookie": f"{Access(page='run').cookie_name}=wrong"}):
        answer = closed.get(path, **headers)
        assert answer.status == 401 and set(answer.json) == {"error", "hint"}
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.headers["content-security-policy"]


def test_token_opens_the_page_by_header_and_by_cookie(closed: Served, capfd: pytest.CaptureFixture[str]) -> None:
    assert closed.get("/api/run", authorization=f"Bearer {TOKEN}").status == 200
    sent_on = closed.get("/?" + urlencode({"token": TOKEN}))
    assert sent_on.status == 303 and sent_on.headers["location"] == "./" and not sent_on.body
    cookie = sent_on.headers["set-cookie"]
    assert "httponly" in cookie.lower() and "samesite=strict" in cookie.lower() and "path=/" in cookie.lower()
    opened = closed.get("/api/run", cookie=cookie.partition(";")[0], host="anywhere.example")
    assert opened.status == 200
    wrong = closed.get("/?token=wrong-wrong-wrong-wrong")
    assert wrong.status == 401 and "set-cookie" not in wrong.headers
    everything = b"".join(
        answer.body + repr(answer.headers).encode() for answer in (sent_on, opened, wrong, closed.get("/"))
    )
    assert TOKEN.encode() not in everything
    out, err = capfd.readouterr()
    assert TOKEN not in out + err


def test_browser_without_the_token_gets_an_explanation(closed: Served) -> None:
    answer = closed.get("/", accept="text/html,*/*")
    assert answer.status == 401 and b"?token=TOKEN" in answer.body and b"<script" not in answer.body
    assert answer.headers["content-type"].startswith("text/html")


def stream(page: Served) -> tuple[http.client.HTTPConnection, Iterator[tuple[str, dict[str, Any]]]]:
    """The events of the page as they come."""
    connection = http.client.HTTPConnection(page.host, page.port, timeout=20)
    connection.request("GET", "/api/events")
    answer = connection.getresponse()
    assert answer.status == 200 and answer.getheader("content-type", "").startswith("text/event-stream")

    def events() -> Iterator[tuple[str, dict[str, Any]]]:
        name = ""
        while line := answer.readline().decode().strip() or answer.readline().decode().strip():
            field, _, value = line.partition(": ")
            if field == "event":
                name = value
            elif field == "data":
                yield name, json.loads(value)

    return connection, events()


def test_events_of_a_growing_run_are_pushed(tmp_path: Path) -> None:
    store = make_run(tmp_path / "run")
    with served(store) as page:
        connection, events = stream(page)
        first = dict(next(events) for _ in range(5))
        assert first["stages"]["stages"] == []
        assert first["trials"]["total"] == 8 and first["away"] == {"error": None}
        assert first["progress"]["recorded"] == 8 and first["run"]["state"] == "searching"
        store.append([trial(50, fraction=0.29, accuracy=0.999), trial(51, accuracy=0.1)])
        news = dict(next(events) for _ in range(2))
        assert news["trials"]["total"] == 10
        assert news["progress"]["best"]["trial_id"] == "search-00050"
        assert page.get("/api/trials?after=8").json["columns"]["trial_id"] == ["search-00050", "search-00051"]
        rows = page.get("/api/rows").json
        assert rows["starred"][rows["trial"].index(8)] and "flops" in rows["on_front"][rows["trial"].index(8)]
        store.write_json(RUN_FILE, store.run() | {"state": "finished", "finished_at": 1.8e9 + 60})
        told = dict(next(events) for _ in range(2))
        assert told["run"]["state"] == "finished" and told["progress"]["live"] is False
        connection.close()


def test_stages_are_pushed_as_the_driver_writes_them(tmp_path: Path) -> None:
    store, stages = make_run(tmp_path / "run"), Stages()
    stages.expect({SEARCH: 20.0, FINETUNE: 60.0})
    stages.begin(SEARCH, total=10, unit="trials")
    store.write_json(FILE, stages.now().to_json())
    with served(store) as page:
        connection, events = stream(page)
        first = dict(next(events) for _ in range(5))["stages"]
        assert [(s["name"], s["state"]) for s in first["stages"]] == [(SEARCH, "running"), (FINETUNE, "waiting")]
        assert 79 < first["left_s"] <= 80 and page.get("/api/run").json["stages"]["stages"] == first["stages"]
        stages.step()
        store.write_json(FILE, stages.now().to_json())
        name, news = next(events)
        while name != "stages":
            name, news = next(events)
        assert news["stages"][0]["done"] == 1
        connection.close()


def test_page_of_an_unreachable_store_says_so_and_keeps_its_state(tmp_path: Path) -> None:
    store = make_run(tmp_path / "run")
    away = tmp_path / "away"
    with served(store) as page:
        connection, events = stream(page)
        for _ in range(5):
            next(events)
        Path(store.uri).rename(away)
        name, told = next(events)
        assert name == "away" and "run.json" in str(told["error"]) and told["hint"]
        assert page.get("/api/run").json["away"]["error"] and page.get("/api/trials").json["total"] == 8
        lost = page.get("/download/finetune-00000/weights.safetensors")
        assert lost.status in (404, 503) and set(lost.json) == {"error", "hint"}
        away.rename(store.uri)
        # The words of the error change, and are sent again, where the folder left in the middle of a reading.
        name, told = next((name, told) for name, told in events if name != "away" or told["error"] is None)
        assert (name, told) == ("away", {"error": None})
        assert page.get("/download/finetune-00000/weights.safetensors").status == 200
        connection.close()


def test_page_of_a_missing_run_answers_503_until_the_run_exists(tmp_path: Path) -> None:
    store = Store(tmp_path / "run")
    with served(store) as page:
        for path in ("/api/run", "/api/trials", "/api/pick", "/download/x.zip"):
            answer = page.get(path)
            assert answer.status == 503 and "run.json" in answer.json["error"] and answer.headers["retry-after"]
        assert page.get("/").status == 200
        make_run(store.uri)
        assert wait_until(lambda: page.get("/api/run").status == 200)


def test_event_streams_are_limited_and_released(page: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raprune.page.app.MAX_STREAMS", 2)
    connections = [stream(page)[0] for _ in range(2)]
    assert wait_until(lambda: page.get("/api/events").status == 503)
    for connection in connections:
        assert connection.sock is not None
        connection.sock.shutdown(socket.SHUT_RDWR)
        connection.close()
    assert wait_until(lambda: _opens(page))


def _opens(page: Served) -> bool:
    connection = http.client.HTTPConnection(page.host, page.port, timeout=20)
    connection.request("GET", "/api/events")
    status = connection.getresponse().status
    connection.close()
    return status == 200
