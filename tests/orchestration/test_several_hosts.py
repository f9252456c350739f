"""Searches on several hosts whose network is bad: each ends as the search that nothing happened to."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer
from rich.console import Console

from raprune.orchestration.search import search
from raprune.spec.toml import load_spec
from raprune.store.folder import Store
from tests.orchestration.chaos import Phase, Run, Victim, differences, small_job, wait_until
from tests.orchestration.hosts import HEAD, Cluster
from tests.orchestration.in_process import in_process
from tests.orchestration.network import Network, inside, require_network
from tests.store.s3_server import CREDENTIALS, Bucket

pytestmark = [pytest.mark.ray, pytest.mark.nightly]

NODES = ("one", "two", "three")
S3, S3_PORT = "s3", 5000
TRIALS = 12


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A head and three nodes, each a host of its own, and a host for S3."""
    require_network()
    network = Network(tmp_path_factory.mktemp("hosts"))
    cluster = Cluster(network, NODES, CREDENTIALS)
    try:
        for name in (HEAD, *NODES, S3):
            network.add(name)
        network.switch.start()
        yield cluster
    finally:
        try:
            cluster.stop()
        finally:
            network.close()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The same search in this process: nothing happens to it."""
    spec = load_spec(Path(job(tmp_path_factory.mktemp("alone"))))
    with in_process():
        return Store(search(spec, console=Console(file=io.StringIO())))


def job(folder: Path, *, output: str | None = None, address: str | None = None) -> str:
    """A search by three workers that trains some candidates on the way, and two finalists."""
    [path] = small_job(folder, output=output, address=address, trials=TRIALS, workers=len(NODES))
    with open(path, "a") as file:
        file.write("[page]\nserve = false\n[latency]\nrepeats = 2\n")
    return path


@contextmanager
def under_way(cluster: Cluster, folder: Path, store: Store, *, output: str | None = None) -> Iterator[Run]:
    """A search of a driver on the head; the driver is ended with the block."""
    cluster.start()
    run = Run(
        store,
        [job(folder, output=output, address=cluster.address)],
        str(folder / "driver"),
        environment=cluster.environment,
        on_host=lambda command: cluster.network.command(HEAD, command),
    )
    driver = run.start()
    try:
        yield run
    finally:
        driver.kill()
        driver.wait(timeout=30)


def await_first_trial(run: Run) -> None:
    """Wait until the search has begun: its first candidates that are trained take seconds, as all workers import."""
    assert wait_until(run.snapshot, seconds=run.patience_s, every=0.05), run.said()
    assert run.phase() is Phase.SEARCH


def test_search_over_bad_cables_whose_store_is_out_of_reach_of_one_node_ends_as_undisturbed(
    cluster: Cluster, alone: Store, bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """20 ms each way and one frame in a hundred lost; S3 out of one node's reach; the head's own link down for 8 s."""
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    network, pair = cluster.network, frozenset(("one", S3))
    here = network.addresses[S3]
    server = ThreadedMotoServer(ip_address=here, port=S3_PORT, verbose=False)
    # Servers of one process hold the same buckets: this process looks at the run by its own.
    inside(network.namespace(S3), server.start)
    output = bucket.uri("folder/run", host=here, port=S3_PORT)
    try:
        with under_way(cluster, tmp_path, Store(bucket.uri("folder/run")), output=output) as run:
            network.worsen(delay_s=0.02, loss=0.01)
            await_first_trial(run)
            assert cluster.hosts_of(Victim.COORDINATOR) == {HEAD}
            network.switch.parted.add(pair)
            time.sleep(10.0)
            assert run.phase() is Phase.SEARCH, "it waits for the node, whose worker stores what it has trained"
            network.switch.parted.discard(pair)
            assert wait_until(lambda: run.phase() is Phase.FINETUNE, seconds=run.patience_s, every=0.02), run.said()
            network.link(HEAD, up=False)
            recorded = run.snapshot()
            assert not wait_until(lambda: run.snapshot() != recorded, seconds=8.0), "only the head records"
            network.link(HEAD, up=True)
            run.finish()
    finally:
        network.link(HEAD, up=True)
        network.worsen(delay_s=0.0, loss=0.0)
        network.switch.parted.discard(pair)
        server.stop()
    assert network.switch.num_lost > 0
    assert differences(run, alone) == []
    assert "Traceback" not in run.said()


def test_search_whose_nodes_are_cut_off_ends_as_undisturbed(cluster: Cluster, alone: Store, tmp_path: Path) -> None:
    """One node for 10 s, for which Ray waits; another one until Ray takes it for lost, and to the end of the search.

    Ray's defaults lose a node after a minute or more. With the settings of `DETECTION` half a minute stands for the
    five minutes that a switch takes to come up again.
    """
    network = cluster.network
    with under_way(cluster, tmp_path, Store(tmp_path / "run")) as run:
        await_first_trial(run)
        # Else a node that was cut off could go on recording.
        assert cluster.hosts_of(Victim.COORDINATOR) == {HEAD}
        assert cluster.hosts_of(Victim.WORKER) == set(NODES)
        try:
            network.cut("one", is_cut=True)
            network.cut("two", is_cut=True)
            time.sleep(10.0)
            assert run.phase() is Phase.SEARCH, "it waits for the two"
            network.cut("one", is_cut=False)
            run.recorded |= dict(run.snapshot())
            run.finish()
            assert cluster.runs("one") and cluster.runs("two")
        finally:
            network.cut("one", is_cut=False)
            network.cut("two", is_cut=False)
        cluster.await_end("two")
    assert differences(run, alone) == []
    assert "Traceback" not in run.said()
