"""The page beside a search, by a real Ray Serve on a real cluster."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import ray
from rich.console import Console

with warnings.catch_warnings():
    # Ray Serve declares its own fields in a way that Pydantic will drop.
    warnings.simplefilter("ignore")
    from ray import serve

from raprune.orchestration.search import search
from raprune.orchestration.served_page import Shown, page_of_run, remove, show
from raprune.page.serve import listen
from raprune.spec.job import PageSpec
from raprune.spec.toml import load_spec
from raprune.store.folder import Store
from tests.factories import live_trial as trial
from tests.factories import make_live_run as make_run
from tests.orchestration.chaos import small_job
from tests.page.served import wait_until

# tests/orchestration/test_ray_private.py starts a Serve in the default tier.
pytestmark = [pytest.mark.ray, pytest.mark.nightly]


def get(address: str, path: str = "", **headers: str) -> tuple[int, bytes]:
    parts = urlsplit(address)
    connection = http.client.HTTPConnection(str(parts.hostname), int(parts.port or 80), timeout=30)
    connection.request("GET", parts.path + path, headers=headers)
    answer = connection.getresponse()
    found = answer.status, answer.read()
    connection.close()
    return found


def applications() -> dict[str, str]:
    return {name: str(app.status.value) for name, app in serve.status().applications.items()}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_run(tmp_path_factory.mktemp("beside") / "my run")


@pytest.fixture(scope="module")
def shown(ray_cluster: None, store: Store) -> Iterator[Shown]:
    """The page, and another application beside it, at a Serve that the page started."""
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        shown = show(store, PageSpec(port=port))
    assert urlsplit(shown.address).port != port, "another program listens there"

    class Neighbour:
        async def __call__(self, request: Any) -> str:
            return "still here"

    neighbour: Any = serve.deployment(Neighbour, ray_actor_options={"num_cpus": 0})
    serve.run(neighbour.bind(), name="neighbour", route_prefix="/neighbour")
    yield shown
    serve.shutdown()


def test_it_stands_in_the_serve_tab_and_answers(shown: Shown, store: Store) -> None:
    assert applications() == {"raprune-my-run": "RUNNING", "neighbour": "RUNNING"}
    assert shown.app == "raprune-my-run" and urlsplit(shown.address).path == "/raprune/my-run/"
    assert urlsplit(shown.address).hostname == "127.0.0.1" and shown.token is None
    status, body = get(shown.address)
    assert status == 200 and b"<!doctype html>" in body.lower()
    run = json.loads(get(shown.address, "api/run")[1])
    assert run["name"] == "my run" and run["live"] is False, "no coordinator works on it"
    assert get(shown.address, "static/page.css")[0] == 200
    candidate = json.loads(get(shown.address, "api/pick")[1])["candidate"]
    assert get(shown.address, f"download/{candidate}/weights.safetensors")[1] == bytes(3_000_000)
    assert get(shown.address[:-1])[0] == 303


def test_it_takes_no_processor_from_the_trials(shown: Shown) -> None:
    assert ray.available_resources()["CPU"] == ray.cluster_resources()["CPU"]


def test_it_follows_the_run_and_pushes(shown: Shown, store: Store) -> None:
    parts = urlsplit(shown.address)
    connection = http.client.HTTPConnection(str(parts.hostname), int(parts.port or 80), timeout=30)
    connection.request("GET", parts.path + "api/events")
    answer = connection.getresponse()
    before = json.loads(get(shown.address, "api/trials")[1])["total"]
    store.append([trial(60)])
    told = b""
    while b'"total": %d' % (before + 1) not in told:
        told += answer.readline()
    connection.close()


def test_its_guards_hold_behind_the_proxy(shown: Shown) -> None:
    assert get(shown.address, host="evil.example")[0] == 403
    for path in ("static/..%2fapp.py", "download/..%2f..%2frun.json", "..%2f..%2fetc%2fpasswd", "static/%2e%2e/app.py"):
        status, body = get(shown.address, path)
        assert 400 <= status < 500 and b"created_at" not in body, path


def test_another_run_of_that_name_has_a_page_of_its_own(shown: Shown, tmp_path: Path) -> None:
    other = show(make_run(tmp_path / "my run", trials=3), PageSpec(linger_s=3.0))
    assert other.app != shown.app and other.address != shown.address
    assert json.loads(get(other.address, "api/trials")[1])["total"] == 5
    assert json.loads(get(shown.address, "api/trials")[1])["total"] != 5
    assert wait_until(lambda: other.app not in applications(), 60), "nobody looks at it any more"
    assert applications() == {"raprune-my-run": "RUNNING", "neighbour": "RUNNING"}


def test_a_search_has_its_page_while_it_goes_on(shown: Shown, tmp_path: Path) -> None:
    [job] = small_job(tmp_path)
    # It says nothing of a page, and joins a cluster that runs.
    address = ray.get_runtime_context().gcs_address
    spec = load_spec(Path(job), {"resources.address": address, "page.linger_s": 0.0})
    said = io.StringIO()
    seen: list[dict[str, Any]] = []
    ended = threading.Event()

    def watch() -> None:
        page = shown.address.replace("/my-run/", "/run/")
        while not ended.is_set():
            with contextlib.suppress(OSError, ValueError, http.client.HTTPException):
                status, body = get(page, "api/run")
                seen.extend([json.loads(body)] if status == 200 else [])
            time.sleep(0.5)

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        store = Store(search(spec, console=Console(file=said, width=200)))
    finally:
        ended.set()
        watching.join()
    assert "Page: http://127.0.0.1:" in said.getvalue(), said.getvalue()
    page = store.run()["page"]
    assert page["app"] == "raprune-run" and page["address"].endswith("/raprune/run/") and not page["needs_token"]
    assert any(run["live"] and run["progress"]["states"].get("RUNNING") for run in seen), len(seen)
    assert len({run["progress"]["recorded"] for run in seen}) > 1
    assert wait_until(lambda: applications() == {"raprune-my-run": "RUNNING", "neighbour": "RUNNING"})
    curves = {name.removesuffix(".json") for name in store.names("curves")}
    trained = {t.trial_id for t in store.trials() if t.proposal.parent}
    assert curves == {"dense", *trained} and trained
    assert [epoch["epoch"] for epoch in store.read_json("curves/finetune-00000.json")] == [1, 2, 3, 4]


def test_only_its_own_application_is_removed(shown: Shown) -> None:
    remove(shown.app)
    assert applications() == {"neighbour": "RUNNING"}
    parts = urlsplit(shown.address)
    assert get(f"http://{parts.netloc}/neighbour") == (200, b"still here")
    assert get(shown.address)[0] == 404
    remove(shown.app)


def test_where_serve_listens_for_all_the_page_has_a_token(
    shown: Shown, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve.shutdown()
    with listen("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    serve.start(http_options={"host": "0.0.0.0", "port": port}, proxy_location="HeadOnly")
    monkeypatch.delenv("RAPRUNE_PAGE_TOKEN", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    open_to_all = show(store, PageSpec())
    assert open_to_all.token == str(tmp_path / "raprune" / "page-token")
    token = Path(open_to_all.token).read_text().strip()
    assert get(open_to_all.address)[0] == get(open_to_all.address, "api/run")[0] == 401
    assert get(open_to_all.address, "api/run", authorization=f"Bearer {token}")[0] == 200
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", f"/raprune/my-run?token={token}")
    sent_on = connection.getresponse()
    assert sent_on.status == 303 and sent_on.getheader("location") == "./my-run/"
    cookie = sent_on.getheader("set-cookie", "")
    assert "path=/raprune/my-run/" in cookie.lower() and token not in cookie
    assert get(open_to_all.address, "api/run", cookie=cookie.partition(";")[0])[0] == 200
    connection.close()
    assert get(open_to_all.address, f"?token={token[:-1]}")[0] == 401
    kept = [json.dumps(open_to_all.describe()), *_logs()]
    assert any("raprune-my-run" in text for text in kept[1:])
    assert not any(token in text for text in kept)
    # Where a token is needed and cannot be kept, the search goes on without a page.
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    said = io.StringIO()
    with page_of_run(store, PageSpec(), Console(file=said, width=200)) as note:
        note()
    assert "The run has no page of its own" in said.getvalue() and len(said.getvalue().splitlines()) == 1
    assert "page" not in store.run()


def _logs() -> list[str]:
    """All that Ray has written down."""
    node: Any = ray._private.worker._global_node
    folder = Path(node.get_logs_dir_path())
    return [path.read_text(errors="replace") for path in folder.rglob("*") if path.is_file()]
