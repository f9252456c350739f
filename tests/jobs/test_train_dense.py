"""Training of a job's dense network, whose weights the job then reads."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from raprune.errors import RapruneError
from raprune.pruning.preparation import prepare
from raprune.spec.toml import load_spec

JOBS = Path(__file__).parents[2] / "jobs"


@pytest.fixture(scope="module")
def program() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_dense", JOBS / "train_dense.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def job(folder: Path, weights: str) -> Path:
    path = folder / "job.toml"
    path.write_text(
        f'[model]\nname = "digits-net"\n{weights}\n[data]\nname = "digits"\nmax_images = 300\n'
        "[dense]\nepochs = 2\nlr = 0.05\n"
    )
    return path


@pytest.mark.nightly
def test_weights_are_written_where_the_job_reads_them(
    program: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = job(tmp_path, 'weights = "dense/small.safetensors"')
    program.trained(str(path), None, "cpu")
    said = capsys.readouterr().out
    assert "epoch 2: loss" in said and "wrote small.safetensors" in said
    assert [file.name for file in (tmp_path / "dense").iterdir()] == ["small.safetensors"]
    assert prepare(load_spec(path)).weights is not None


def test_job_without_weights_is_refused(program: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(RapruneError, match=r"model\.weights names no file"):
        program.trained(str(job(tmp_path, "")), None, "cpu")
