"""The heads that can be removed, from the head ids that a trace has seen (`head_shadows.py`).

A position of an axis belongs to the head of every position that it was coupled with *before* an axis was split: a bias
with the rows of its weight, the parts of a tensor that is split evenly. Couplings and freezes seen behind a split stand
for all heads at once, and say nothing of a single head.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from raprune.channels.components import components
from raprune.channels.head_shadows import HeadSplit
from raprune.channels.positions import IndexArray
from raprune.channels.shadow import Tracer


@dataclass(frozen=True)
class Heads:
    """The classes of coupled heads, and the head of every position."""

    label: IndexArray
    """Class of each head id; 0 for a head that stays."""
    of_position: IndexArray
    """Class of the head of each position's id; 0 for a position that belongs to none, or to one that stays."""
    splits: tuple[HeadSplit, ...]
    """The splits whose heads ran in attention, also those whose heads stay."""
    reasons: tuple[tuple[str, int, str], ...]
    """Module, number and reason of heads that ran in attention and stay."""


def heads_of(tracer: Tracer) -> Heads | None:
    """Return the heads of a trace; None if nothing ran head by head.

    The widths of splits in one module that have the same number are coupled: the module's code has one number for all.
    """
    seen = tracer.heads
    if not seen.used:
        return None
    in_heads = set(tracer.pairs_in_heads)
    fine = components(tracer.num_ids, [pair for i, pair in enumerate(tracer.pairs) if i not in in_heads])
    positions = np.concatenate([ids for ids, _ in seen.tags])
    heads = np.concatenate([ids for _, ids in seen.tags])
    ran = _used(tracer, components(seen.num_ids, seen.pairs))[heads]
    positions, heads = positions[ran], heads[ran]
    order = np.argsort(fine[positions], kind="stable")
    same = np.flatnonzero(np.diff(fine[positions][order]) == 0)
    label = components(seen.num_ids, [*seen.pairs, (heads[order][same], heads[order][same + 1])])

    used = _used(tracer, label)
    splits = tuple(split for split in seen.splits if used[split.heads].all())
    reasons = _frozen(tracer, fine, label, fine[positions], label[heads])
    staying = tuple(_told(splits, label, reasons))
    stays = ~used
    stays[list(reasons)] = True
    stays[0] = True
    label = np.where(stays[label], 0, label)
    of_fine = np.zeros(tracer.num_ids, dtype=np.int64)
    of_fine[fine[positions]] = label[heads]
    of_fine[0] = 0
    _couple_widths(tracer, splits)
    return Heads(label, of_fine[fine], splits, staying)


def _told(
    splits: tuple[HeadSplit, ...], label: IndexArray, reasons: dict[int, tuple[str, str]]
) -> Iterator[tuple[str, int, str]]:
    """Yield module, number and reason of the heads that stay, each once."""
    known: set[int] = set()
    for split in splits:
        by_reason: Counter[str] = Counter()
        for one in dict.fromkeys(label[split.heads].tolist()):
            if one in reasons and one not in known:
                known.add(one)
                where, reason = reasons[one]
                by_reason[f"{reason} (in {where})" if where != split.module else reason] += 1
        yield from ((split.module, count, reason) for reason, count in by_reason.items())


def _used(tracer: Tracer, label: IndexArray) -> npt.NDArray[np.bool_]:
    """Return True for each head id over whose class a product ran head by head."""
    used = np.zeros(len(label), dtype=bool)
    for ids in tracer.heads.used:
        used[label[ids]] = True
    return used[label]


def _frozen(
    tracer: Tracer, fine: IndexArray, label: IndexArray, tagged: IndexArray, head: IndexArray
) -> dict[int, tuple[str, str]]:
    """Return the classes of heads that stay, with the module and the reason."""
    reasons: dict[int, tuple[str, str]] = {}
    for ids, module, reason in tracer.heads.freezes:
        for one in np.unique(label[ids]):
            reasons.setdefault(int(one), (module, reason))
    for record in tracer.freezes:
        if record.in_heads:
            continue
        for one in np.unique(head[np.isin(tagged, fine[record.ids])]):
            reasons.setdefault(int(one), (record.module, record.reason))
    return reasons


def _couple_widths(tracer: Tracer, splits: tuple[HeadSplit, ...]) -> None:
    by_number: dict[tuple[str, int], list[IndexArray]] = defaultdict(list)
    for split in splits:
        by_number[split.module, len(split.widths)].append(split.widths)
    for same in by_number.values():
        for one, other in pairwise(same):
            if not np.array_equal(one, other):
                tracer.couple(one, other)
