"""Makes the programs of `jobs/device` and `jobs/benchmarks` importable, as they are where they are run."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "jobs" / "device"))
# Behind all others: names such as `records` are common.
sys.path.append(str(Path(__file__).parents[2] / "jobs" / "benchmarks"))
