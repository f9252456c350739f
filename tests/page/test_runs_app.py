"""The page of a list of runs over HTTP, by the server that `raprune serve` uses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raprune.page.access import Access
from raprune.page.guard import HEADERS
from raprune.page.overview import id_of
from raprune.page.sending import STATIC
from raprune.results.front import budget_of, front_of
from raprune.results.rows import candidates
from raprune.results.run_list import ListedRun
from raprune.store.folder import RUN_FILE, Store
from tests.factories import live_trial, make_live_run, make_short_run
from tests.page.served import Served, served_runs, wait_until
from tests.store.s3_server import CREDENTIALS, SECRET, Bucket

TOKEN = "0123456789abcdef-token"


def run_id(name: str) -> str:
    return id_of(ListedRun(name=name, place=""))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    make_short_run(folder / "first")
    make_live_run(folder / "project" / "second")
    (folder / "broken").mkdir()
    (folder / "broken" / RUN_FILE).write_text("{")
    return folder


@pytest.fixture(scope="module")
def page(folder: Path) -> Iterator[Served]:
    with served_runs(Store(folder)) as page:
        yield page


def paths() -> list[str]:
    first = f"/run/{run_id('first')}"
    below = ("/", "/api/run", "/api/trials", "/api/trials/search-00002", "/api/rows", "/api/pick?flops=0.2")
    return ["/", "/api/runs", f"/api/fronts/{run_id('first')}", *(first + path for path in below)]


@pytest.mark.parametrize("path", paths())
def test_address_of_the_list_or_of_a_run_answers_with_its_guards(page: Served, path: str) -> None:
    answer = page.get(path)
    assert answer.status == 200 and answer.body
    assert {name: answer.headers[name] for name in HEADERS} == HEADERS
    assert page.get(path, if_none_match=answer.headers["etag"]).status == 304


def test_list_holds_each_run_and_the_reason_of_an_unreadable_one(page: Served, folder: Path) -> None:
    answer = page.get("/api/runs").json
    runs = {run["name"]: run for run in answer["runs"]}
    assert answer["name"] == str(folder) and answer["away"] is None
    assert set(runs) == {"first", "project/second", "broken"}
    assert runs["broken"]["state"] == "unreadable" and "damaged" in runs["broken"]["error"] and runs["broken"]["hint"]
    assert runs["first"]["best"]["val_accuracy"] == 0.955 and runs["first"]["id"] == run_id("first")


def test_fronts_of_a_run_are_those_of_the_command_line(page: Served, folder: Path) -> None:
    store = Store(folder / "first")
    fronts = page.get(f"/api/fronts/{run_id('first')}").json["fronts"]
    for cost in ("flops", "params"):
        wanted = front_of(candidates(store.trials()), budget_of(store.record()), cost=cost)
        assert [row["trial_id"] for row in fronts[cost]] == [row.trial_id for row in wanted]
    assert page.get(f"/api/fronts/{run_id('broken')}").json["fronts"] == {}


def test_run_below_the_list_is_the_page_of_that_run(page: Served) -> None:
    below = f"/run/{run_id('project/second')}"
    run = page.get(f"{below}/api/run").json
    assert run["name"] == "project/second" and run["listed"] is True
    assert page.get(f"{below}/").body == (STATIC / "index.html").read_bytes()
    assert page.get(f"{below}/static/main.js").body == (STATIC / "main.js").read_bytes()
    assert page.get(f"{below}/download/finetune-00000/weights.safetensors").body == bytes(3_000_000)
    moved = page.get(below)
    assert moved.status == 303 and moved.headers["location"] == f"./{run_id('project/second')}/"


@pytest.mark.parametrize(
    "path",
    [
        "/run/nobody/",
        "/run/nobody",
        "/run/first/api/run",
        "/run/..%2ffirst/api/run",
        "/run/project%2fsecond/api/run",
        "/run/",
        "/api/fronts/first",
        "/api/fronts/..%2f..%2fetc",
        "/api/run",
        "/first/run.json",
        f"/run/{run_id('first')}/run.json",
        f"/run/{run_id('first')}/../broken/run.json",
        f"/run/{run_id('first')}/static/..%2fapp.py",
    ],
)
def test_path_that_names_no_run_leads_nowhere(page: Served, path: str) -> None:
    answer = page.get(path)
    assert answer.status in (400, 404) and set(answer.json) == {"error", "hint"}


def test_token_closes_the_list_and_every_run_below(folder: Path) -> None:
    with served_runs(Store(folder), Access.of(TOKEN, "runs")) as closed:
        for path in (*paths(), f"/run/{run_id('first')}", f"/run/{run_id('first')}/api/events"):
            assert closed.get(path).status == 401
        sent_on = closed.get(f"/run/{run_id('first')}/?token={TOKEN}")
        assert sent_on.status == 303
        cookie = sent_on.headers["set-cookie"].partition(";")[0]
        for path in paths():
            assert closed.get(path, cookie=cookie).status == 200


def test_page_for_this_machine_is_refused_under_another_name(page: Served) -> None:
    for path in paths():
        assert page.get(path, host="evil.example").status == 403


def test_runs_that_come_grow_and_go_are_told(tmp_path: Path) -> None:
    first = make_short_run(tmp_path / "first")
    with served_runs(Store(tmp_path)) as page:

        def told(name: str) -> Any:
            return next((run for run in page.get("/api/runs").json["runs"] if run["name"] == name), None)

        before = told("first")["searched"]
        first.append([live_trial(50, fraction=0.29, accuracy=0.999)])
        assert wait_until(lambda: told("first")["searched"] == before + 1)
        fronts = page.get(f"/api/fronts/{run_id('first')}").json["fronts"]
        assert fronts["flops"][-1]["trial_id"] == "search-00050"
        assert page.get(f"/run/{run_id('first')}/api/trials").json["total"] == 9
        make_short_run(tmp_path / "second")
        assert wait_until(lambda: told("second") is not None)
        (tmp_path / "first").rename(tmp_path / ".gone")
        assert wait_until(lambda: told("first") is None)
        assert page.get(f"/run/{run_id('first')}/api/run").status == 404


def test_folder_that_goes_away_is_told_with_the_runs_of_before(tmp_path: Path) -> None:
    make_short_run(tmp_path / "runs" / "first")
    with served_runs(Store(tmp_path / "runs")) as page:
        assert page.get("/api/runs").json["away"] is None
        (tmp_path / "runs").rename(tmp_path / "away")
        assert wait_until(lambda: page.get("/api/runs").json["away"] is not None)
        answer = page.get("/api/runs").json
        assert "no such folder" in answer["away"]["error"] and [run["name"] for run in answer["runs"]] == ["first"]
        (tmp_path / "away").rename(tmp_path / "runs")
        assert wait_until(lambda: page.get("/api/runs").json["away"] is None)


def test_few_of_many_opened_runs_stay_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raprune.page.runs_app.MAX_OPEN", 1)
    for name in ("a", "b"):
        make_short_run(tmp_path / name)
    with served_runs(Store(tmp_path)) as page:
        for name in ("a", "b", "a"):
            assert page.get(f"/run/{run_id(name)}/api/run").json["name"] == name


def test_runs_of_a_bucket_are_shown_without_their_credentials(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    make_short_run(bucket.uri("runs/first"))
    with served_runs(Store(bucket.uri("runs", user=f"key:{SECRET}@")), every_s=0.2) as page:
        answer = page.get("/api/runs")
        assert [run["run"] for run in answer.json["runs"]] == [f"s3://{bucket.name}/runs/first"]
        run = page.get(f"/run/{run_id('first')}/api/run")
        assert run.json["store"] == f"s3://{bucket.name}/runs/first"
        assert page.get(f"/run/{run_id('first')}/api/trials").json["total"] == 8
        for one in (answer, run):
            assert SECRET not in json.dumps(one.json) and "endpoint_override" not in json.dumps(one.json)
