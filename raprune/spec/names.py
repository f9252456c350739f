"""Names of networks, methods, data sets and runs, for lists, for completion and for suggestions.

They are read from the source of the registries, because importing torchvision and timm takes up to 20 seconds.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

METHODS_GROUP = "raprune.methods"
"""Entry points of this group, `name = "package.module:Class"`, are methods that an installed distribution adds."""

_HERE = Path(__file__).parents[1]

_REGISTERED = re.compile(r"^@register_model\b(?:\((?:name=)?[\"'](\w+)[\"']\))?.*?^def (\w+)", re.MULTILINE | re.DOTALL)
"""A function that torchvision or timm registers, and its registered name if that differs."""

_DEPRECATED = re.compile(r"^register_model_deprecations\(__name__, \{(.*?)^\}", re.MULTILINE | re.DOTALL)
"""timm's old names of networks, which it does not list."""


def list_models() -> list[str]:
    """All names that `ModelSpec.name` takes, the project's own first; timm's as `timm:NAME` where it is installed."""
    timm = (f"timm:{name}" for name in timm_models())
    return [*own_models(), *torchvision_models(), *segmentation_models(), *detection_models(), *timm]


def own_models() -> list[str]:
    """Networks of this package."""
    return _keys("models/__init__.py", "OWN")


@cache
def torchvision_models() -> list[str]:
    """torchvision's networks for classification, in alphabetical order."""
    return sorted(name for text in _sources("torchvision") for name in _registered(text))


@cache
def segmentation_models() -> list[str]:
    """torchvision's networks for semantic segmentation, in alphabetical order."""
    return sorted(name for text in _sources("torchvision", "segmentation") for name in _registered(text))


@cache
def detection_models() -> list[str]:
    """torchvision's detectors, in alphabetical order."""
    return sorted(name for text in _sources("torchvision", "detection") for name in _registered(text))


@cache
def timm_models() -> list[str]:
    """timm's networks in its own order, by number where names end in one; empty where timm is not installed."""
    found: set[str] = set()
    for text in _sources("timm"):
        deprecated = {
            old for block in _DEPRECATED.findall(text) for old in re.findall(r"^\s*[\"'](\w+)[\"']:", block, re.M)
        }
        found.update(name for name in _registered(text) if name not in deprecated)
    return sorted(found, key=_by_number)


def list_datasets() -> list[str]:
    """Data sets that `DataSpec.name` takes, without functions of the user's."""
    return _keys("data/__init__.py", "DATASETS")


def method_names() -> list[str]:
    """Methods of this package and those of installed distributions."""
    added = {entry.name for entry in entry_points(group=METHODS_GROUP)}
    return sorted({*_keys("methods/__init__.py", "METHODS"), *added})


def complete_model(incomplete: str) -> list[str]:
    """Networks whose name begins with this text. timm's are left out, because a colon ends a word in bash."""
    return [name for name in (*own_models(), *torchvision_models()) if name.startswith(incomplete)]


def complete_dataset(incomplete: str) -> list[str]:
    """Data sets whose name begins with this text."""
    return [name for name in list_datasets() if name.startswith(incomplete)]


def complete_methods(incomplete: str) -> list[str]:
    """Lists of methods, separated by commas, whose last name begins with this text."""
    before, comma, last = incomplete.rpartition(",")
    given = before.split(",")
    return [f"{before}{comma}{name}" for name in method_names() if name.startswith(last) and name not in given]


def complete_run(incomplete: str) -> list[str]:
    """Folders of runs below the working folder whose path begins with this text."""
    found = sorted(str(path.parent) for pattern in ("*/run.json", "*/*/run.json") for path in Path().glob(pattern))
    return [path for path in found if path.startswith(incomplete)]


@cache
def _keys(path: str, variable: str) -> list[str]:
    """Keys of the dictionary that a module of this package assigns to `variable`."""
    for node in ast.parse((_HERE / path).read_text()).body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == variable:
            assert isinstance(node.value, ast.Dict)
            return [
                key.value for key in node.value.keys if isinstance(key, ast.Constant) and isinstance(key.value, str)
            ]
    raise AssertionError(f"{path} assigns no {variable}")


def _sources(package: str, kind: str = "") -> Iterator[str]:
    """Texts of the modules in `models`, or a folder in it, of an installed package, which is not imported."""
    spec = find_spec(package)
    for folder in (spec and spec.submodule_search_locations) or ():
        for path in sorted(Path(folder, "models", kind).glob("*.py")):
            yield path.read_text(encoding="utf-8")


def _by_number(name: str) -> list[int | str]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name.lower())]


def _registered(text: str) -> Iterator[str]:
    for given, function in _REGISTERED.findall(text):
        yield given or function
