"""Records of a search at scale: written by the coordinator's writer, compacted, read back, held in memory.

    uv run --group dev python jobs/benchmarks/records.py [SECTION ...] [--folder FOLDER]

Trials are as large as those of a ResNet-50: 37 groups with 7,552 channels, about half of which stay. Sections:

    disk    records a second in FOLDER, sent by 64 senders at once: 32 workers, each two records ahead
    s3      the same to a bucket of moto, in a process of its own, which answers each request after 20 ms
    read    a run of 100,000 trials in parts of 50, compacted as it grows: seconds to read it in a new process
    memory  memory of a new coordinator's writer on the first 20,000 of those trials and on all of them

Without sections all of them run, and the table `records.md` beside this file is written; a run of some sections only
prints.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from bar import commit, show
from long_run import groups

from raprune.orchestration.recorder import Recorder
from raprune.records import Candidate, KeptChannels, Metrics, Proposal, Trial, TrialState
from raprune.spec.budget import Budget
from raprune.store.folder import Store
from raprune.store.record import RunRecord

TABLE = Path(__file__).with_name("records.md")
SENDERS = 64
WRITTEN = {"disk": 4000, "s3": 2000}
"""Trials that are recorded for the figure of a section."""
REQUEST_S = 0.02
LARGE, SMALL = 100_000, 20_000
PART = 50

_SERVER = f"""
import sys, time
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

moto = DomainDispatcherApplication(create_backend_app)


class Quiet(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log(self, *args):
        pass


def slow(environ, start_response):
    time.sleep({REQUEST_S})
    return moto(environ, start_response)


server = make_server("127.0.0.1", 0, slow, threaded=True, request_handler=Quiet)
print(server.server_port, flush=True)
server.serve_forever()
"""

_READ = """
import json, sys, time
from raprune.store.folder import Store

began = time.perf_counter()
trials = Store(sys.argv[1]).trials(channels=sys.argv[2] == "channels")
print(json.dumps({"seconds": time.perf_counter() - began, "trials": len(trials)}))
"""

_HOLD = """
import json, re, sys
from raprune.orchestration.recorder import Recorder
from raprune.store.folder import Store

recorder = Recorder(Store(sys.argv[1]))
status = open("/proc/self/status").read()
held, peak = (int(re.search(rf"{name}:\\s+(\\d+) kB", status)[1]) / 1024 for name in ("VmRSS", "VmHWM"))
print(json.dumps({"trials": len(recorder.trials), "held": held, "peak": peak}))
"""


@dataclass(frozen=True)
class Figure:
    """One line of the table."""

    name: str
    value: float
    unit: str
    bar: float
    more_is_better: bool = False

    def show(self) -> Figure:
        """Print the line."""
        show(self.name, figure=self.value, bar=self.bar, unit=self.unit, more_is_better=self.more_is_better)
        return self


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", choices=["disk", "s3", "read", "memory", []], help="default: all")
    parser.add_argument("--folder", type=Path, help="on the disk that is measured; it stays (default: a temporary one)")
    arguments = parser.parse_args()
    wanted = arguments.sections or ["disk", "s3", "read", "memory"]
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        large = arguments.folder or Path(folder)
        sections: dict[str, Callable[[], list[Figure]]] = {
            "disk": lambda: [to_disk(Path(folder))],
            "s3": lambda: [to_s3()],
            "read": lambda: reading(large),
            "memory": lambda: holding(large),
        }
        for section in wanted:
            figures += [figure.show() for figure in sections[section]()]
    if not arguments.sections:
        TABLE.write_text(table(figures))
        print(f"wrote {TABLE.name}")


def to_disk(folder: Path) -> Figure:
    """Records a second on a disk."""
    speed = records_per_second(Store(folder / "written"), WRITTEN["disk"])
    return Figure("records on a local disk", speed, "records/s", 500, more_is_better=True)


def to_s3() -> Figure:
    """Records a second on S3."""
    with slow_bucket() as uri:
        speed = records_per_second(Store(uri), WRITTEN["s3"])
    return Figure(f"records on S3, {REQUEST_S * 1000:.0f} ms a request", speed, "records/s", 200, more_is_better=True)


def reading(folder: Path) -> list[Figure]:
    """Seconds to read a run of `LARGE` trials."""
    run = run_of(folder, LARGE)
    figures = []
    for what, name in (("outlines", "without channels"), ("channels", "with channels")):
        found = in_new_process(_READ, run.uri, what)
        assert found["trials"] == LARGE
        figures.append(Figure(f"reading {LARGE:,} trials {name}", found["seconds"], "s", 10))
    return figures


def holding(folder: Path) -> list[Figure]:
    """Memory of the writer: what each trial takes, and all of it."""
    small, large = (in_new_process(_HOLD, run_of(folder, count).uri) for count in (SMALL, LARGE))
    each = (large["held"] - small["held"]) * 1024 / (LARGE - SMALL)
    figures = [
        Figure(f"memory of the coordinator, {found['trials']:,.0f} trials{when}", found[key], "MiB", 1024)
        for found in (small, large)
        for key, when in (("held", ""), ("peak", ", peak while it reads"))
    ]
    return [*figures, Figure("memory of a trial", each, "KiB", 8)]


def records_per_second(store: Store, count: int) -> float:
    """Speed at which `SENDERS` threads record as many trials, each one as it came from another process."""
    store.create(RunRecord())
    recorder = Recorder(store)
    sent = [pickle.dumps(trial) for trial in trials(SENDERS + count)]
    with ThreadPoolExecutor(SENDERS) as senders:

        def record(some: list[bytes]) -> None:
            list(senders.map(lambda trial: recorder.record([pickle.loads(trial)]), some))

        # What is imported and connected with the first record is not timed.
        record(sent[:SENDERS])
        began = time.perf_counter()
        record(sent[SENDERS:])
        seconds = time.perf_counter() - began
    assert len(Store(store.uri).trials(channels=False)) == SENDERS + count
    return count / seconds


def run_of(folder: Path, count: int) -> Store:
    """A run of so many trials, written once."""
    store = Store(folder / f"run-{count}")
    if not store.is_run():
        store.make()
        made, batch = trials(count), []
        for trial in made:
            batch.append(trial)
            if len(batch) == PART:
                store.append(batch)
                batch = []
                if store.small_parts > 256:
                    store.compact()
        store.create(RunRecord())
    return store


def trials(count: int) -> Iterator[Trial]:
    """So many trials as large as those of a ResNet-50."""
    draw = random.Random(0)
    channels = groups()
    for number in range(count):
        ratios = {group: draw.uniform(0.3, 0.7) for group in channels}
        # One bit a channel, as `KeptChannels` packs them, of which half are set.
        bits = b"".join(
            (n // 8).to_bytes(2, "little") + draw.getrandbits(n).to_bytes(n // 8, "little") for n in channels.values()
        )
        kept = KeptChannels(tuple(channels), bits)
        proposal = Proposal(
            number=number,
            method="reconstruction",
            allocation="ratios",
            target=Budget(flops=draw.uniform(0.2, 0.5)),
            settings={"ridge": draw.random()},
            keep_ratios=ratios,
            seed=draw.randrange(2**31),
        )
        flops = draw.uniform(0.2, 0.5)
        yield Trial(
            trial_id=proposal.trial_id,
            proposal=proposal,
            state=TrialState.COMPLETE,
            candidate=Candidate.recorded("reconstruction", kept, proposal.settings, candidate_id=f"{number:012x}"),
            metrics=Metrics(
                accuracy=draw.random(),
                loss=draw.random(),
                flops=round(8e9 * flops),
                params=round(2.5e7 * flops),
                flops_fraction=flops,
                params_fraction=flops,
            ),
            accuracy_after_cut=draw.random(),
            accuracy_after_repair=draw.random(),
            seconds=draw.uniform(5, 20),
            gpu_seconds=draw.uniform(5, 20),
            started_at=1.8e9 + number,
            worker=f"10.0.3.{number % 64}:{1000 + number % 64}",
        )


@contextmanager
def slow_bucket() -> Iterator[str]:
    """The URI of a folder on an S3 server that answers each request after `REQUEST_S`."""
    import urllib.request

    with subprocess.Popen([sys.executable, "-c", _SERVER], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            place = f"127.0.0.1:{int(server.stdout.readline())}"
            urllib.request.urlopen(urllib.request.Request(f"http://{place}/runs", method="PUT")).close()
            yield f"s3://key:secret@runs/run?scheme=http&endpoint_override={place}&region=us-east-1"
        finally:
            server.kill()


def in_new_process(program: str, *arguments: str) -> dict[str, float]:
    """The figures that a program prints."""
    done = subprocess.run([sys.executable, "-c", program, *arguments], check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def table(figures: list[Figure]) -> str:
    """The Markdown file."""
    from raprune.orchestration.cluster.connect import machine

    lines = [
        "# Records of a search at scale",
        "",
        f"Made by `jobs/benchmarks/records.py`, whose docstring says what is measured. Commit "
        f"{commit()}, {date.today()}, {machine()}, load {os.getloadavg()[0]:.1f}.",
        "",
        "| what | figure | bar |",
        "| --- | --- | --- |",
    ]
    for one in figures:
        relation = "at least" if one.more_is_better else "at most"
        lines.append(f"| {one.name} | {one.value:,.1f} {one.unit} | {relation} {one.bar:,.0f} {one.unit} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
