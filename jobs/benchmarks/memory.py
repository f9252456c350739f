"""One copy of the data set a node, and none of a streamed one: `uv run python jobs/benchmarks/memory.py`.

CIFAR-10 in the folder that RAPRUNE_DATA names, decoded: 154 MB of pixels.

*Two actors of a search on one node.* Each first takes a tenth of the data, as an actor of a search takes it, and tries
a candidate: by then everything is imported, and its buffers are as large as they get. Then it takes all of the data,
tries the candidate again and reads every training image. What that added is read from /proc/PID/smaps_rollup: memory
of its own (Private_Dirty), and memory that it shares. PSS divides a shared page among those who map it, so the sum of
the shared PSS over actors, driver and Ray's store is what the node holds altogether.

*Training batches, in memory and streamed*: how far the resident memory of a process rises over what it held before it
touched the data, loading included. Of a stream read by Ray Data a part is the store's, which the node holds once.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import re
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
import torch
from bar import show

from raprune.data import Dataset, load_data
from raprune.data.batches import DeviceSplit
from raprune.data.stream import StreamReader, ThreadReader
from raprune.data.streamed import StreamedSplit
from raprune.orchestration.cluster.connect import connect
from raprune.orchestration.cluster.placement import Placement
from raprune.orchestration.tasks import Shared
from raprune.orchestration.workers.streaming import RayReader
from raprune.orchestration.workers.trials import Equipment
from raprune.pruning.preparation import Prepared, prepare
from raprune.records import Proposal
from raprune.spec.budget import Budget
from raprune.spec.job import DataSpec, SearchSpec
from raprune.spec.toml import load_spec
from raprune.store.folder import Store

JOB = Path(__file__).parent.parent / "resnet20_cifar10.toml"
MB = 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("copies", "stream"), help="one of the two")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    connect(None, num_cpus=3)
    if arguments.only != "stream":
        with tempfile.TemporaryDirectory() as folder:
            copies(folder)
    if arguments.only != "copies":
        stream()
    ray.shutdown()


def copies(folder: str) -> None:
    place = {"output": f"{folder}/run", "statistics": folder}
    few, all_of_it = (load_spec(JOB, {"data.test": None, "data.max_images": n, **place}) for n in (5000, 50000))
    jobs = [(spec, prepare(spec)) for spec in (few, all_of_it)]
    size = sum(split.images.nbytes for split in (jobs[1][1].data.train, jobs[1][1].data.validation))
    actors: list[Any] = [ray.remote(num_cpus=1)(Actor).remote() for _ in range(2)]
    shared = [_shared(*job) for job in jobs]
    before = _take(actors, shared[0])
    after = _take(actors, shared[1])
    for number, (was, now) in enumerate(zip(before, after, strict=True), start=1):
        private = (now["Private_Dirty"] - was["Private_Dirty"]) / size
        show(f"actor {number}: memory of its own", figure=private, bar=0.1, unit="of the data", more_is_better=False)
        mapped = sum(now[kind] - was[kind] for kind in ("Shared_Clean", "Shared_Dirty", "Private_Clean"))
        print(f"actor {number}: {mapped / MB:.0f} MB more that it shares, of {size / MB:.0f} MB of data")
    held = sum(now["Pss_Shmem"] for now in after) + sum(after[0]["others"].values())
    put = sum(split.images.nbytes for _, job in jobs for split in (job.data.train, job.data.validation))
    show("copies on the node, of all that was put", figure=held / put, bar=1.1, unit="x", more_is_better=False)


class Actor:
    """A worker of a search without Tune: it holds what that holds, and does what that does."""

    def take(self, shared: Shared, proposal: Proposal) -> int:
        """Equip it anew, try a candidate, and read all training images in order and in another one."""
        equipment = Equipment.of(shared)
        equipment.pruner.prune(proposal)
        train = equipment.workload.training
        self._held = equipment
        images = sum(len(y) for _, y in train.batches(512))
        images += sum(len(y) for _, y in train.shuffled(512, torch.Generator(), "shift-flip"))
        # Else what the allocator keeps of freed buffers is counted: up to 100 MB more or less with each candidate.
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        return images

    def where(self) -> tuple[int, int]:
        """This process, and Ray's on this node, which holds the store."""
        return os.getpid(), os.getppid()


def _shared(spec: SearchSpec, prepared: Prepared) -> Shared:
    nobody: Any = None
    return Shared(
        spec=spec,
        graph=prepared.graph,
        placement=Placement(workers=2, cpus=1, gpus=0, reason=""),
        data=ray.put(prepared.data),
        weights=ray.put(prepared.weights),
        statistics=ray.put({}),
        coordinator=nobody,
        store=Store(spec.output),
        session="",
        provenance={},
    )


def _take(actors: Sequence[Any], shared: Shared) -> list[dict[str, Any]]:
    proposal = Proposal(number=0, method="l1", allocation="uniform", target=Budget(flops=0.5))
    ray.get([actor.take.remote(shared, proposal) for actor in actors])
    places = ray.get([actor.where.remote() for actor in actors])
    others = {pid: _rollup(pid)["Pss_Shmem"] for pid in (os.getpid(), places[0][1])}
    return [{**_rollup(pid), "others": others} for pid, _ in places]


def _rollup(pid: int) -> dict[str, Any]:
    """Bytes by kind."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return {name: int(kib) * 1024 for name, kib in re.findall(r"^(\w+): +(\d+) kB$", text, re.MULTILINE)}


def stream() -> None:
    data = load_spec(JOB, {"data.test": None}).data.model_copy(update={"validation_fraction": 0.02})
    streamed = data.model_copy(update={"stream": True, "resident_images": 2000})
    whole, *others = (
        ray.get(ray.remote(num_cpus=1, max_calls=1)(work).remote(spec, reader))
        for work, spec, reader in (
            (epoch, data, None),
            (epoch, streamed, ThreadReader()),
            (epoch, streamed, RayReader()),
        )
    )
    print(f"in memory: the process grew by {whole['grew'] / MB:.0f} MB, an epoch's batches in {whole['seconds']:.1f} s")
    for name, told in zip(("threads", "Ray Data"), others, strict=True):
        print(
            f"{name}: the process grew by {told['grew'] / MB:.0f} MB, of these {told['own'] / MB:.0f} MB its own, "
            f"an epoch's batches in {told['seconds']:.1f} s"
        )
        grew = told["grew"] / whole["grew"]
        show(f"streamed by {name}", figure=grew, bar=0.67, unit="of in memory", more_is_better=False)


def epoch(spec: DataSpec, reader: StreamReader | None) -> dict[str, float]:
    """How far this process grew over two epochs of batches, the loading of the data included."""
    _warm_up()
    began = _status()
    with _Peak() as peak:
        data = load_data(spec, seed=0)
        split = _split(data, reader)
        # The first epoch starts what reads.
        for _ in range(2):
            started = time.perf_counter()
            images = sum(len(y) for _, y in split.shuffled(128, torch.Generator(), "shift-flip"))
            seconds = time.perf_counter() - started
    assert images == len(split)
    return {"grew": peak.resident - sum(began), "own": peak.own - began[0], "seconds": seconds}


def _split(data: Dataset, reader: StreamReader | None) -> DeviceSplit | StreamedSplit:
    sample = DeviceSplit.place(data.train, data.mean, data.std, "cpu")
    return sample if data.stream is None or reader is None else StreamedSplit(data.stream, reader, sample)


def _warm_up() -> None:
    """What any process imports and any first batch allocates."""
    data = load_data(DataSpec(name="digits"), seed=0)
    for _ in _split(data, None).shuffled(128, torch.Generator(), "shift-flip"):
        pass


class _Peak:
    """The most memory that this process held meanwhile, looked at 50 times a second, in bytes."""

    def __enter__(self) -> _Peak:
        self.own = self.resident = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.02):
            own, shared = _status()
            self.own, self.resident = max(self.own, own), max(self.resident, own + shared)


def _status() -> tuple[int, int]:
    """Bytes of this process: its own, and of shared memory."""
    text = Path("/proc/self/status").read_text()
    found = dict(re.findall(r"^(Rss\w+):\s+(\d+) kB$", text, re.MULTILINE))
    return int(found["RssAnon"]) * 1024, int(found["RssShmem"]) * 1024


if __name__ == "__main__":
    main()
