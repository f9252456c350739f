"""The page's files, read: nothing from elsewhere, no markup out of data, nothing that its policy would refuse."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import raprune

STATIC = Path(raprune.__path__[0]) / "page" / "static"
SCRIPTS = sorted(STATIC.glob("*.js"))
PAGES = sorted(STATIC.glob("*.html"))
of_pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def loaded_by(page: Path) -> set[str]:
    """The scripts that a page runs, and the modules that these import."""
    todo, found = re.findall(r'<script[^>]* src="\./static/([^"]+)"', page.read_text()), set()
    while todo:
        name = todo.pop()
        if name not in found:
            found.add(name)
            todo += re.findall(r'from "\./([^"]+)"', (STATIC / name).read_text())
    return found


@of_pages
def test_page_names_each_of_its_scripts_and_no_other_file(page: Path) -> None:
    named = set(re.findall(r'(?:src|href)="\./static/([^"]+)"', page.read_text()))
    scripts = {name for name in named if name.endswith(".js")}
    assert scripts == loaded_by(page), "modules that are not named are fetched one after another"
    assert all((STATIC / name).is_file() for name in named)


def test_script_without_a_page_does_not_exist() -> None:
    assert {path.name for path in SCRIPTS} == set().union(*map(loaded_by, PAGES))


def test_addresses_are_all_relative() -> None:
    """The page may be served below any address."""
    assert [re.findall(r'(?:src|href)="(?!\./|#)[^"]*"', page.read_text()) for page in PAGES] == [[] for _ in PAGES]
    for path in STATIC.iterdir():
        found = re.findall(r"(?:https?:)?//[\w.-]+\.\w+[\w/.-]*", path.read_text())
        assert set(found) <= {"http://www.w3.org/2000/svg"}, path.name


@of_pages
def test_markup_holds_no_script_and_no_style(page: Path) -> None:
    assert re.findall(r"<script(?![^>]*\bsrc=)", page.read_text()) == []
    assert re.findall(r"\s(?:on\w+|style)=", page.read_text()) == []


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_never_turn_data_into_markup(path: Path) -> None:
    forbidden = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|DOMParser|srcdoc"
    assert re.findall(forbidden, path.read_text()) == []


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_begin_with_a_comment_and_have_short_lines(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert lines[0].startswith("/*")
    assert [number for number, line in enumerate(lines, start=1) if len(line) > 120] == []
