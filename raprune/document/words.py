"""Figures and names as a report writes them."""

from __future__ import annotations

import time

from raprune.front import Row


def few(names: list[str], most: int = 6) -> str:
    return ", ".join(names) if len(names) <= most else f"{', '.join(names[:most])} and {len(names) - most} more"


def shortened(text: str, most: int = 160) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def accuracy(share: float | None, interval: float | None = None) -> str:
    spread = "" if interval is None else f" ± {100 * interval:.2f}"
    return "-" if share is None else f"{100 * share:.2f}{spread}"


def time_share(row: Row) -> str:
    """Percent of the dense network's latency: measured whole, or, marked, as the table of layer times predicts."""
    if row["measured_fraction"] is not None:
        return percent(row["measured_fraction"])
    return "" if row["latency_fraction"] is None else f"~{percent(row['latency_fraction'])}"
