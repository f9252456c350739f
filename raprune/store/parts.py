"""Files of trials: their names, which of them count, and which are to be put together. Pure: names in, a decision out.

    part-000012-1f6a09c3.parquet             trials that were written together: number, writer
    compact-000000-000255-1f6a09c3.parquet   the trials of the parts 0 to 255

The writer in the name keeps two writers from ever overwriting each other's files. Versions before compaction wrote
`part-000012.parquet`.

A compact file is written first and the parts that it replaces are removed after that, so at every moment each trial is
in at least one file; a part whose number is within a compact file does not count. The newest part is never compacted:
a listing that a compaction overtook, so that it has neither the new file nor the removed ones, has a gap in its numbers
and is taken again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

SMALL_PARTS = 256
"""Parts that may wait before they are compacted."""

_NAME = re.compile(r"(?:part-(?P<number>\d+)|compact-(?P<first>\d+)-(?P<last>\d+))(?:-[0-9a-f]+)?\.parquet")


@dataclass(frozen=True, order=True)
class TrialFile:
    """One file of trials, ordered as the trials were recorded."""

    first: int
    """Number of the first part in it."""
    last: int
    """Number of the last part in it; a part that is not compacted is one of its own."""
    name: str

    @property
    def numbers(self) -> range:
        """Numbers of the parts in it."""
        return range(self.first, self.last + 1)

    @property
    def is_compact(self) -> bool:
        """True if it holds parts that were put together."""
        return self.name.startswith("compact-")

    def replaces(self, other: TrialFile) -> bool:
        """True if a reader of this file must not read `other` as well."""
        if not self.is_compact or not (self.first <= other.first and other.last <= self.last):
            return False
        # Of two compact files of the same parts the first counts.
        return not other.is_compact or (other.last - other.first, self.name) < (self.last - self.first, other.name)


def part_name(number: int, writer: str) -> str:
    """Name of the next part of a writer."""
    return f"part-{number:06d}-{writer}.parquet"


def compact_name(parts: Sequence[TrialFile], writer: str) -> str:
    """Name of the file that holds the trials of these parts."""
    return f"compact-{parts[0].first:06d}-{max(part.last for part in parts):06d}-{writer}.parquet"


def parts_of(names: Iterable[str]) -> list[TrialFile]:
    """All files of trials among the names of a folder, in the order of their records."""
    found: list[TrialFile] = []
    for name in names:
        match = _NAME.fullmatch(name)
        if match is not None:
            first, last = match["number"] or match["first"], match["number"] or match["last"]
            found.append(TrialFile(int(first), int(last), name))
    return sorted(found)


def counting(parts: Sequence[TrialFile]) -> list[TrialFile]:
    """The files that hold each trial once: those that no compact file replaces."""
    compact = [part for part in parts if part.is_compact]
    return [part for part in parts if not any(other.replaces(part) for other in compact)]


def replaced(parts: Sequence[TrialFile]) -> list[TrialFile]:
    """The files that a compaction which was cut off has left to be removed."""
    counted = set(counting(parts))
    return [part for part in parts if part not in counted]


def has_gap(parts: Sequence[TrialFile]) -> bool:
    """True if a number below the highest one is missing."""
    expected = 0
    for part in parts:
        if part.first > expected:
            return True
        expected = max(expected, part.last + 1)
    return False


def overlap(parts: Sequence[TrialFile]) -> bool:
    """True if two files that count hold the same number: two processes have written the run."""
    return any(later.first <= earlier.last for earlier, later in pairwise(parts))


def to_be_compacted(parts: Sequence[TrialFile], above: int = SMALL_PARTS) -> list[TrialFile]:
    """The files that are to become one, of the files that count; none as long as there are few parts.

    Compact files before the parts are taken along if they hold no more parts: so a trial is written again only
    log2(n / 256) times in a run of n parts, and so many compact files remain.
    """
    small = [index for index, part in enumerate(parts) if not part.is_compact]
    if len(small) <= above:
        return []
    begin, end = small[0], small[-1]
    covered = sum(len(part.numbers) for part in parts[begin:end])
    while begin > 0 and len(parts[begin - 1].numbers) <= covered:
        begin -= 1
        covered += len(parts[begin].numbers)
    return list(parts[begin:end])
