"""The time in which this process was ready to work and other work had the CPUs, as Linux counts it."""

from __future__ import annotations

from pathlib import Path

THREADS = Path("/proc/self/task")


def waited_s(threads: Path = THREADS) -> float | None:
    """Return the seconds that the threads of this process have waited for a CPU; None if the system does not say.

    The seconds of all threads that live now are added up: of two threads that wait side by side, each counts. The
    second number of `schedstat` are the nanoseconds on the run queue (Linux, Documentation/scheduler/sched-stats).
    """
    waited_ns, is_known = 0, False
    for thread in threads.glob("*"):
        try:
            waited_ns += int((thread / "schedstat").read_text().split()[1])
        except (OSError, IndexError, ValueError):
            continue  # the thread has ended, or the system does not count
        is_known = True
    return waited_ns / 1e9 if is_known else None
