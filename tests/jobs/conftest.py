"""Makes the programs of `jobs/device` importable, as they are where they are run."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "jobs" / "device"))
