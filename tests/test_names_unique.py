"""A public name of a class or a type alias occurs once in the package, so that the name identifies the type."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import raprune

ROOT = Path(raprune.__file__).parent


def public_types(tree: ast.Module) -> Iterator[str]:
    """Yield the names of all public classes of a module, and of its type aliases and type variables."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            yield node.name
    for statement in tree.body:
        if isinstance(statement, ast.Assign):
            names = [target.id for target in statement.targets if isinstance(target, ast.Name)]
            # Types are in CapWords; a constant is in capitals, and a function lower case.
            yield from (name for name in names if name[:1].isupper() and not name.isupper())


def test_public_name_of_a_type_occurs_once() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for path in sorted(ROOT.rglob("*.py")):
        for name in public_types(ast.parse(path.read_text())):
            if not name.startswith("_"):
                places[name].append(str(path.relative_to(ROOT)))
    assert {name: where for name, where in places.items() if len(where) > 1} == {}
