"""A docstring begins as a sentence with a verb or as a noun phrase, never with a word that hides its noun."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import raprune

ROOT = Path(raprune.__file__).parent

FORBIDDEN = {"What", "Whether", "Whose", "Where", "That", "With", "Of"}
"""First words of a docstring that is neither a sentence nor a noun phrase with its noun."""


def docstrings(source: str) -> Iterator[tuple[int, str]]:
    """Yield the line and text of every docstring, of modules, classes, functions and fields alike."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.lineno, node.value.value


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_docstring_begins_with_a_verb_or_a_noun(path: Path) -> None:
    found = [(line, text.split("\n")[0]) for line, text in docstrings(path.read_text()) if text.strip()]
    assert [(line, text) for line, text in found if text.split()[0].rstrip(",.:;") in FORBIDDEN] == []
