"""The page's files, read: nothing from elsewhere, no markup out of data, nothing that its policy would refuse."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import raprune

STATIC = Path(raprune.__path__[0]) / "page" / "static"
SCRIPTS = sorted(STATIC.glob("*.js"))
INDEX = (STATIC / "index.html").read_text()


def test_the_page_names_each_of_its_scripts_and_no_other_file() -> None:
    named = set(re.findall(r'(?:src|href)="\./static/([^"]+)"', INDEX))
    assert {path.name for path in SCRIPTS} <= named, "modules that are not named are fetched one after another"
    assert all((STATIC / name).is_file() for name in named)


def test_all_addresses_are_relative() -> None:
    """The page may be served below any address."""
    assert re.findall(r'(?:src|href)="(?!\./|#)[^"]*"', INDEX) == []
    for path in STATIC.iterdir():
        found = re.findall(r"(?:https?:)?//[\w.-]+\.\w+[\w/.-]*", path.read_text())
        assert set(found) <= {"http://www.w3.org/2000/svg"}, path.name


def test_the_markup_holds_no_script_and_no_style() -> None:
    assert re.findall(r"<script(?![^>]*\bsrc=)", INDEX) == []
    assert re.findall(r"\s(?:on\w+|style)=", INDEX) == []


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_make_no_markup_of_data(path: Path) -> None:
    forbidden = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|DOMParser|srcdoc"
    assert re.findall(forbidden, path.read_text()) == []


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_say_what_they_are_in_lines_of_the_house(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert lines[0].startswith("/*")
    assert [number for number, line in enumerate(lines, start=1) if len(line) > 120] == []
