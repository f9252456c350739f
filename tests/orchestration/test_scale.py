"""The benchmark of scale, with few workers and few trials."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "jobs" / "benchmarks" / "scale.py"

pytestmark = pytest.mark.nightly


def test_scale_benchmark_of_some_settings_tells_where_time_goes_and_keeps_the_table() -> None:
    table = BENCHMARK.with_suffix(".md")
    before = table.read_text() if table.exists() else None
    few = ["--without-ray", "--workers", "4", "--seconds", "2", "--trials", "12"]
    ended = subprocess.run([sys.executable, BENCHMARK, *few], capture_output=True, text=True, check=True)
    settings = re.findall(r"4 workers, 2 s, (\w+): ([\d.]+)% busy, ([\d.]+)% waits .*, ([\d.]+)% for", ended.stdout)
    assert [store for store, *_ in settings] == ["disk", "s3"] and ended.stdout.count("; 12 of 12 trials;") == 2
    for _, *shares in settings:
        assert sum(map(float, shares)) == pytest.approx(100.0, abs=0.2)
        assert float(shares[0]) > 50.0
    # A record on S3 takes several requests of 20 ms, one on the disk none.
    stored = [float(value) for value in re.findall(r"store ([\d.]+)", ended.stdout)]
    assert stored[1] > 10.0
    assert all(float(value) > 0.0 for value in re.findall(r"(?:searcher|Tune) ([\d.]+)", ended.stdout))
    assert (table.read_text() if table.exists() else None) == before
