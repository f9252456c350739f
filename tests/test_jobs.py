"""Every job in `jobs/` is a complete, valid request."""

from __future__ import annotations

import dataclasses
import tomllib
from itertools import takewhile
from pathlib import Path

import pytest

from raprune.methods import METHODS
from raprune.models import list_models
from raprune.pruning.allocate import ALLOCATIONS
from raprune.sampling.space import RATIOS
from raprune.spec.automatic import decided
from raprune.spec.job import SearchSpec
from raprune.spec.toml import load_spec

JOBS = Path(__file__).parent.parent / "jobs"
FILES = sorted(JOBS.glob("*.toml"))


def test_the_named_jobs_are_there() -> None:
    names = {path.stem for path in FILES}
    assert {
        "digits",
        "lenet5_mnist",
        "resnet20_cifar10",
        "resnet56_cifar10",
        "vgg16_cifar10",
        "resnet50_imagenet",
    } <= names
    assert {"resnet56_cifar10_reconstruction", "resnet56_cifar10_baselines"} <= names


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_job_is_valid(path: Path) -> None:
    spec = load_spec(path)
    assert spec.model.name in list_models() or spec.model.name.startswith("timm:")
    assert set(spec.methods) <= set(METHODS)
    assert set(spec.allocations) <= {*ALLOCATIONS, RATIOS}
    assert spec.search.smallest < 1.0, "a job gives a front, not one point"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_fixed_settings_are_those_of_methods_that_are_searched(path: Path) -> None:
    spec = load_spec(path)
    assert set(spec.settings) <= set(spec.methods)
    for name, values in spec.settings.items():
        fields = {entry.name: entry.default for entry in dataclasses.fields(METHODS[name])}
        for key, value in values.items():
            assert type(value) is type(fields[key]) or {type(value), type(fields[key])} == {int, float}
        METHODS[name](**values)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_job_says_at_its_top_how_it_is_started(path: Path) -> None:
    head = list(takewhile(lambda line: line.startswith("#"), path.read_text().splitlines()))
    assert f"uv run raprune search jobs/{path.name}" in "\n".join(head)


def test_the_baselines_are_all_methods_that_train_nothing() -> None:
    one_shot = {name for name, kind in METHODS.items() if not kind().has_path() and kind().regularize() is None}
    assert set(load_spec(JOBS / "resnet56_cifar10_baselines.toml").methods) == one_shot


def test_the_job_of_the_bundled_network_spells_out_what_is_decided_without_one() -> None:
    spec = load_spec(None, {"output": "run"})
    widths = dict.fromkeys(("conv1", "block1.conv1"), 32)
    assert load_spec(JOBS / "mnist_sample.toml", {"output": "run"}) == decided(spec, num_train=8000, widths=widths)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_second_run_of_a_job_has_a_folder_of_its_own(path: Path) -> None:
    assert "output" not in tomllib.loads(path.read_text()), "left to the clock"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_paths_follow_the_environment(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RAPRUNE_DATA", raising=False)
    beside = load_spec(path)
    monkeypatch.setenv("RAPRUNE_DATA", str(tmp_path))
    moved = load_spec(path)
    for before, after in zip(_paths(beside), _paths(moved), strict=True):
        if "runs/dense" in before:
            assert after == before, "weights that the project trains"
            continue
        inside = Path(before).resolve().relative_to((JOBS / "../../shared/data").resolve())
        assert Path(after) == tmp_path / inside


def _paths(spec: SearchSpec) -> list[str]:
    return [path for path in (spec.model.weights, spec.data.train, spec.data.test) if path is not None]
