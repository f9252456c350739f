"""Names read from the source of registries are those that the registries hold."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from raprune.data import DATASETS
from raprune.methods import METHODS
from raprune.models import OWN
from raprune.spec import names
from tests.tools import require_module


def test_torchvision_models_equal_its_registry() -> None:
    from torchvision import models

    assert names.torchvision_models() == models.list_models(module=models)


def test_timm_models_equal_its_registry() -> None:
    timm = require_module("timm")
    assert names.timm_models() == timm.list_models()


def test_own_names_equal_the_registries() -> None:
    assert names.own_models() == list(OWN)
    assert names.list_datasets() == list(DATASETS)
    assert set(METHODS) <= set(names.method_names())


def test_timm_models_where_timm_is_missing_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    names.timm_models.cache_clear()
    monkeypatch.setattr(names, "find_spec", lambda package: None)
    try:
        assert names.timm_models() == []
    finally:
        names.timm_models.cache_clear()


def test_listing_models_imports_no_networks() -> None:
    program = """
import sys
from raprune.cli import app
try:
    app(["models"])
except SystemExit as stop:
    assert not stop.code
heavy = {"torch", "torchvision", "timm", "numpy"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {"digits-net", "resnet18"} <= set(done.stdout.split())


def test_registered_name_that_is_given_wins_over_the_function() -> None:
    text = (
        '@register_model()\n@handle(\n    weights=("pretrained", 1),\n)\ndef plain(): ...\n\n'
        '@register_model(name="given")\ndef function(): ...\n\n@register_model\ndef bare(): ...\n\ndef other(): ...\n'
    )
    assert list(names._registered(text)) == ["plain", "given", "bare"]


def test_completion_of_methods_goes_on_after_a_comma() -> None:
    assert names.complete_methods("tay") == ["taylor"]
    assert names.complete_methods("l1,tay") == ["l1,taylor"]
    assert names.complete_methods("taylor,tay") == [], "given already"


def test_completion_of_models_and_datasets() -> None:
    assert names.complete_model("cifar-vgg") == ["cifar-vgg16-bn", "cifar-vgg19-bn"]
    assert names.complete_dataset("cifar") == ["cifar10", "cifar100"]


def test_completion_of_runs_finds_folders_below_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("runs/a", "runs/b", "mine"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "run.json").write_text("{}")
    (tmp_path / "runs/none").mkdir()
    monkeypatch.chdir(tmp_path)
    assert names.complete_run("") == ["mine", "runs/a", "runs/b"]
    assert names.complete_run("runs/b") == ["runs/b"]
