"""Rows of benchmarks: a run over some of them keeps the others, and each line of a table says where it comes from."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
from kept_rows import KeptRows, Origin, origin_now

from tests.tools import require_module

OLD = Origin(commit="aaaaaaa", date="2026-11-01", machine="2 old cores")
NEW = Origin(commit="bbbbbbb", date="2026-11-28", machine="2 new cores")
BENCHMARKS = Path(__file__).parents[2] / "jobs" / "benchmarks"


@dataclass(frozen=True)
class Figure:
    name: str
    budget: float
    accuracy: float


def rows_in(path: Path) -> KeptRows[Figure]:
    return KeptRows(path, Figure, lambda row: (row.name, row.budget))


def test_a_partial_run_replaces_only_the_rows_that_it_measured(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    kept = rows_in(path)
    for budget in (0.5, 0.4, 0.3):
        kept.add(Figure("l1", budget, 0.7), OLD)
    again = rows_in(path)
    again.add(Figure("l1", 0.4, 0.8), NEW)
    again.add(Figure("taylor", 0.5, 0.9), NEW)
    read = rows_in(path)
    assert {key: (row.accuracy, read.origins[key]) for key, row in read.rows.items()} == {
        ("l1", 0.5): (0.7, OLD),
        ("l1", 0.4): (0.8, NEW),
        ("l1", 0.3): (0.7, OLD),
        ("taylor", 0.5): (0.9, NEW),
    }


def test_a_row_that_cannot_be_written_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    kept = rows_in(path)
    kept.add(Figure("l1", 0.5, 0.7), OLD)
    before = path.read_text()
    with pytest.raises(TypeError):
        kept.add(Figure("l1", 0.4, object()), NEW)  # type: ignore[arg-type]  # no number
    assert path.read_text() == before


def test_origin_names_commit_date_and_machine() -> None:
    origin = origin_now()
    assert re.fullmatch(r"[0-9a-f]{7,}\+?", origin.commit)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", origin.date)
    assert re.search(r"\d+ \w+ cores, PyTorch \d", origin.machine)


def test_every_line_of_the_one_shot_table_says_commit_date_and_machine(tmp_path: Path) -> None:
    one_shot = require_module("one_shot")
    kept = KeptRows(tmp_path / "rows.jsonl", one_shot.Result, one_shot.key_of)
    row = {"network": "resnet56", "setting": "uniform", "test_images": 100, "flops_fraction": 0.5, "test": 0.8}
    kept.add(one_shot.Result(**row, side="raprune", name="l1", budget=0.5), OLD)
    kept.add(one_shot.Result(**row, side="raprune", name="l1", budget=0.4), NEW)
    kept.add(one_shot.Result(**row, side="control", name=one_shot.DENSE, budget=1.0), NEW)
    (line,) = [line for line in one_shot.tables(kept).splitlines() if "| l1 |" in line]
    for origin in (OLD, NEW):
        assert f"{origin.date}, {origin.commit}, {origin.machine}" in line


def test_the_published_one_shot_table_is_that_of_the_kept_rows() -> None:
    one_shot = require_module("one_shot")
    kept = KeptRows(one_shot.ROWS, one_shot.Result, one_shot.key_of)
    assert kept.rows
    assert one_shot.TABLE.read_text() == one_shot.tables(kept)


def test_the_readme_of_the_benchmarks_has_a_line_for_each_of_them() -> None:
    readme = (BENCHMARKS / "README.md").read_text()
    programs = {path.name for path in BENCHMARKS.glob("*.py") if "def main" in path.read_text()}
    named = set(re.findall(r"^\| `(\w+\.py)`", readme, re.MULTILINE))
    assert named == programs
