"""A driver with a Ray of its own is interrupted; nothing of it stays, and the run goes on to the same end.

`test_s3.py` kills such a driver while it searches, `workers/test_groups.py` while a group trains.
"""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest

from raprune.records import Trial
from raprune.store.folder import Store
from tests.orchestration.chaos import AGENTS, start, wait_until_gone
from tests.orchestration.whole_search import facts

pytestmark = [pytest.mark.ray, pytest.mark.nightly]


def wait_for_trials(store: Store, count: int, driver: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 300
    while len(store.names("trials")) < count:
        assert driver.poll() is None and time.monotonic() < until, f"{len(store.names('trials'))} of {count} trials"
        time.sleep(0.05)


def job_of(finished: Store, folder: Path, output: Path) -> str:
    """A TOML job that asks for what `finished` was asked for, by one worker."""
    spec = finished.run()["spec"]
    job = folder / "job.toml"
    job.write_text(
        f'output = "{output}"\nmethods = {json.dumps(spec["methods"])}\n'
        '[model]\nname = "digits-net"\n'
        f"[data]\nname = 'digits'\nmax_images = {spec['data']['max_images']}\n"
        f"[dense]\nepochs = {spec['dense']['epochs']}\nlr = {spec['dense']['lr']}\n"
        f"[search]\ntrials = {spec['search']['trials']}\nlookahead = {spec['search']['lookahead']}\n"
        f"calibration_images = {spec['search']['calibration_images']}\n"
        f"[finalists]\ncount = {spec['finalists']['count']}\neach_method = false\n"
        f"train = {{ epochs = {spec['finalists']['train']['epochs']}, lr = {spec['finalists']['train']['lr']} }}\n"
        f"[resources]\nworkers = 1\n"
    )
    return str(job)


def test_a_driver_that_ends_leaves_nothing_behind_and_its_run_goes_on(finished: Store, tmp_path: Path) -> None:
    """Terminated, then interrupted when it has come further: one run, to the same end."""
    store = Store(tmp_path / "run")
    mark = str(tmp_path)
    command = ["search", job_of(finished, tmp_path, tmp_path / "run")]
    recorded: dict[str, float] = {}
    for how, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        known = len(store.names("trials"))
        driver = start(mark, *command)
        # One more than before: whoever is interrupted as it starts has nothing to say yet.
        wait_for_trials(store, known + 1, driver)
        driver.send_signal(how)
        said, _ = driver.communicate(timeout=90)
        assert driver.returncode == code, said
        assert f"raprune resume {store.name}" in said and "Traceback" not in said and "***" not in said, said
        assert wait_until_gone(mark, but=AGENTS, seconds=90) == set()
        before = by_id(store)
        assert len(recorded) < len(before) < len(by_id(finished)) and set(before) <= set(by_id(finished))
        recorded |= {trial_id: trial.started_at for trial_id, trial in before.items()}
        command = ["resume", str(tmp_path / "run")]
    again = start(mark, *command)
    said, _ = again.communicate(timeout=300)
    assert again.returncode == 0, said
    trials = store.trials()
    started = {trial.trial_id: trial.started_at for trial in trials}
    assert started | recorded == started, "a finished trial was run twice"
    assert facts(trials) == facts(finished.trials())
    assert wait_until_gone(mark, but=AGENTS, seconds=60) == set()


def by_id(store: Store) -> dict[str, Trial]:
    return {trial.trial_id: trial for trial in store.trials()}
