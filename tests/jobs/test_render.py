"""Results of the acceptance run as text, as Markdown, and in the documents."""

from __future__ import annotations

from pathlib import Path

import pytest
import render
from acceptance.results import Line, Results, SectionResult, SectionState
from acceptance.tables import as_markdown, as_text

CARD = {"card": "NVIDIA H100 80GB HBM3", "commit": "0123456789ab", "date": "2026-11-28 04:00 UTC", "device": "cuda"}


def results(**machine: str) -> Results:
    lines = [
        Line(name="distilled, batch 128", figure=31234.5, unit="images/s", bar=30000.0, passed=True),
        Line(name="peak memory", figure=21.04, unit="GB", bar=20.0, more_is_better=False, passed=False),
        Line(name="a | b", text="a long text " * 20),
    ]
    sections = [
        SectionResult("throughput", SectionState.FAILED, 12.3, lines=lines),
        SectionResult("latency", SectionState.SKIPPED, reason="3 s were left, it needs 55 s"),
    ]
    return Results({**CARD, "mode": "full", **machine}, sections)


def test_results_that_are_saved_and_loaded_are_equal(tmp_path: Path) -> None:
    results().save(tmp_path / "r.json")
    assert Results.load(tmp_path / "r.json") == results()


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"machine": {}, "sections": [{"name": "x", "mystery": 1}]}'])
def test_file_without_results_is_refused_by_its_name(tmp_path: Path, content: str) -> None:
    (tmp_path / "r.json").write_text(content)
    with pytest.raises(SystemExit, match=r"r\.json: holds no results"):
        Results.load(tmp_path / "r.json")


def test_text_has_verdict_figure_and_bar_in_eighty_columns() -> None:
    text = as_text(results())
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "pass distilled, batch 128: 31,234 images/s (at least 30,000)" in text
    assert "FAIL peak memory: 21 GB (at most 20)" in text
    assert "latency: skipped, 3 s were left, it needs 55 s" in text
    assert "1 lines passed, 1 failed, 1 were recorded" in text


def test_markdown_has_a_row_a_line_and_names_what_was_skipped() -> None:
    text = as_markdown(results())
    assert "| throughput | distilled, batch 128 | 31,234 images/s | at least 30,000 | met |" in text
    assert "| throughput | peak memory | 21 GB | at most 20 | **missed** |" in text
    assert "| throughput | a \\| b |" in text
    assert "Section latency: skipped, 3 s were left, it needs 55 s." in text
    assert text.startswith("card NVIDIA H100 80GB HBM3, commit 0123456789ab")


@pytest.mark.parametrize("machine", [{"device": "cpu"}, {"mode": "dry"}])
def test_dry_runs_and_runs_on_a_cpu_are_no_run_on_a_gpu(tmp_path: Path, machine: dict[str, str]) -> None:
    results(**machine).save(tmp_path / "r.json")
    assert render.section(tmp_path) == render.NO_RUN


def test_latest_run_on_a_gpu_is_the_one_in_the_documents(tmp_path: Path) -> None:
    results(date="2026-12-02 01:00 UTC", card="later").save(tmp_path / "a.json")
    results(date="2026-12-01 23:00 UTC", card="earlier").save(tmp_path / "b.json")
    text = render.section(tmp_path)
    assert "card later" in text and "earlier" not in text and "jobs/device/results/a.json" in text


def test_section_of_a_document_is_replaced_and_nothing_else() -> None:
    document = "# Results\n\n## On a GPU\n\nold\n\n## Behind\n\nstays\n"
    changed = render.with_section(document, "\nnew\n")
    assert changed == "# Results\n\n## On a GPU\n\nnew\n\n## Behind\n\nstays\n"
    assert render.with_section(changed, "\nnew\n") == changed
    assert render.with_section("# Results\n", "\nnew\n") == "# Results\n\n## On a GPU\n\nnew\n"


def test_documents_say_what_the_kept_results_say() -> None:
    document = render.DOCUMENT.read_text()
    assert render.with_section(document, render.section(render.FOLDER)) == document
