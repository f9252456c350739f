"""Every job in `jobs/` is a complete, valid request."""

from __future__ import annotations

from pathlib import Path

import pytest

from raprune.methods import METHODS
from raprune.models import list_models
from raprune.spec import SearchSpec, load_spec

JOBS = Path(__file__).parent.parent / "jobs"
FILES = sorted(JOBS.glob("*.toml"))


def test_the_named_jobs_are_there() -> None:
    names = {path.name for path in FILES}
    assert {"digits.toml", "lenet5_mnist.toml", "resnet20_cifar10.toml", "resnet56_cifar10.toml"} <= names


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_job_is_valid(path: Path) -> None:
    spec = load_spec(path)
    assert spec.model.name in list_models()
    assert set(spec.methods) <= set(METHODS)
    assert spec.search.smallest < 1.0, "a job gives a front, not one point"


def test_the_digits_job_spells_out_the_defaults() -> None:
    assert load_spec(JOBS / "digits.toml") == load_spec()


def test_every_job_writes_to_its_own_folder() -> None:
    outputs = [load_spec(path).output for path in FILES]
    assert len(set(outputs)) == len(outputs)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_paths_follow_the_environment(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RAPRUNE_DATA", raising=False)
    beside = load_spec(path)
    monkeypatch.setenv("RAPRUNE_DATA", str(tmp_path))
    moved = load_spec(path)
    for before, after in zip(_paths(beside), _paths(moved), strict=True):
        assert Path(before).resolve().parent == (JOBS / "../../shared/data").resolve()
        assert Path(after).parent == tmp_path and Path(after).name == Path(before).name


def _paths(spec: SearchSpec) -> list[str]:
    return [path for path in (spec.model.weights, spec.data.train, spec.data.test) if path is not None]
