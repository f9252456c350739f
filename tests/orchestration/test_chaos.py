"""Whatever is killed, and wherever the run is then: it ends as the run that nothing happened to."""

from __future__ import annotations

import contextlib
import random
import re
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from raprune.store.folder import Store
from tests.orchestration.chaos import (
    AGENTS,
    TITLES,
    Kill,
    Nodes,
    Phase,
    Run,
    Victim,
    differences,
    end,
    phase,
    processes_of,
    small_job,
    wait_until,
    wait_until_gone,
)

pytestmark = [pytest.mark.ray, pytest.mark.nightly]


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    """A head of one processor, where drivers are, and another node."""
    cluster = Nodes(str(tmp_path / "nodes"), head_cpus=1, others=[1])
    yield cluster
    cluster.shutdown()
    assert wait_until_gone(cluster.mark, but=(), seconds=30) == set()


def test_whoever_is_killed_in_whatever_phase_a_run_ends_as_if_undisturbed(
    undisturbed: Store, nodes: Nodes, tmp_path: Path
) -> None:
    """On a cluster that drivers join. The node that is lost does not come back: the run goes on with the other."""
    run = Run(
        Store(tmp_path / "run"), small_job(tmp_path, address=nodes.address), str(tmp_path / "driver"), nodes=nodes
    )
    run.survive(
        [
            Kill(Victim.TASK, Phase.DENSE),
            Kill(Victim.COORDINATOR, Phase.DENSE),
            Kill(Victim.TASK, Phase.STATISTICS),
            Kill(Victim.WORKER, Phase.SEARCH),
            Kill(Victim.COORDINATOR, Phase.SEARCH),
            Kill(Victim.NODE, Phase.SEARCH),
            Kill(Victim.DRIVER, Phase.SEARCH),
            Kill(Victim.WORKER, Phase.FINETUNE),
            Kill(Victim.COORDINATOR, Phase.FINETUNE),
            Kill(Victim.DRIVER, Phase.TEST),
        ]
    )
    hit = " ".join(run.kills)
    assert len(run.kills) >= 6 and all(victim in hit for victim in ("worker", "coordinator", "driver", "node")), hit
    assert differences(run, undisturbed) == []
    assert "Traceback" not in run.said()
    assert wait_until(lambda: not ours(nodes.mark), seconds=30), ours(nodes.mark)
    assert processes_of(run.mark) == {}


def test_random_kills_in_a_row_are_survived(undisturbed: Store, nodes: Nodes, tmp_path: Path) -> None:
    """A few of the kills that jobs/benchmarks/chaos.py does for longer."""
    job = small_job(tmp_path, address=nodes.address)
    run = Run(Store(tmp_path / "run"), job, str(tmp_path / "driver"), nodes=nodes)
    run.survive_any(2, random.Random(0), victims=list(Victim), longest_s=6.0)
    assert run.kills and differences(run, undisturbed) == [], run.kills


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own, of 400 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("this user may not mount a disk")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_disk_that_goes_away_and_comes_back_is_waited_for_and_a_full_one_ends_the_run_until_there_is_room(
    undisturbed: Store, disk: Path, tmp_path: Path
) -> None:
    """While it is away the coordinator and a worker are killed as well: what they had finished is not lost."""
    folder, away = disk / "mounted", disk / "unmounted"
    folder.mkdir()
    run = Run(Store(folder / "run"), small_job(folder), str(tmp_path / "driver"))
    driver = run.start()
    assert wait_until(lambda: run.phase() is Phase.SEARCH and run.pids(Victim.WORKER), seconds=run.patience_s)
    before = run.snapshot()
    folder.rename(away)
    back = threading.Timer(12.0, lambda: away.rename(folder))
    back.start()
    assert wait_until(lambda: "does not answer" in run.said() or driver.poll() is not None, seconds=60)
    for victim in (Victim.COORDINATOR, Victim.WORKER):
        for pid in run.pids(victim)[:1]:
            end(pid)
    back.join()
    assert wait_until(lambda: len(run.snapshot()) >= len(before) + 2, seconds=run.patience_s), run.said()
    said = run.said()
    assert "the folder is gone" in said and "The store answers again." in said and run.starts == 1

    with (disk / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
        while True:
            filler.write(bytes(2**20))
    assert driver.wait(timeout=120) == 1
    said, full = run.said(), run.snapshot()
    assert "There is no room left" in said and "raprune resume" in said and "Traceback" not in said
    assert phase(run.store) in (Phase.SEARCH, Phase.FINETUNE)
    assert wait_until_gone(run.mark, but=AGENTS, seconds=60) == set()
    assert not [path.name for path in Path(run.store.uri).iterdir() if path.suffix == ".tmp"]
    (disk / "filler").unlink()
    assert run.start().wait(timeout=run.patience_s) == 0, run.said()
    run.recorded |= dict(before) | dict(full)
    assert differences(run, undisturbed) == []


def ours(mark: str) -> dict[int, str]:
    """What runs of ours on a cluster: actors, tasks, and the coordinator."""
    names = "|".join([*TITLES.values(), "Bulletin", "TrainController"])
    return {pid: title for pid, title in processes_of(mark).items() if re.search(names, title)}
