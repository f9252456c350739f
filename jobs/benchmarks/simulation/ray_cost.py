"""Ray's part of a trial, measured on a real Ray; run as a script, it prints the measurement as JSON."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import numpy as np
import ray

from raprune.orchestration.tasks import Assignment, CandidateTask
from raprune.records import Proposal
from raprune.spec.budget import Budget

UNDER_WAY = (10, 100, 1000)
"""Numbers of tasks under way for which a wait is measured."""


@dataclass(frozen=True, kw_only=True)
class RayCost:
    """CPU seconds of the driver's thread that Ray takes."""

    send: float = 0.0
    """For a task that is sent to a worker."""
    fetch: float = 0.0
    """For an answer."""
    wait: Mapping[int, float] = field(default_factory=dict)
    """Number of tasks under way -> for one `ray.wait`."""

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Self:
        """The cost that was written as JSON, whose keys are texts."""
        waits = {int(count): seconds for count, seconds in content["wait"].items()}
        return cls(send=content["send"], fetch=content["fetch"], wait=waits)

    def wait_among(self, tasks: int) -> float:
        """For one `ray.wait` with so many tasks under way."""
        return float(np.interp(tasks, list(self.wait), list(self.wait.values()))) if self.wait else 0.0


def measured_ray() -> RayCost:
    """What Ray takes, measured by a process of its own, as Ray reads its token when it is imported."""
    tokens = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    command = [sys.executable, __file__]
    measured = subprocess.run(command, env={**os.environ, **tokens}, stdout=subprocess.PIPE, text=True, check=True)
    return RayCost.of(json.loads(measured.stdout.splitlines()[-1]))


def measure_ray() -> RayCost:
    """What Ray takes of the driver's thread: a task with an assignment, an answer, and the wait for one of many."""
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        remote: Any = ray.remote
        actor = remote(max_concurrency=2000)(Hanging).remote()
        proposal = Proposal(
            number=0,
            method="l2",
            allocation="ratios",
            target=Budget(flops=0.3),
            keep_ratios={f"layer{i}": 0.5 for i in range(37)},
        )
        config = Assignment(CandidateTask(proposal)).to_config()
        sent, fetched = [], []
        for _ in range(200):
            began = time.thread_time()
            answer = actor.echo.remote(config)
            sent.append(time.thread_time() - began)
            ray.wait([answer])
            began = time.thread_time()
            ray.get(answer)
            fetched.append(time.thread_time() - began)
        hanging = [actor.hang.remote() for _ in range(max(UNDER_WAY))]
        wait = {count: _wait_s(actor, hanging[: count - 1]) for count in UNDER_WAY}
        return RayCost(send=statistics.median(sent), fetch=statistics.median(fetched), wait=wait)
    finally:
        ray.shutdown()


def _wait_s(actor: Any, hanging: Sequence[Any]) -> float:
    taken = []
    for _ in range(50):
        answer = actor.echo.remote(None)
        ray.wait([answer])
        began = time.thread_time()
        ray.wait([answer, *hanging], num_returns=1, timeout=0.1)
        taken.append(time.thread_time() - began)
    return statistics.median(taken)


class Hanging:
    """An actor whose tasks stay under way."""

    async def hang(self) -> None:
        await asyncio.Event().wait()

    async def echo(self, value: object) -> object:
        return value


if __name__ == "__main__":
    print(json.dumps(asdict(measure_ray())))
