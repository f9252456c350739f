"""A search whose networks are timed by a timing worker, which is another process on loopback."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from raprune.cli import app
from raprune.cost.timing_target import TOKEN
from raprune.cost.timing_worker import TimingWorker, serve
from raprune.errors import TargetError
from raprune.orchestration import driver
from raprune.orchestration.search import resume, search_or_resume
from raprune.results.timings import LATENCY_FILE
from raprune.spec.job import SearchSpec
from raprune.store.folder import Store
from tests.factories import small_search
from tests.orchestration.in_process import Executor
from tests.orchestration.processes import free_ports
from tests.tools import require_module

pytestmark = pytest.mark.nightly

SECRET = "a-token-of-the-tests"


@contextmanager
def timing_worker(port: int) -> Iterator[subprocess.Popen[str]]:
    """A timing worker on loopback that answers."""
    command = [sys.executable, "-m", "raprune", "latency", "--serve", "--port", str(port)]
    environment = os.environ | {TOKEN: SECRET}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            assert f"http://127.0.0.1:{port}" in process.stdout.readline()
            yield process
        finally:
            process.kill()


def job(folder: Path, port: int) -> SearchSpec:
    latency = {"runtime": "onnxruntime", "target": f"http://127.0.0.1:{port}", "repeats": 3, "widths": 2}
    return small_search(
        folder / "run",
        methods=("l2",),
        budget={"latency": 0.75},
        latency=latency | {"batch_size": 32, "report_batch": 1},
        search={"trials": 2, "lookahead": 2, "calibration_images": 64, "multiple_of": 8},
        finalists={"count": 0},
        statistics=str(folder / "known"),
    )


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch, executor: Executor) -> int:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        require_module(name)
    monkeypatch.setenv(TOKEN, SECRET)
    return free_ports(1)


def test_search_whose_timing_worker_dies_midway_is_resumed_to_its_end(
    port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, store = job(tmp_path, port), Store(tmp_path / "run")
    with pytest.raises(TargetError, match="does not answer") as caught:
        search_or_resume(spec)
    assert "repeat the command" in caught.value.hint and not store.is_run()
    with timing_worker(port) as process, monkeypatch.context() as patch:
        patch.setattr(driver, "search_candidates", _killing(process, driver.search_candidates))
        with pytest.raises(TargetError, match="does not answer"):
            search_or_resume(spec)
    assert store.record().state != "finished" and not store.exists(LATENCY_FILE)
    before = {trial.trial_id: trial.started_at for trial in store.trials()}
    with timing_worker(port):
        resume(store.uri)
    assert store.record().state == "finished"
    assert before == {trial.trial_id: trial.started_at for trial in store.trials()}, "a trial was run twice"
    timed: Mapping[str, Any] = store.read_json(LATENCY_FILE)
    assert timed["budget"]["candidates"] and "ONNX Runtime" in timed["budget"]["device"]
    found = [trial.metrics for trial in store.trials() if trial.metrics is not None]
    assert found and all(
        metrics.latency_fraction is not None and metrics.latency_fraction <= 0.75
        for metrics, trial in zip(found, store.trials(), strict=False)
        if trial.proposal.target.latency is not None
    )


def test_search_with_a_wrong_token_ends_with_one_screen(
    port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TOKEN, "another-token-of-the-tests")
    fields = [
        "model.name=digits-net",
        "data.name=digits",
        "data.max_images=200",
        f"latency.target=http://127.0.0.1:{port}",
    ]
    given = [part for field in [*fields, "latency.runtime=onnxruntime"] for part in ("--set", field)]
    output = str(tmp_path / "run")
    with serve(TimingWorker(), host="127.0.0.1", port=port, token=SECRET) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        result = CliRunner().invoke(app, ["search", "--budget-latency", "0.5", "--output", output, *given])
        server.shutdown()
        thread.join()
    said = result.output
    assert result.exit_code != 0 and "the token is wrong" in said and "Traceback" not in said
    assert len(said.splitlines()) < 25 and not Store(output).is_run()


def _killing(process: subprocess.Popen[str], work: Any) -> Any:
    """The function, behind the end of a process."""

    def killed(*given: Any, **named: Any) -> Any:
        process.kill()
        process.wait()
        return work(*given, **named)

    return killed
