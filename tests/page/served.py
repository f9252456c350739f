"""A run's page on a port of this machine, and runs to show."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import uvicorn

from raprune.page.access import Access
from raprune.page.app import make_app
from raprune.page.feed import Feed
from raprune.page.serve import config_of, listen
from raprune.records import Candidate, Metrics, Proposal, Stage, Trial, TrialState
from raprune.store.folder import Store

WIDTHS = {"conv1": 16, "conv2": 32, "conv<b>3": 64}
RUN: dict[str, Any] = {
    "spec": {
        "model": {"name": "digits-net"},
        "data": {"name": "digits", "train": "s3://key:hush-hush@bucket/train?secret_key=hush-hush&region=x"},
        "budget_flops": 0.3,
        "methods": ["l2", "l1"],
        "search": {"trials": 10},
        "finalists": {"count": 2, "seeds": 2},
    },
    "state": "searching",
    "created_at": 1_800_000_000.0,
    "started_at": 1_800_000_000.0,
    "dense": {"val_accuracy": 0.98, "val_images": 288, "flops": 1_000_000, "params": 50_000},
    "graph": {"groups": WIDTHS, "frozen": [["head", 10, "the network's output"]], "notes": []},
}


def trial(number: int, *, fraction: float = 0.2, accuracy: float = 0.9, **fields: Any) -> Trial:
    """A complete trial; `fields` are those of its proposal."""
    proposal = Proposal(
        number=number, method=["l2", "l1"][number % 2], allocation="uniform", target_flops=fraction, **fields
    )
    kept = {group: tuple(range(1 + (number + width) % width)) for group, width in WIDTHS.items()}
    metrics = Metrics(
        accuracy=accuracy,
        loss=1 - accuracy,
        flops=round(1e6 * fraction),
        params=round(5e4 * fraction),
        flops_fraction=fraction,
        params_fraction=fraction,
    )
    return Trial(
        trial_id=proposal.trial_id,
        proposal=proposal,
        state=TrialState.COMPLETE,
        candidate=Candidate(proposal.method, kept, proposal.settings),
        metrics=metrics,
        accuracy_after_repair=accuracy,
        epochs=4.0 if proposal.stage is Stage.FINETUNE else 0.0,
        seconds=2.0,
        gpu_seconds=1.0,
        started_at=1_800_000_010.0 + 3 * number,
        worker="node:1",
    )


def failed(number: int, error: str) -> Trial:
    proposal = Proposal(number=number, method="l2", allocation="uniform", target_flops=0.2)
    return Trial(trial_id=proposal.trial_id, proposal=proposal, state=TrialState.FAILED, error=error, seconds=1.0)


def finetuned(parent: Trial, number: int, *, accuracy: float, repeat: int = 0) -> Trial:
    """A finalist that continues `parent`."""
    proposal = replace(parent.proposal, number=number, stage=Stage.FINETUNE, parent=parent.trial_id, repeat=repeat)
    assert parent.metrics is not None
    metrics = replace(parent.metrics, accuracy=accuracy)
    return replace(parent, trial_id=proposal.trial_id, proposal=proposal, metrics=metrics, epochs=4.0)


def make_run(folder: Path | str, *, trials: int = 6) -> Store:
    """A run under way: search trials of which one failed, and the best fine-tuned twice, with its networks."""
    store = Store(folder)
    store.create(RUN)
    searched = [trial(n, fraction=0.05 * (n + 1), accuracy=0.8 + 0.02 * n) for n in range(trials - 1)]
    for one in searched:
        store.append([one])
    store.append([failed(trials - 1, "RuntimeError: s3://key:hush-hush@bucket is <b>away</b>")])
    best = searched[min(4, trials - 2)]
    for repeat in range(2):
        tuned = finetuned(best, 0, accuracy=0.95 + 0.01 * repeat, repeat=repeat)
        store.write_bytes(f"models/{tuned.network}/weights.safetensors", bytes([repeat]) * 3_000_000)
        recipe = {"format": 1, "trial_id": tuned.trial_id, "repeat": repeat}
        store.write_json(f"models/{tuned.network}/recipe.json", recipe)
        store.write_json(f"curves/{tuned.trial_id}.json", [{"epoch": 1, "train_loss": 0.5}])
        store.append([tuned])
    return store


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Served:
    """A page that is served; ask it."""

    def __init__(self, host: str, port: int, feed: Feed) -> None:
        self.host, self.port, self.feed = host, port, feed

    def get(self, path: str, method: str = "GET", **headers: str) -> Answer:
        """The answer to a request for `path`, as it is given, without following redirects."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=20)
        try:
            connection.request(method, path, headers={name.replace("_", "-"): v for name, v in headers.items()})
            answer = connection.getresponse()
            return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def raw(self, request: bytes, *, patience_s: float = 20.0) -> bytes:
        """All that comes back for bytes that need not be HTTP, until the server ends it or is silent for so long."""
        parts: list[bytes] = []
        with socket.create_connection((self.host, self.port), timeout=patience_s) as connection:
            try:
                connection.sendall(request)
                while part := connection.recv(2**16):
                    parts.append(part)
            except (TimeoutError, ConnectionError):
                pass
        return b"".join(parts)


@contextmanager
def served(store: Store, rule: Access | None = None, **how: Any) -> Iterator[Served]:
    """The page of the run in `store`, by the server that `raprune serve` uses."""
    feed = Feed(store, every_s=how.pop("every_s", 0.05), **how)
    closing = threading.Event()
    app = make_app(feed, rule or Access(), name="the run", is_closing=closing.is_set)
    with listen("127.0.0.1", 0) as listener:
        server = uvicorn.Server(config_of(app))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield Served("127.0.0.1", listener.getsockname()[1], feed)
        finally:
            closing.set()
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()


def wait_until(holds: Callable[[], Any], seconds: float = 20.0) -> bool:
    """Whether it holds before the time is over."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if holds():
            return True
        time.sleep(0.05)
    return False
