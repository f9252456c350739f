"""Fills in the tables of `docs/results.md` from those of the benchmarks: `uv run python jobs/results.py`.

A pair of comments in `docs/results.md` names the file that stands between them:

    <!-- from jobs/benchmarks/records.md -->
    <!-- end -->

Between them comes the file without its title: its first paragraph, which says how, when, at which commit and on which
machine it was made, and its tables. `--check` changes nothing and fails if the page is not up to date.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "results.md"
PLACE = re.compile(r"<!-- from (\S+) -->\n.*?<!-- end -->", re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if the page is out of date")
    check = parser.parse_args().check
    before = PAGE.read_text()
    after = filled(before, ROOT)
    if check:
        sys.exit(0 if after == before else f"{PAGE.name} is out of date: run `uv run python jobs/results.py`.")
    PAGE.write_text(after)


def filled(page: str, root: Path) -> str:
    """Return the text of the page with the present tables in their places."""

    def place(match: re.Match[str]) -> str:
        return f"<!-- from {match[1]} -->\n{without_title((root / match[1]).read_text())}\n<!-- end -->"

    return PLACE.sub(place, page)


def without_title(text: str) -> str:
    """Return a Markdown file without its title and with its sections one level lower."""
    title, _, rest = text.partition("\n")
    assert title.startswith("# "), title
    return re.sub(r"^#", "##", rest.strip(), flags=re.MULTILINE)


if __name__ == "__main__":
    main()
