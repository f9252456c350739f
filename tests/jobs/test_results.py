"""Results page: its tables are those of the benchmarks."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

JOBS = Path(__file__).parents[2] / "jobs"


@pytest.fixture(scope="module")
def results() -> ModuleType:
    """The program that fills in the page."""
    spec = importlib.util.spec_from_file_location("fill_results", JOBS / "results.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_has_the_present_tables_of_the_benchmarks(results: ModuleType) -> None:
    page = results.PAGE.read_text()
    named = results.PLACE.findall(page)
    assert {"jobs/benchmarks/one_shot.md", "jobs/benchmarks/records.md"} <= set(named)
    assert results.filled(page, results.ROOT) == page, "run `uv run python jobs/results.py`"


def test_a_table_that_changed_is_filled_in_and_the_prose_stays(results: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "speed.md").write_text("# Speed\n\nCommit abc, today.\n\n## Fast\n\n| a |\n| --- |\n| 2 |\n")
    page = "before\n<!-- from speed.md -->\n| old |\n<!-- end -->\nafter\n"
    assert results.filled(page, tmp_path) == (
        "before\n<!-- from speed.md -->\nCommit abc, today.\n\n### Fast\n\n| a |\n| --- |\n| 2 |\n<!-- end -->\nafter\n"
    )
