"""The dense network's training by one worker: killed in the middle, it resumes from its checkpoint."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from raprune.errors import ModelError
from raprune.orchestration.search import resume, search
from raprune.pruning.preparation import DENSE, prepare
from raprune.store import learning_curves
from raprune.store.folder import Store
from raprune.store.learning_curves import read_curve
from raprune.training import loop
from raprune.training.state import epochs_in
from tests.orchestration.chaos import AGENTS, processes_of, small_job, start, wait_until_gone
from tests.orchestration.dense_training import carried_out, spec_of
from tests.orchestration.in_process import in_process

FILE = "checkpoints/dense.safetensors"


def timeless(epochs: Any) -> list[tuple[Any, ...]]:
    return [(epoch.number, epoch.loss, epoch.accuracy, epoch.lr) for epoch in epochs]


def wait_for(store: Store, *, epochs: int, seconds: float = 120.0) -> None:
    """Wait until the checkpoint has so many epochs: a thread writes it."""
    until = time.monotonic() + seconds
    while not (store.exists(FILE) and len(epochs_in(store.read_bytes(FILE))) >= epochs):
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of the epochs that were trained; the training ends with an error as the third one would begin."""
    trained: list[int] = []
    seed_of = loop._epoch_seed

    def begin(seed: int, rank: int, epoch: int) -> int:
        if epoch == 2 and trained == [0, 1]:
            trained.append(-1)
            raise ModelError("the process is gone")
        trained.append(epoch)
        return seed_of(seed, rank, epoch)

    monkeypatch.setattr(loop, "_epoch_seed", begin)
    return trained


def test_training_that_ended_in_the_middle_resumes_from_its_checkpoint(tmp_path: Path, stopped: list[int]) -> None:
    prepared = prepare(spec_of(tmp_path))
    store = Store(tmp_path / "run")
    with pytest.raises(ModelError, match="gone"):
        carried_out(prepared, store)
    wait_for(store, epochs=2)
    epochs, dense = carried_out(prepared, store)
    # The pace is measured by a training too.
    assert stopped[:5] == [0, 1, -1, 2, 3], "the first two epochs are not trained again"
    assert [epoch.number for epoch in epochs] == [1, 2, 3, 4], "a task that is tried again gives its items again"
    whole, undisturbed = carried_out(prepared, Store(tmp_path / "other"))
    assert timeless(dense.history) == timeless(undisturbed.history) == timeless(whole) == timeless(epochs)
    for name, weight in undisturbed.weights.items():
        assert np.array_equal(weight, dense.weights[name]), name


def test_search_by_one_worker_keeps_a_checkpoint_until_the_weights_are_stored(
    tmp_path: Path, stopped: list[int]
) -> None:
    spec = spec_of(tmp_path)
    store, quiet = Store(spec.output), Console(quiet=True)
    with in_process():
        with pytest.raises(ModelError, match="gone"):
            search(spec, console=quiet)
        wait_for(store, epochs=2)
        assert not store.exists(DENSE)
        resume(spec.output, console=quiet)
    # Others train as well once the dense network is there.
    assert stopped[:5] == [0, 1, -1, 2, 3]
    assert store.record().state == "finished" and not store.exists(FILE)
    assert [row["epoch"] for row in read_curve(store, learning_curves.DENSE)] == [1, 2, 3, 4]


def test_checkpoint_of_another_training_is_not_resumed(tmp_path: Path) -> None:
    store = Store(tmp_path / "run")
    carried_out(prepare(spec_of(tmp_path, epochs=2)), store)
    assert store.exists(FILE), "the driver removes it"
    with pytest.warns(UserWarning, match="its checkpoint belongs to another training"):
        epochs, _ = carried_out(prepare(spec_of(tmp_path, epochs=3)), store)
    assert [epoch.number for epoch in epochs] == [1, 2, 3]


KILLED = """
import sys
from pathlib import Path
from raprune.pruning.preparation import prepare
from raprune.store.folder import Store
from tests.orchestration.dense_training import carried_out, spec_of
carried_out(prepare(spec_of(Path(sys.argv[1]), epochs=400)), Store(Path(sys.argv[1]) / "run"))
"""


@pytest.mark.nightly
def test_killed_process_loses_the_epochs_after_its_checkpoint_alone(tmp_path: Path) -> None:
    store = Store(tmp_path / "run")
    with subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)]) as process:
        wait_for(store, epochs=3)
        os.kill(process.pid, signal.SIGKILL)
    known = epochs_in(store.read_bytes(FILE))
    assert 3 <= len(known) < 400
    prepared = prepare(spec_of(tmp_path, epochs=400))
    epochs, dense = carried_out(prepared, store)
    assert len(epochs) == 400 and epochs[: len(known)] == known, "their seconds are those of the killed process"
    assert [epoch.number for epoch in dense.history] == list(range(1, 401))


@pytest.mark.ray
@pytest.mark.nightly
@pytest.mark.parametrize("victim", ["driver", "worker"])
def test_run_that_loses_a_process_while_the_dense_network_trains_goes_on_from_its_checkpoint(
    victim: str, tmp_path: Path
) -> None:
    """On a Ray of its own, by one worker. `raprune resume` or Ray's next try trains the epochs that are missing."""
    (job,) = small_job(tmp_path, trials=4, workers=1)
    text = Path(job).read_text()
    assert "[dense]\nepochs = 2\n" in text
    Path(job).write_text(text.replace("[dense]\nepochs = 2\n", "[dense]\nepochs = 300\n"))
    store, mark = Store(tmp_path / "run"), str(tmp_path)
    driver = start(mark, "search", job)
    wait_for(store, epochs=3, seconds=300.0)
    if victim == "driver":
        os.killpg(driver.pid, signal.SIGKILL)
        driver.communicate(timeout=60)
        assert wait_until_gone(mark, but=AGENTS, seconds=90) == set()
    else:
        (worker,) = (pid for pid, title in processes_of(mark).items() if title.startswith("ray::prepare_dense"))
        os.kill(worker, signal.SIGKILL)
    known = [epoch.row() for epoch in epochs_in(store.read_bytes(FILE))]
    assert 3 <= len(known) < 300 and not store.exists(DENSE)
    if victim == "driver":
        driver = start(mark, "resume", store.uri)
    said, _ = driver.communicate(timeout=600)
    assert driver.returncode == 0, said
    curve = read_curve(store, learning_curves.DENSE)
    assert len(curve) == 300 and curve[: len(known)] == known and not store.exists(FILE)
    assert wait_until_gone(mark, but=AGENTS, seconds=60) == set()
