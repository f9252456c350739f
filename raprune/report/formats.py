"""Formats of figures and names, as people read them on the screen, in a report, on a page."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the command line imports this module, and starts without pydantic and numpy
    from raprune.results.rows import CandidateRow


def few(names: list[str], most: int = 6) -> str:
    return ", ".join(names) if len(names) <= most else f"{', '.join(names[:most])} and {len(names) - most} more"


def shortened(text: str, most: int = 160) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def first_lines(text: str, most: int = 8) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return "\n".join([*lines[:most], *(["..."] if len(lines) > most else [])])


def moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))


def count(number: int) -> str:
    """A number with three significant digits and its unit: 52.6 M."""
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size:
            return f"{number / size:.3g} {unit}" if number < 999.5 * size else f"{number / size:.0f} {unit}"
    return str(number)


def duration(seconds: float) -> str:
    """A measured time: 43 s, 12 min 5 s, 3 h 20 min."""
    if seconds < 1:
        return f"{max(0.0, seconds):.1f} s"
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def ago(seconds: float) -> str:
    """The time since an event, in its largest unit: just now, 5 min ago, 3 h ago, 12 days ago, 14 months ago."""
    if seconds < 60:
        return "just now"
    for size, unit in ((365.25 * 86400, "year"), (30.4 * 86400, "month"), (86400, "day"), (3600, "h"), (60, "min")):
        if seconds >= (1 if unit in ("h", "min") else 2) * size:
            number = int(seconds / size)
            return f"{number} {unit}{'s' * (number > 1 and unit not in ('h', 'min'))} ago"
    raise AssertionError(seconds)


def about(seconds: float) -> str:
    """An estimated time, rounded coarsely: 5 s, 50 s, 2 min, 1.5 h."""
    if seconds < 10:
        return f"{max(1, math.ceil(seconds))} s"
    if seconds < 90:
        return f"{5 * round(seconds / 5)} s"
    if seconds < 90 * 60:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3600:.1f} h"


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def accuracy(share: float | None, interval: float | None = None) -> str:
    spread = "" if interval is None else f" ± {100 * interval:.2f}"
    return "-" if share is None else f"{100 * share:.2f}{spread}"


def times_as_fast(speedup: float | None) -> str:
    """A speedup with two or three digits: 1.06x, 2.3x; empty if it was not measured."""
    return "" if speedup is None else f"{speedup:.2f}x" if speedup < 2 else f"{speedup:.1f}x"


def latency_share(row: CandidateRow) -> str:
    """Percent of the dense network's latency under the budget's conditions: measured, or predicted and marked by ~."""
    if row.measured_latency_fraction is not None:
        return percent(row.measured_latency_fraction)
    return "" if row.latency_fraction is None else f"~{percent(row.latency_fraction)}"


def cuts_in_words(number: int) -> str:
    """A number of cuts, such as `3 cuts`."""
    return f"{number} cut{'' if number == 1 else 's'}"


def epochs_in_words(number: float) -> str:
    """A number of epochs, such as `0.25 epochs`."""
    return f"{number:g} epoch{'' if number == 1 else 's'}"
