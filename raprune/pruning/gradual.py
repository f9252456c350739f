"""The way from a dense network to a candidate in several cuts, with training in between.

Han et al. (2015), "Learning both Weights and Connections", prune and train by turns. Here each cut takes the same
fraction of a group's channels that are left. The channels of the last cut are those of the candidate, so that its cost
and its name stay; scores are those of the dense network.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from raprune.channels.graph import ChannelGraph
from raprune.methods import Kept, Scores


def kept_in_steps(graph: ChannelGraph, kept: Mapping[str, tuple[int, ...]], scores: Scores, steps: int) -> list[Kept]:
    """Return the channels that stay after each of at most `steps` cuts; the last ones are `kept`.

    A group of `n` channels of which `k` stay has `n (k / n)^(i / steps)` channels after cut `i`: those of `kept` and
    the best others by `scores`. Cuts that take nothing are left out.
    """
    found: list[Kept] = []
    for step in range(1, steps + 1):
        now: dict[str, tuple[int, ...]] = {}
        for group in graph.groups:
            last = kept.get(group.name, tuple(range(group.num_channels)))
            width = max(len(last), round(group.num_channels * (len(last) / group.num_channels) ** (step / steps)))
            stays = set(last)
            best = np.argsort(-scores[group.name], kind="stable").tolist()
            others = [channel for channel in best if channel not in stays]
            now[group.name] = tuple(sorted([*last, *others[: width - len(last)]]))
        if not found or now != found[-1]:
            found.append(now)
    return found


def positions_of(kept: Kept, among: Kept) -> dict[str, tuple[int, ...]]:
    """Return the places of the channels `kept` among those that a network still has."""
    places = {name: {channel: place for place, channel in enumerate(channels)} for name, channels in among.items()}
    return {name: tuple(places[name][channel] for channel in channels) for name, channels in kept.items()}
