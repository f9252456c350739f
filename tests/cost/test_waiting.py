"""The time in which this process waited for a CPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from raprune.cost.waiting import THREADS, waited_s

SHARED_CPU = """
import os, subprocess, sys, time
from raprune.cost.waiting import waited_s
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
time.sleep(0.3)
began, before = time.monotonic(), waited_s()
while time.monotonic() - began < 1.0: pass
print(waited_s() - before)
other.kill()
"""


@pytest.mark.skipif(not THREADS.exists(), reason="only Linux counts it")
def test_process_that_shares_a_cpu_waits_for_about_half_of_the_time() -> None:
    answer = subprocess.run([sys.executable, "-c", SHARED_CPU], capture_output=True, text=True, check=True, timeout=60)
    # Other processes of the machine can only add to it.
    assert float(answer.stdout) > 0.3


def test_times_of_all_threads_are_added_and_those_that_have_ended_are_left_out(tmp_path: Path) -> None:
    assert waited_s(tmp_path) is None
    for thread, content in (("7", "100 2000000000 3\n"), ("8", "5 500000000 1\n"), ("9", "")):
        (tmp_path / thread).mkdir()
        (tmp_path / thread / "schedstat").write_text(content)
    (tmp_path / "10").mkdir()
    assert waited_s(tmp_path) == 2.5
