from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

COUNT = """
import resource
{first}
import torch
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(6):
        y = torch.ones(2**20, requires_grad=True)
        for _ in range(8):
            y = y.sin()
        y.sum().backward()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""
KEEP = "from raprune.training.cpu_memory import keep_freed_memory; keep_freed_memory()"


def printed(code: str, **settings: str) -> str:
    """Return the output of a new Python process, which inherits no setting of an earlier test."""
    fresh = {name: value for name, value in os.environ.items() if name != "THP_MEM_ALLOC_ENABLE"} | settings
    ran = subprocess.run([sys.executable, "-c", code], env=fresh, capture_output=True, text=True, check=True)
    return ran.stdout


def faults(first: str) -> int:
    """Count the page faults of six steps with activations of 4 MiB, in a process that begins with `first`."""
    # Without a threshold glibc adapts its own to freed blocks, and keeps an amount of memory that varies.
    return int(printed(COUNT.format(first=first), MALLOC_MMAP_THRESHOLD_=str(2**17)))


@pytest.mark.nightly
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="nothing else is touched")
def test_freed_memory_stays_with_the_process() -> None:
    without = faults("")
    assert without > 3_000
    assert faults(KEEP) < without / 5


def test_workload_on_the_cpu_keeps_freed_memory() -> None:
    code = """
import os
from raprune.training.cpu_memory import keep_freed_memory
from raprune.spec.job import DataSpec, ModelSpec, SearchSpec
from raprune.data import load_data
from raprune.pruning.workload import build_workload
spec = SearchSpec(model=ModelSpec(name="digits-net"), data=DataSpec(name="digits"))
data = load_data(spec.data, seed=0)
build_workload(spec, data=data, device="cpu")
print(keep_freed_memory.cache_info().misses, os.environ.get("THP_MEM_ALLOC_ENABLE"))
"""
    asked, large_pages = printed(code).split()
    assert asked == "1"
    if platform.libc_ver()[0] == "glibc":
        assert large_pages == "1"
