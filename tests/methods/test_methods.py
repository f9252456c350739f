"""Tests of methods by name: built-in, of an installed distribution, and the user's class."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from raprune.errors import UsageError
from raprune.methods import METHODS, list_methods, method_named

MODULE = """
from dataclasses import dataclass
from typing import ClassVar

from raprune.methods.magnitude import L1


@dataclass(frozen=True, kw_only=True)
class Theirs(L1):
    title: ClassVar[str] = "a method of somebody else's"
    power: float = 1.5


SETTING = 3
"""
ENTRY_POINTS = """
[raprune.methods]
theirs = theirs_module:Theirs
l1 = theirs_module:Theirs
number = theirs_module:SETTING
gone = theirs_module:Gone
nowhere = no_such_module_at_all:Thing
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder as pip installs it: a module, and the metadata of its distribution."""
    (tmp_path / "theirs_module.py").write_text(MODULE)
    metadata = tmp_path / "raprune_theirs-1.2.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: raprune-theirs\nVersion: 1.2\n")
    (metadata / "entry_points.txt").write_text(ENTRY_POINTS)
    return tmp_path


@pytest.fixture
def installed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "theirs_module", raising=False)


def test_an_unknown_method_is_told_with_the_valid_names() -> None:
    with pytest.raises(UsageError, match="method 'taylr': no such method") as caught:
        method_named("taylr")
    assert all(name in str(caught.value) for name in METHODS)
    assert "Did you mean taylor?" in str(caught.value)


def test_a_class_is_found_by_its_path() -> None:
    assert method_named("raprune.methods.magnitude:L1") is METHODS["l1"]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("raprune.methods:METHODS", "has no function METHODS"),
        ("raprune.methods:method_named", "an object of type function, no subclass of raprune.methods.Method"),
        ("raprune.methods:Scores", "no subclass of raprune.methods.Method"),
        ("raprune.methods:Method", "no subclass of raprune.methods.Method"),
        ("raprune.methods:Nothing", "has no function Nothing"),
        ("no_such_module_at_all:Thing", "importing no_such_module_at_all raised ModuleNotFoundError"),
        ("raprune.methods:", "is written package.module:Class"),
    ],
)
def test_method_named_object_that_is_no_method_is_refused(name: str, told: str) -> None:
    with pytest.raises(UsageError) as caught:
        method_named(name)
    assert told in str(caught.value)


@pytest.mark.usefixtures("installed")
def test_a_distribution_adds_a_method() -> None:
    kind = method_named("theirs")
    assert (kind.__name__, kind.title) == ("Theirs", "a method of somebody else's")
    assert method_named("l1") is METHODS["l1"], "raprune's own name is not taken"


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("number", "number = theirs_module:SETTING of raprune-theirs is an object of type int, no subclass"),
        ("gone", "entry point gone = theirs_module:Gone of raprune-theirs raised AttributeError"),
        ("nowhere", "raised ModuleNotFoundError"),
        ("thears", "Did you mean theirs?"),
    ],
)
def test_a_broken_entry_point_is_told(name: str, told: str) -> None:
    with pytest.raises(UsageError) as caught:
        method_named(name)
    assert told in str(caught.value)


@pytest.mark.usefixtures("installed")
def test_the_list_says_where_methods_come_from_and_what_is_wrong_with_them() -> None:
    listed = list_methods()
    assert [method.name for method in listed if method.origin == "raprune"] == sorted(METHODS)
    added = {method.name: method for method in listed if method.origin == "raprune-theirs 1.2"}
    assert added["theirs"].title == "a method of somebody else's" and added["theirs"].settings == ("power=1.5",)
    assert added["l1"].title == "hidden by the built-in method l1; use it as theirs_module:Theirs"
    assert "raised ModuleNotFoundError" in added["nowhere"].title


def test_the_list_says_which_methods_need_labels() -> None:
    listed = {method.name: method.labels for method in list_methods() if method.origin == "raprune"}
    assert listed.pop("taylor") == "needs labels"
    training = [name for name, labels in listed.items() if labels == "needs labels, because it trains"]
    assert training == ["auto_balanced", "binary_search", "local_bn", "maxout", "slimming"]
    assert {labels for name, labels in listed.items() if name not in training} == {"unlabelled images suffice"}


@pytest.mark.nightly
def test_method_of_a_distribution_is_found_in_a_new_process(folder: Path) -> None:
    """The command line finds an installed method by its entry point, and checks it against the contract."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "COLUMNS": "140"}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "raprune.cli", *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)

    listed = run("methods")
    assert listed.returncode == 0, listed.stderr
    assert "theirs          a method of somebody else's  [raprune-theirs 1.2]" in listed.stdout
    checked = run("check", "--method", "theirs")
    assert checked.returncode == 0, checked.stderr
    assert checked.stdout.count("ok  ") == len(checked.stdout.splitlines())
