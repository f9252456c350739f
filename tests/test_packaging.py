"""The package as others install it: what the wheel holds, what it declares, and how its page reads."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.tools import require

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    uv = require("uv")
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([uv, "build", "--quiet", "--wheel", "-o", str(folder), str(ROOT)], check=True)
    [built] = folder.glob("*.whl")
    return zipfile.ZipFile(built)


def test_wheel_holds_all_files_of_the_package(wheel: zipfile.ZipFile) -> None:
    tracked = subprocess.run(["git", "ls-files", "raprune"], cwd=ROOT, capture_output=True, text=True, check=True)
    names = set(wheel.namelist())
    assert set(tracked.stdout.split()) <= names
    assert {"raprune/py.typed", "raprune/grafana/raprune-grafana.json"} <= names


def test_description_of_the_wheel_has_no_relative_links(wheel: zipfile.ZipFile) -> None:
    [name] = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    metadata = Parser().parsestr(wheel.read(name).decode())
    assert metadata["Description-Content-Type"] == "text/markdown"
    text = str(metadata.get_payload())
    targets = re.findall(r"\]\(([^)]+)\)", text)
    assert targets and all(target.startswith(("https://", "#")) for target in targets)
    [picture] = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text)
    assert picture.startswith("https://raw.githubusercontent.com/raprune/raprune/main/")
    assert (ROOT / picture.partition("/main/")[2]).is_file()


def test_description_of_the_wheel_names_where_the_project_lies(wheel: zipfile.ZipFile) -> None:
    [name] = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    urls = Parser().parsestr(wheel.read(name).decode()).get_all("Project-URL") or []
    assert {url.partition(",")[0] for url in urls} == {"Repository", "Documentation", "Issues"}


def test_all_libraries_that_are_imported_are_declared() -> None:
    declared = {canonicalize_name(Requirement(text).name) for text in PROJECT["project"]["dependencies"]}
    for texts in PROJECT["project"]["optional-dependencies"].values():
        declared |= {canonicalize_name(Requirement(text).name) for text in texts}
    homes = packages_distributions()
    missing = {}
    for path in sorted((ROOT / "raprune").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for library in {module.partition(".")[0] for module in modules} - {"raprune", *sys.stdlib_module_names}:
                if not {canonicalize_name(home) for home in homes.get(library, [library])} & declared:
                    missing[library] = path.name
    assert missing == {}


def test_all_dependencies_have_an_upper_bound() -> None:
    groups = PROJECT["dependency-groups"]["dev"]
    for text in [*PROJECT["project"]["dependencies"], *groups]:
        operators = {specifier.operator for specifier in Requirement(text).specifier}
        assert operators & {"<", "=="}, text


def test_no_development_tools_are_installed_by_default() -> None:
    assert PROJECT["tool"]["uv"]["default-groups"] == []
    commands = (ROOT / ".ci/run").read_text()
    assert not re.findall(r"^uv run (?!--group dev )", commands, re.MULTILINE)
