"""A cluster of one node that says it has two GPUs; run as a program, it prints which process had which GPU.

A program of its own: the cluster that the tests share has none.
"""

from __future__ import annotations

import json
import os
import time

import ray

from raprune.orchestration.cluster.connect import connect
from raprune.orchestration.cluster.placement import Placement
from raprune.orchestration.remote import task_on


def seat() -> tuple[int, str | None]:
    """Id of the process, and the GPUs that it may see."""
    time.sleep(0.1)
    return os.getpid(), os.environ.get("CUDA_VISIBLE_DEVICES")


def seats(placement: Placement) -> list[tuple[int, str | None]]:
    """The seats of eight tasks, two at a time."""
    task = task_on(placement, seat)
    return [one for _ in range(4) for one in ray.get([task.remote(), task.remote()])]


if __name__ == "__main__":
    connect(None, num_cpus=2, num_gpus=2)
    on_gpu, on_cpu = Placement(2, 1.0, 1.0, "two GPUs"), Placement(2, 1.0, 0.0, "two CPUs")
    print(json.dumps({"gpu": seats(on_gpu), "cpu": seats(on_cpu)}))
    ray.shutdown()
