"""The acceptance run: its flags, what it goes on with, and the whole run in small."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import accept
import build
import numpy as np
import pytest
import torch
from acceptance.bench import Bench
from acceptance.results import Results, SectionResult, SectionState
from acceptance.runner import run_section
from acceptance.sections import SECTIONS, methods

from tests.jobs.benches import bench_in
from tests.pretend_cuda import Card, pretend_cuda

DEVICE = Path(__file__).parents[2] / "jobs" / "device"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--dry --only method", "--only method: no such section. Sections are environment"),
        ("--reference r.npz --device cuda", "--reference: is made on a CPU"),
        ("--reference r.npz --only proof", "--reference: is made on a CPU"),
        ("--device cuda --dry", "--device cuda: PyTorch finds no GPU"),
        ("--device cpu", "--data: no folder with images and weights"),
        ("--dry --compare /no/such.npz", "--compare /no/such.npz: is not there"),
        ("--dry --deadline 0", "--deadline 0: must be above 0"),
    ],
)
def test_wrong_flags_are_refused_with_their_name(
    words: str, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAPRUNE_DATA", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        accept.parsed(words.split())
    assert said in " ".join(capsys.readouterr().err.split())


def test_resumed_results_run_what_has_not_passed_and_keep_the_rest() -> None:
    states = {"environment": SectionState.PASSED, "methods": SectionState.FAILED, "proof": SectionState.SKIPPED}
    results = Results({}, [SectionResult(name, state) for name, state in states.items()])
    options = accept.parsed(["--dry"])
    names = [section.name for section in accept.wanted(options, results)]
    assert names == [section.name for section in SECTIONS if section.name != "environment"]
    assert [section.name for section in results.sections] == ["environment"]


def test_new_process_after_a_lost_gpu_runs_the_rest_in_the_time_that_is_left(tmp_path: Path) -> None:
    bench = bench_in(tmp_path, deadline_s=100)
    words = accept.words_for(["--compare", "r.npz", "--deadline=100", "--only", "proof,latency"], bench, SECTIONS[-1:])
    assert words == ["--compare", "r.npz", "--resume", str(bench.file), "--only", "accuracy", "--deadline", "100"]


def test_every_flag_of_the_readme_is_a_flag_of_its_program(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["program", "--help"])
    known = set()
    for main in (accept.main, build.main):
        with pytest.raises(SystemExit):
            main()
        known |= set(re.findall(r"--[a-z]+", capsys.readouterr().out))
    text = (DEVICE / "README.md").read_text()
    named = {
        flag
        for line in (*re.findall(r".*(?:accept|build)\.py.*", text), *re.findall(r"`(--[a-z]+)`", text))
        for flag in re.findall(r"--[a-z]+", line)
    }
    assert len(named) >= 7 and named <= known


def test_readme_names_every_section() -> None:
    rows = re.findall(r"^\| (\w+) \|", (DEVICE / "README.md").read_text(), re.MULTILINE)
    assert rows[1:] == [section.name for section in SECTIONS]


def test_sections_fit_into_the_time_that_the_readme_gives_them() -> None:
    (deadline,) = re.findall(r"--deadline (\d+)", (DEVICE / "README.md").read_text())
    assert sum(section.seconds for section in SECTIONS) <= float(deadline)


@pytest.fixture
def card() -> Iterator[Card]:
    """A pretend GPU."""
    with pretend_cuda() as card:
        yield card


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["environment", "throughput"])
def test_section_takes_its_branches_of_a_gpu_without_an_error(name: str, card: Card, tmp_path: Path) -> None:
    bench = bench_in(tmp_path, device="cuda:0")
    run_section(bench, next(section for section in SECTIONS if section.name == name))
    (result,) = bench.results.sections
    assert result.traceback == ""
    assert any(line.passed is not None for line in result.lines) or name == "environment"


def run_dry(folder: Path, *words: str) -> Results:
    """The results of a dry run in a process of its own, which has to end with exit code 0."""
    environment = {**os.environ, "PYTHONPATH": str(DEVICE.parents[1])}
    environment.pop("RAPRUNE_DATA", None)
    done = subprocess.run(
        [sys.executable, str(DEVICE / "accept.py"), "--dry", "--out", str(folder), *words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (file,) = folder.glob("*.json")
    return Results.load(file)


@pytest.mark.nightly
def test_dry_run_passes_in_every_section(tmp_path: Path) -> None:
    results = run_dry(tmp_path)
    assert {section.name: section.state for section in results.sections} == {
        section.name: SectionState.PASSED for section in SECTIONS
    }
    assert results.machine["mode"] == "dry" and results.machine["commit"] != "unknown"


def test_run_that_is_compared_with_its_own_scores_agrees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods, "SCORED", {"l1": {}, "random": {}})
    section = next(section for section in SECTIONS if section.name == "methods")
    first, second = bench_in(tmp_path), bench_in(tmp_path)
    run_section(first, section)
    np.savez_compressed(tmp_path / "reference.npz", **first.scores)  # type: ignore[arg-type]  # its stub
    second.reference = dict(np.load(tmp_path / "reference.npz"))
    run_section(second, section)
    assert [line.passed for _, line in first.results.lines()] == [None, None], "nothing to compare with"
    assert [line.passed for _, line in second.results.lines()] == [True, True]


def test_results_name_the_commit_of_the_build_where_there_is_no_history(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from acceptance import machine

    monkeypatch.setattr(machine, "ROOT", tmp_path)
    monkeypatch.setattr(machine, "COMMIT", tmp_path / "commit.json")
    assert machine.commit() == "unknown"
    machine.COMMIT.write_text(json.dumps({"commit": "0123456789abcdef", "changed": True}))
    assert machine.commit() == "0123456789ab+"


def test_bench_knows_one_card_of_several(tmp_path: Path) -> None:
    found: list[Bench] = [bench_in(tmp_path, device=device) for device in ("cpu", "cuda", "cuda:1")]
    assert [bench.on_gpu for bench in found] == [False, True, True]
