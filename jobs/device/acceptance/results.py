"""Results of an acceptance run: lines with figures and bars, by section, as JSON."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

FORMAT = 1


class SectionState(StrEnum):
    """The state of a section: a section passed if it raised no error and met all bars."""

    RUNNING = "running"
    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, kw_only=True)
class Line:
    """One result: a figure with its unit, or a fact as text; judged by a bar, or only recorded."""

    name: str
    figure: float | None = None
    unit: str = ""
    text: str = ""
    bar: float | None = None
    more_is_better: bool = True
    passed: bool | None = None
    """None: recorded, not judged."""


@dataclass
class SectionResult:
    """The results of one section."""

    name: str
    state: SectionState = SectionState.RUNNING
    seconds: float = 0.0
    reason: str = ""
    """Reason for a skipped section, or the last line of the error."""
    traceback: str = ""
    lines: list[Line] = field(default_factory=list)

    @property
    def met(self) -> bool:
        """True if no line missed its bar."""
        return all(line.passed is not False for line in self.lines)


@dataclass
class Results:
    """The results of a run: the machine, and the sections in the order in which they ran."""

    machine: dict[str, str]
    """Card, driver, versions, commit and date."""
    sections: list[SectionResult] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """True if some section ran, and each that ran passed."""
        ran = [section for section in self.sections if section.state is not SectionState.SKIPPED]
        return bool(ran) and all(section.state is SectionState.PASSED for section in ran)

    def lines(self) -> Iterator[tuple[str, Line]]:
        """Yield each line with the name of its section."""
        for section in self.sections:
            yield from ((section.name, line) for line in section.lines)

    def save(self, path: Path) -> None:
        """Write the results as JSON, by a new file that is then renamed: a kill leaves the results before it."""
        part = path.with_suffix(".part")
        part.write_text(json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n")
        os.replace(part, path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read results that `save` wrote.

        Raises:
            SystemExit: if the file holds no results.
        """
        try:
            content: dict[str, Any] = json.loads(path.read_text())
            sections = [
                SectionResult(
                    **section
                    | {
                        "state": SectionState(section["state"]),
                        "lines": [Line(**line) for line in section["lines"]],
                    }
                )
                for section in content["sections"]
            ]
            return cls(content["machine"], sections)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SystemExit(f"{path}: holds no results of an acceptance run: {error}") from None


def judged(line: Line) -> Line:
    """Return `line` with `passed` by its bar; NaN and infinity never pass."""
    assert line.figure is not None and line.bar is not None
    met = line.figure >= line.bar if line.more_is_better else line.figure <= line.bar
    return Line(**{**asdict(line), "passed": met and math.isfinite(line.figure)})
