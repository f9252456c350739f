"""What is decided before anything is sent, and what answers at an address: no cluster. `test_end_to_end.py` has one."""

from __future__ import annotations

import io
import json
import os
import re
import socket
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from raprune.cli import app
from raprune.errors import UsageError
from raprune.orchestration.jobs import dashboard, metadata, packages
from raprune.orchestration.jobs.cluster_jobs import SubmittedJob, connect, tell_end
from raprune.orchestration.jobs.dashboard import dashboard_url, find_token
from raprune.orchestration.jobs.packages import find, pack
from raprune.orchestration.jobs.submission import JOB_FILE, Submission, plan, runtime_env
from raprune.spec.toml import load_spec
from tests.factories import make_run
from tests.fresh_python import loaded_by

TOKENS = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A project: code, a job, weights that git ignores, and much that stays behind."""
    made = tmp_path / "project"
    for name, text in {
        "mynets.py": "",
        "src/data.csv": "1",
        "src/.gitignore": "*.csv\n!keep.csv\n",
        "src/keep.csv": "2",
        "src/cache/big.bin": "3",
        ".gitignore": "*.safetensors\ncache/\n# a comment\n",
        ".rayignore": "notes.txt\n",
        "notes.txt": "",
        "net.safetensors": "weights",
        ".env": "AWS_SECRET_ACCESS_KEY=x",
        "server.pem": "key",
        ".git/config": "",
        ".venv/lib/python.py": "",
        "runs/one/run.json": "{}",
        "sub/runs/train.py": "",
        "sub/__pycache__/train.pyc": "",
    }.items():
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_text(text)
    return made


@pytest.fixture
def nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No token and no address in the environment; the home folder."""
    for name in TOKENS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def planned(folder: Path | None, text: str = "", **overrides: Any) -> Submission:
    """The plan of a job file in `folder`."""
    job = None
    if folder is not None:
        job = folder / "job.toml"
        job.write_text(text)
    return plan(job, {field.replace("__", "."): value for field, value in overrides.items()}, folder=folder)


def test_a_job_takes_along_what_it_names_and_finds_it_there(folder: Path, tmp_path: Path) -> None:
    made = planned(folder, 'output = "s3://bucket/run"\n[model]\nname = "mynets:tiny"\nweights = "net.safetensors"\n')
    assert made.notes == ()
    sent = pack(folder, tmp_path / "sent.zip", always=made.always, extra={JOB_FILE: made.toml})
    there = tmp_path / "there"
    with zipfile.ZipFile(sent.path) as archive:
        archive.extractall(there)
    arrived = load_spec(there / JOB_FILE)
    assert arrived.model.weights == str(there / "net.safetensors")
    assert Path(arrived.model.weights).read_text() == "weights", "it goes although git ignores it"
    assert arrived.output == "s3://bucket/run"


def test_a_working_folder_leaves_behind_what_is_not_the_jobs(folder: Path) -> None:
    found = find(folder)
    assert sorted(map(str, found.sizes)) == [
        *(".gitignore", ".rayignore", "mynets.py", "src/.gitignore", "src/keep.csv", "sub/runs/train.py"),
    ]
    assert found.left_out == sorted(found.left_out)
    assert {".env", "server.pem", ".git/", ".venv/", "runs/", "src/cache/", "src/data.csv"} <= set(found.left_out)


def test_a_link_to_a_folder_is_followed_but_not_in_circles(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "lib.py").write_text("")
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    (folder / "sub" / "up").symlink_to(folder)
    (folder / "dangling").symlink_to(folder / "nowhere")
    names = set(map(str, find(folder).sizes))
    assert "link/lib.py" in names
    assert not [name for name in names if "up/" in name or name == "dangling"]


def test_unchanged_files_are_not_sent_again(folder: Path, tmp_path: Path) -> None:
    first = pack(folder, tmp_path / "1.zip").path.read_bytes()
    os.utime(folder / "mynets.py", (1, 1))
    assert pack(folder, tmp_path / "2.zip").path.read_bytes() == first
    (folder / "mynets.py").write_text("changed")
    assert pack(folder, tmp_path / "3.zip").path.read_bytes() != first


def test_too_large_a_folder_is_refused_before_it_is_read_and_its_largest_files_are_named(
    folder: Path, tmp_path: Path
) -> None:
    with (folder / "pictures.bin").open("wb") as file:
        file.truncate(packages.LIMIT * 11)
    with pytest.raises(UsageError) as error:
        pack(folder, tmp_path / "sent.zip")
    assert "1100.0 MiB  pictures.bin" in error.value.message
    assert ".rayignore" in error.value.hint and "100.0 MiB" in error.value.message
    assert not (tmp_path / "sent.zip").exists()


def test_a_folder_that_is_too_large_as_a_zip_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "noise.bin").write_bytes(os.urandom(50_000))
    monkeypatch.setattr(packages, "LIMIT", 40_000)
    with pytest.raises(UsageError, match=r"noise\.bin"):
        pack(folder, tmp_path / "sent.zip")


def test_a_folder_of_very_many_files_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "MOST_FILES", 3)
    with pytest.raises(UsageError, match="more than 3"):
        find(folder)


REFUSED = [
    # the job, what the screen says
    ('[model]\nweights = "../net.safetensors"', "model.weights '../net.safetensors': it is outside of"),
    ('[model]\nweights = "missing.safetensors"', "model.weights 'missing.safetensors': no such file"),
    ('[data]\nname = "parquet"\ntrain = "src/none-*.parquet"', "data.train 'src/none-"),
    ('output = "s3://key:hidden@bucket/run"', "output (--output): its URI holds a key or a password"),
    ('output = "abfs://box@account/run?client_secret=hidden"', "output (--output): its URI holds"),
    ('statistics = "s3://key:hidden@bucket/shared"', "statistics: its URI holds"),
    ('warm_start = ["s3://key:hidden@bucket/old"]', "warm_start: its URI holds"),
    ('[data]\nname = "parquet"\ntrain = "s3://key:hidden@bucket/x"', "data.train: its URI holds"),
    ('[data]\nname = "mynets:data"\narguments = { source = "http://me:hidden@host/x" }', "data.arguments.source"),
    ('colour = "red"', "colour"),
]


@pytest.mark.parametrize(("text", "said"), REFUSED)
def test_a_job_that_cannot_be_right_there_is_refused_here(folder: Path, text: str, said: str) -> None:
    with pytest.raises(UsageError) as error:
        planned(folder, text)
    assert said in error.value.message
    assert error.value.hint
    assert "hidden" not in str(error.value)


def test_absolute_paths_are_taken_to_be_there_and_named(folder: Path) -> None:
    made = planned(folder, '[data]\nname = "parquet"\ntrain = "/shared/train.parquet"\n')
    assert made.spec.data.train == "/shared/train.parquet"
    assert any("data.train: /shared/train.parquet is not sent" in note for note in made.notes)
    assert made.always == ()


def test_a_flags_path_is_relative_to_where_one_is(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder / "src")
    made = planned(folder, model__weights="../net.safetensors")
    assert made.spec.model.weights == "net.safetensors"


@pytest.mark.parametrize(
    ("output", "becomes", "noted"),
    [
        ("runs/a", "~/runs/a", "in the home folder of Ray's user on the head's disk"),
        ("../a/../b", "~/../b", "in the home folder"),
        ("/nfs/a", "/nfs/a", "the run will be /nfs/a on the head's disk"),
        ("s3://bucket/a?endpoint_override=http%3A%2F%2Fh", "s3://bucket/a?endpoint_override=http%3A%2F%2Fh", None),
    ],
)
def test_a_run_is_never_in_the_folder_that_ray_deletes(
    folder: Path, output: str, becomes: str, noted: str | None
) -> None:
    made = planned(folder, output=output)
    assert made.spec.output == becomes
    assert [note for note in made.notes if noted and noted in note] if noted else not made.notes


def test_a_run_without_a_folder_gets_one(folder: Path) -> None:
    assert planned(folder).spec.output.startswith("~/runs/mnist-resnet-mnist-sample-")


def test_the_jobs_tab_says_what_runs_and_no_secret(folder: Path) -> None:
    made = planned(
        folder,
        output="s3://bucket/deep/resnet?endpoint_override=http%3A%2F%2Fminio",
        budget={"flops": 0.25, "latency": "3ms"},
        max_drop=0.01,
    )
    assert made.metadata == {
        "job_name": "resnet",
        "raprune_run": "s3://bucket/deep/resnet",
        "raprune_budget": "FLOPs 25%, latency 3ms, at most 1 points less accuracy",
    }


def test_the_cluster_is_the_one_that_it_is_submitted_to(folder: Path) -> None:
    assert planned(folder, '[resources]\naddress = "10.0.0.1:6379"\nworkers = 3').spec.resources.model_dump(
        exclude_defaults=True
    ) == {"workers": 3}


def test_modules_that_do_not_go_along_are_named(folder: Path) -> None:
    made = planned(folder, output="s3://b/r", model__name="mynets:tiny", data__name="elsewhere.deep:data")
    assert made.notes == ("elsewhere is not in the working folder: it must be installed on the cluster.",)


def test_raprune_goes_along_or_is_installed() -> None:
    sent = runtime_env(working_dir="w.zip", install=None, package="/x/raprune")
    assert sent["py_modules"] == ["/x/raprune"] and "pip" not in sent
    installed = runtime_env(working_dir="w.zip", install="raprune==0.1.0", package="/x/raprune")
    assert installed["pip"] == ["raprune==0.1.0"] and "py_modules" not in installed
    for wrong, said in (("torch", "--install torch"), ("https://me:hidden@host/raprune.whl", "--install: its URI")):
        with pytest.raises(UsageError) as error:
            runtime_env(working_dir="w.zip", install=wrong, package="")
        assert said in error.value.message and "hidden" not in str(error.value)


def test_a_driver_knows_its_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(metadata.CONFIG, raising=False)
    assert metadata.submission_id() is None
    assert metadata.cluster_address(None) is None
    metadata.tell(anything="said to nobody")
    for broken in ("", "{", "[]", "{}", '{"metadata": null}'):
        monkeypatch.setenv(metadata.CONFIG, broken)
        assert metadata.submission_id() is None
    monkeypatch.setenv(metadata.CONFIG, json.dumps({"metadata": {"job_submission_id": "raysubmit_1"}}))
    assert metadata.submission_id() == "raysubmit_1"
    assert metadata.cluster_address(None) == "auto"
    assert metadata.cluster_address("10.0.0.1:6379") == "10.0.0.1:6379"


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("head", "http://head"),
        ("head:8265", "http://head:8265"),
        ("http://head:8265/", "http://head:8265"),
        ("https://head/ray/", "https://head/ray"),
        ("http://[::1]:8265", "http://[::1]:8265"),
        (None, "http://127.0.0.1:8265"),
    ],
)
def test_addresses(nothing_set: Path, given: str | None, url: str) -> None:
    assert dashboard_url(given) == url


def test_the_environment_names_the_dashboard(nothing_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://head:1")
    assert dashboard_url(None) == "http://head:1"
    assert dashboard_url("other:2") == "http://other:2"


@pytest.mark.parametrize("given", ["ray://head:10001", "http://", "head:port", "http://head:99999", "file:///x", "h:0"])
def test_invalid_address_is_refused(nothing_set: Path, given: str) -> None:
    with pytest.raises(UsageError) as error:
        dashboard_url(given)
    assert given in error.value.message and "8265" in error.value.hint


def test_an_address_holds_no_password(nothing_set: Path) -> None:
    with pytest.raises(UsageError) as error:
        dashboard_url("http://me:hidden@head:8265")
    assert "hidden" not in str(error.value)


def test_the_token_is_where_ray_looks_for_it(nothing_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_token() is None
    (nothing_set / ".ray").mkdir()
    (nothing_set / ".ray" / "auth_token").write_text("of-the-home-folder\n")
    assert find_token() == "of-the-home-folder"
    (nothing_set / "file").write_text(" of-a-file \n")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(nothing_set / "file"))
    assert find_token() == "of-a-file"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "itself")
    assert find_token() == "itself"
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    for name, said in (("missing", "not readable"), ("empty", "is empty")):
        (nothing_set / "empty").write_text("\n")
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(nothing_set / name))
        with pytest.raises(UsageError, match=said):
            find_token()


@contextmanager
def answering(status: int, body: str = "", location: str = "") -> Iterator[tuple[str, list[str | None]]]:
    """A web server that always says the same; its URL, and the tokens that it was sent."""
    tokens: list[str | None] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            tokens.append(self.headers.get("Authorization"))
            self.send_response(status)
            if location:
                self.send_header("Location", location)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", tokens
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize(
    ("status", "body", "token", "said"),
    [
        (404, "", None, "something that is no Ray dashboard (HTTP 404) answers"),
        (200, "<html>a login page</html>", None, "something that is no Ray dashboard answers"),
        (200, '{"version": 3}', None, "something that is no Ray dashboard answers"),
        (401, "", None, "asks for a token, and none was found"),
        (403, "", "wrong", "does not know this token"),
        (401, "", "wrong", "does not know this token"),
        (503, "", None, "(HTTP 503)"),
    ],
)
def test_error_says_what_answered_instead(
    nothing_set: Path, monkeypatch: pytest.MonkeyPatch, status: int, body: str, token: str | None, said: str
) -> None:
    if token:
        monkeypatch.setenv("RAY_AUTH_TOKEN", token)
    with answering(status, body) as (url, tokens), pytest.raises(UsageError) as error:
        connect(url)
    assert said in error.value.message and url in error.value.message
    assert error.value.hint
    assert tokens == [None if token is None else f"Bearer {token}"]
    assert token is None or token not in str(error.value).replace("wrong token", "")


def test_a_token_goes_nowhere_else(nothing_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    with answering(200, "{}") as (elsewhere, sent), answering(302, location=elsewhere) as (url, _):
        with pytest.raises(UsageError, match=r"no Ray dashboard \(HTTP 302\)"):
            connect(url)
        assert sent == []


def test_nobody_answers(nothing_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setattr(dashboard, "_ANSWER_S", 0.3)
        with pytest.raises(UsageError, match=r"nobody answers there: .*timed out"):
            connect(url)
    with pytest.raises(UsageError, match="nobody answers there: Connection refused") as error:
        connect(url)
    assert "ssh -L 8265" in error.value.hint


def test_a_port_that_speaks_something_else(nothing_set: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def speak() -> None:
            peer, _ = server.accept()
            with peer:
                peer.recv(1000)
                peer.sendall(b"\x00\x00\x12\x04\x00\x00\x00\x00\x00")

        thread = threading.Thread(target=speak, daemon=True)
        thread.start()
        with pytest.raises(UsageError, match="does not speak HTTP") as error:
            connect(f"127.0.0.1:{server.getsockname()[1]}")
        thread.join()
    assert "6379" in error.value.hint


def test_a_job_that_did_not_even_start_says_why_in_a_few_lines() -> None:
    """As Ray tells of an environment that it could not make: what matters comes last."""
    trace = "".join(f'  File "agent.py", line {line}, in setup\n    await more()\n' for line in range(40))
    message = (
        f"Failed to set up runtime environment.\nCould not create the actor.\n{trace}    python: No module named pip\n"
    )
    job = SubmittedJob(id="raysubmit_1", state="FAILED", message=message)
    console = Console(file=io.StringIO(), width=60)
    assert tell_end(job, console) == 1
    assert isinstance(console.file, io.StringIO)
    said = console.file.getvalue()
    assert "Failed to set up" in said and "No module named pip" in said
    assert len(said.splitlines()) <= 10


COMMANDS = [
    # what, what the screen says
    ("submit --trial 3", "No such option"),
    ("submit job.toml other.toml", "unexpected extra argument"),
    ("submit missing.toml", "missing.toml: no such file"),
    ("submit --working-dir nowhere --dry-run", "--working-dir nowhere: no such folder"),
    ("submit --budget-flops 2", "budget.flops"),
    ("submit --time-limit never", "--time-limit never: not a duration"),
    ("submit --address ftp://head", "--address ftp://head: not the address"),
    ("submit --kuberay --output run", "with --kuberay the run would be on the disk of a pod"),
    ("submit --kuberay --output s3://b/r --weights net.safetensors", "the cluster gets no files of this machine"),
    ("submit --kuberay --output s3://b/r --nodes 0", "nodes"),
    ("jobs --address 127.0.0.1:1", "nobody answers there"),
    ("logs raysubmit_x --address 127.0.0.1:1", "nobody answers there"),
    ("stop raysubmit_x --address 127.0.0.1:1", "nobody answers there"),
    ("stop", "Missing argument"),
]


@pytest.mark.parametrize(("line", "said"), COMMANDS)
def test_a_wrong_request_is_one_screen(
    nothing_set: Path, monkeypatch: pytest.MonkeyPatch, line: str, said: str
) -> None:
    monkeypatch.chdir(nothing_set)
    monkeypatch.setenv("COLUMNS", "200")
    result = CliRunner().invoke(app, line.split())
    assert result.exit_code == 2, result.output
    assert said in re.sub(r"[\s│]+", " ", result.output)
    assert len(result.output.splitlines()) <= 20
    assert "Traceback" not in result.output


def test_a_dry_run_says_what_would_go_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    (folder / "job.toml").write_text("seed = 3\n")
    line = "submit --trials 5 job.toml --dry-run --output s3://bucket/run --set latency.repeats=3"
    result = CliRunner().invoke(app, line.split())
    assert result.exit_code == 0, result.output
    assert re.search(r"^# Working folder .*: 8 files, \d KiB, without \.env, \.git/", result.stdout)
    (folder / "resolved.toml").write_text(result.stdout)
    spec = load_spec(folder / "resolved.toml")
    assert (spec.seed, spec.search.trials, spec.latency.repeats, spec.output) == (3, 5, 3, "s3://bucket/run")


def test_results_are_read_on_a_laptop_without_ray(tmp_path: Path) -> None:
    """`status`, `front` and `pick` take the URI of the store, and nothing of the cluster."""
    uri = make_run(tmp_path).uri
    for command in ("status", "front", "pick --budget-flops 0.25"):
        code = (
            "import contextlib, io, sys\nfrom raprune.cli import main\n"
            f"sys.argv = ['raprune', *{command.split()!r}, {uri!r}]\n"
            "with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):\n    main()\n"
            "assert '%' in out.getvalue(), out.getvalue()"
        )
        assert loaded_by(code).isdisjoint({"ray", "torch"}), command
