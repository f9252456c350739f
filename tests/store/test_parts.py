"""Names of files of trials: which count, and which are put together."""

from __future__ import annotations

import random

from raprune.store.parts import compact_name, counting, has_gap, overlap, part_name, parts_of, replaced, to_be_compacted

PARTS = [part_name(number, "aa") for number in range(6)]


def test_names_of_every_version_are_parts_in_the_order_of_their_records() -> None:
    names = ["part-000002-0f.parquet", "part-000001.parquet", "part-000000.parquet", ".hidden", "notes.parquet"]
    assert [part.name for part in parts_of(names)] == ["part-000000.parquet", "part-000001.parquet", names[0]]


def test_parts_within_a_compact_file_do_not_count() -> None:
    compact = compact_name(parts_of(PARTS[:4]), "aa")
    found = parts_of([*PARTS, compact])
    assert [part.name for part in counting(found)] == [compact, *PARTS[4:]]
    assert [part.name for part in replaced(found)] == PARTS[:4]


def test_compact_files_of_the_same_parts_count_once() -> None:
    whole, again, half = (compact_name(parts_of(PARTS[:n]), w) for n, w in ((4, "aa"), (4, "bb"), (2, "cc")))
    assert [part.name for part in counting(parts_of([again, half, whole]))] == [whole]


def test_listing_that_a_compaction_overtook_has_a_gap() -> None:
    compact = compact_name(parts_of(PARTS[:5]), "aa")
    assert not has_gap(parts_of(PARTS)) and not has_gap(parts_of([compact, PARTS[5]])) and not has_gap([])
    for some in (PARTS[5:], [PARTS[0], *PARTS[3:]]):
        assert has_gap(parts_of(some))


def test_two_writers_of_one_number_overlap() -> None:
    assert overlap(parts_of([*PARTS, part_name(5, "bb")])) and not overlap(parts_of(PARTS))
    assert overlap(parts_of([compact_name(parts_of(PARTS[:4]), "aa"), compact_name(parts_of(PARTS[2:]), "bb")]))


def test_few_parts_are_not_compacted_and_the_newest_never_is() -> None:
    parts = parts_of(PARTS)
    assert to_be_compacted(parts, above=6) == [] == to_be_compacted([], above=0)
    assert to_be_compacted(parts, above=5) == parts[:-1]


def test_long_run_has_few_files_and_writes_each_trial_few_times() -> None:
    names: set[str] = set()
    written = 0
    for number in range(20_000):
        names.add(part_name(number, "aa"))
        batch = to_be_compacted(counting(parts_of(names)), above=256) if len(names) > 256 else []
        if batch:
            names -= {part.name for part in batch}
            names.add(compact_name(batch, "aa"))
            written += batch[-1].last + 1 - batch[0].first
    compact = [part for part in parts_of(names) if part.is_compact]
    assert len(compact) <= 7 and len(names) <= 257 + 7 and written < 7 * 20_000
    assert not has_gap(parts_of(random.sample(sorted(names), len(names))))
