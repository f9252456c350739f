"""Tasks on the resources of a placement."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from raprune import orchestration
from raprune.orchestration.cluster.placement import Placement
from raprune.orchestration.remote import task_on

SOURCES = sorted(Path(orchestration.__path__[0]).rglob("*.py"))


def work() -> None:
    """Nothing."""


@pytest.mark.parametrize(("gpus", "max_calls"), [(0.0, 0), (0.25, 1), (1.0, 1)])
def test_task_on_gpus_ends_its_process_after_one_call(gpus: float, max_calls: int) -> None:
    task = task_on(Placement(2, 1.0, gpus, ""), work)
    assert (task._num_cpus, task._num_gpus, task._max_calls, task._max_retries) == (1.0, gpus, max_calls, 2)


def test_task_on_gpus_is_retried_after_an_error_of_its_gpu() -> None:
    on_gpu, on_cpu = (task_on(Placement(2, 1.0, gpus, ""), work, max_retries=3) for gpus in (1.0, 0.0))
    assert on_gpu._retry_exceptions == [torch.AcceleratorError] and on_gpu._max_retries == 3
    assert not on_cpu._retry_exceptions


def test_task_runs_on_any_node_but_those_that_are_left_out() -> None:
    placement = Placement(2, 1.0, 0.0, "")
    assert task_on(placement, work, left_out={"b", "a"})._label_selector == {"ray.io/node-id": "!in(a,b)"}
    assert not task_on(placement, work)._label_selector


def test_gpus_of_tasks_are_never_passed_to_options() -> None:
    """Ray ends the process of a GPU task only if it is told of the GPU by `ray.remote`."""
    guilty = [
        f"{path.name}:{node.lineno}"
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "options"
        if any(keyword.arg in (None, "num_gpus") for keyword in node.keywords)
    ]
    assert guilty == []


@pytest.mark.ray
@pytest.mark.nightly
def test_task_on_gpus_gets_a_new_process_each_time_and_one_gpu() -> None:
    program = [sys.executable, "-m", "tests.orchestration.pretended_gpus"]
    ran = subprocess.run(program, capture_output=True, text=True, check=True)
    seats = json.loads(ran.stdout.strip().splitlines()[-1])
    on_gpu = dict(map(tuple, seats["gpu"]))
    assert len(on_gpu) == len(seats["gpu"]) == 8, "a process for each task"
    assert set(on_gpu.values()) == {"0", "1"}
    assert len({process for process, _ in seats["cpu"]}) < 8, "processes without a GPU are used again"
