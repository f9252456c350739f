"""Results of an acceptance run as text of 80 columns, and as Markdown for `docs/results.md`."""

from __future__ import annotations

import textwrap
from collections import Counter

from acceptance.results import Line, Results, SectionResult, SectionState

WIDTH = 80
VERDICTS = {True: "pass", False: "FAIL", None: ""}


def as_text(results: Results) -> str:
    """Return a table of 80 columns: verdict, name, figure and bar of each line, under its section."""
    rows = [f"{key}: {value}" for key, value in results.machine.items()]
    for section in results.sections:
        rows += ["", f"{section.name}: {_state(section)}"]
        for line in section.lines:
            rows += _wrapped(VERDICTS[line.passed].ljust(4), line.name, f"{shown(line)}{_bar(line)}")
    return "\n".join([*(row[:WIDTH] for row in rows), "", summary(results)])


def summary(results: Results) -> str:
    """Return one sentence on how many lines passed and which sections did not."""
    counts = Counter(line.passed for _, line in results.lines())
    by_state: dict[SectionState, list[str]] = {}
    for section in results.sections:
        by_state.setdefault(section.state, []).append(section.name)
    states = "; ".join(f"{state.value}: {', '.join(names)}" for state, names in by_state.items())
    text = f"{counts[True]} lines passed, {counts[False]} failed, {counts[None]} were recorded. Sections {states}."
    return "\n".join(textwrap.wrap(text, WIDTH))


def as_markdown(results: Results) -> str:
    """Return the machine, a table of all lines, and the sections that did not run or raised an error."""
    parts = [", ".join(f"{key} {value}" for key, value in results.machine.items()) + "."]
    parts += ["", "| section | result | figure | bar | |", "| --- | --- | --- | --- | --- |"]
    for name, line in results.lines():
        verdict = {True: "met", False: "**missed**", None: ""}[line.passed]
        cells = (name, line.name, shown(line), _bar(line).removeprefix(" (").removesuffix(")"), verdict)
        parts.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
    for section in results.sections:
        if section.reason:
            parts += ["", f"Section {section.name}: {_state(section)}."]
    return "\n".join("\n".join(textwrap.wrap(part, 120)) if not part.startswith("|") else part for part in parts)


def shown(line: Line) -> str:
    """Return the figure with its unit, and the text."""
    figure = "" if line.figure is None else f"{number(line.figure)} {line.unit}".strip()
    return ", ".join(part for part in (figure, line.text) if part)


def number(value: float) -> str:
    """Return `value` with three digits, or in whole thousands with commas."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _bar(line: Line) -> str:
    if line.bar is None:
        return ""
    return f" (at {'least' if line.more_is_better else 'most'} {number(line.bar)})"


def _state(section: SectionResult) -> str:
    took = f", {section.seconds:.0f} s" if section.seconds else ""
    return f"{section.state.value}{took}{f', {section.reason}' if section.reason else ''}"


def _wrapped(verdict: str, name: str, value: str) -> list[str]:
    text = f"{name}: {value}"
    return textwrap.wrap(text, WIDTH, initial_indent=f"{verdict} ", subsequent_indent=" " * 7)
