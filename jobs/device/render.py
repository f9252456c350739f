"""Write the section "On a GPU" of `docs/results.md`: `uv run python jobs/device/render.py`.

The table is that of the latest file in `jobs/device/results/`. Only whole runs on a GPU count, no dry runs, none on a
CPU.
Without one the section says so. `--text FILE` prints any results as a table of 80 columns instead.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from acceptance.results import Results
from acceptance.tables import as_markdown, as_text

FOLDER = Path(__file__).with_name("results")
DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "results.md"
BEGIN, END = "## On a GPU\n", "\n## "
"""First line of the section, and the beginning of the section behind it."""
NO_RUN = """
No run on a GPU has been made yet: every figure on this page is of a CPU. `jobs/device/accept.py` measures and judges
what only a GPU can show, and runs in small on a CPU; [jobs/device](../jobs/device) says how.
"""
RUN = """
The acceptance run of `jobs/device/accept.py`; [jobs/device](../jobs/device) says how it is made. The bars are those of
an H100. Results: `jobs/device/results/{file}`.

"""


def main() -> None:
    """Write the section, or print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, metavar="FILE", help="print these results as text; write nothing")
    options = parser.parse_args()
    if options.text is not None:
        print(as_text(Results.load(options.text)))
        return
    DOCUMENT.write_text(with_section(DOCUMENT.read_text(), section(FOLDER)))


def section(folder: Path) -> str:
    """Return the section's text for the results in `folder`."""
    runs = [(path, Results.load(path)) for path in sorted(folder.glob("*.json"))]
    counting = [(path, run) for path, run in runs if is_whole_run_on_gpu(run)]
    if not counting:
        return NO_RUN
    path, run = max(counting, key=lambda pair: pair[1].machine["date"])
    return f"{RUN.format(file=path.name)}{as_markdown(run)}\n"


def is_whole_run_on_gpu(run: Results) -> bool:
    """Return True for results that may stand in the documents."""
    return run.machine.get("device", "cpu") != "cpu" and run.machine.get("mode") == "full"


def with_section(document: str, text: str) -> str:
    """Return `document` with `text` as its section on a GPU, which is added at the end if it is not there."""
    before, found, rest = document.partition(BEGIN)
    if not found:
        return f"{document.rstrip()}\n\n{BEGIN}{text}"
    _, next_one, after = rest.partition(END)
    return f"{before}{BEGIN}{text}{next_one}{after}"


if __name__ == "__main__":
    main()
