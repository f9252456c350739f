"""A whole run on S3: its server goes away for a while, its driver is killed, it is resumed and read."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import ray
from typer.testing import CliRunner

from raprune.cli import app
from raprune.orchestration.coordinator import find_coordinator
from raprune.store.folder import Store
from raprune.store.record import RunRecord
from raprune.store.retry import Patience
from tests.factories import EMPTY_RUN, proposed_trials
from tests.orchestration.chaos import (
    AGENTS,
    Kill,
    Run,
    Victim,
    differences,
    small_job,
    wait_until,
    wait_until_gone,
)
from tests.store.s3_server import CREDENTIALS, SECRET, Bucket

pytestmark = [pytest.mark.ray, pytest.mark.nightly]


def test_a_run_on_s3_survives_its_server_and_its_driver(
    undisturbed: Store, bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    uri = bucket.uri("folder/run")
    job = small_job(tmp_path, output=uri)
    run = Run(Store(uri), job, str(tmp_path / "driver"), look_s=0.3)
    driver = run.start()
    assert wait_until(lambda: len(run.snapshot()) >= 2, seconds=run.patience_s, every=0.3), run.said()
    bucket.stop()
    assert wait_until(lambda: "does not answer" in run.said() or driver.poll() is not None, seconds=90)
    bucket.start()
    run.survive([Kill(Victim.DRIVER)])
    assert run.starts == 2
    assert wait_until_gone(run.mark, but=AGENTS, seconds=90) == set()
    assert differences(run, undisturbed) == []
    said = run.said()
    assert f"s3://{bucket.name}/folder/run does not answer" in said and "Traceback" not in said and SECRET not in said
    assert Store(bucket.uri("folder")).names("statistics"), "beside the run"
    cli = CliRunner()
    status = cli.invoke(app, ["status", uri]).output
    assert "12 of 12 searched" in status, status
    rows = json.loads(cli.invoke(app, ["front", uri, "--json"]).output)
    assert rows == run.store.read_json("report/front.json")
    picked = json.loads(cli.invoke(app, ["pick", uri, "--budget-flops", "0.3", "--json"]).output)
    assert picked["candidate"] in {row["candidate"] for row in rows}
    exported = cli.invoke(app, ["export", uri, picked["candidate"], str(tmp_path / "exported")])
    assert exported.exit_code == 0 and (tmp_path / "exported" / "weights.safetensors").stat().st_size > 0


class SlowAnswers:
    """What is asked of this port is asked of `port`; the answer is handed on after `delay_s`."""

    def __init__(self, host: str, port: int, delay_s: float) -> None:
        self._to, self._delay_s = (host, port), delay_s
        self._listener = socket.create_server((host, 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(self._to)
            for source, target, delay_s in ((client, server, 0.0), (server, client, self._delay_s)):
                threading.Thread(target=_hand_on, args=(source, target, delay_s), daemon=True).start()


def _hand_on(source: socket.socket, target: socket.socket, delay_s: float) -> None:
    try:
        while content := source.recv(2**16):
            time.sleep(delay_s)
            target.sendall(content)
    except OSError:
        pass
    finally:
        source.close()
        target.close()


def test_a_record_that_was_written_and_not_acknowledged_is_not_written_twice(ray_cluster: None, bucket: Bucket) -> None:
    """The coordinator is killed after S3 has the part and before it has S3's answer."""
    direct = Store(bucket.uri("run", user=f"key:{SECRET}@"))
    direct.create(RunRecord.model_validate(EMPTY_RUN))
    slow = SlowAnswers(bucket.host, bucket.port, delay_s=1.0)
    store = Store(bucket.uri("run", port=slow.port, user=f"key:{SECRET}@")).patient(Patience(total_s=60))
    coordinator = find_coordinator(store)
    try:
        first, second = proposed_trials(2)
        pid = pid_of(coordinator)
        record: Any = coordinator.record.remote([first])
        assert wait_until(lambda: direct.names("trials"), seconds=60, every=0.02)
        os.kill(pid, signal.SIGKILL)
        assert ray.wait([record], timeout=0)[0] == [], "killed before it could answer"
        ray.get(record)
        ray.get(coordinator.record.remote([second]))
        assert direct.trials() == [first, second]
        assert ray.get(coordinator.trials.remote()) == [first.outline, second.outline]
        assert pid_of(coordinator) != pid
    finally:
        ray.kill(coordinator)
        slow.close()


def pid_of(coordinator: Any) -> int:
    """The coordinator's process."""
    pid: int = ray.get(coordinator.__ray_call__.remote(lambda _: os.getpid()))
    return pid
