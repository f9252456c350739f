"""A message says the same of a bad value, by whichever command and in whichever way it was given."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from raprune.cli import app

SHARE = "must be a number above 0 and at most 1."
LATENCY = "must be a fraction of the dense network's latency, above 0 and at most 1, or a time such as 3ms."

CASES = [
    ("budget.flops", 30, f"30: {SHARE} For 30 %: 0.3."),
    ("budget.flops", 50, f"50: {SHARE} For 50 %: 0.5."),
    ("budget.flops", 1.01, f"1.01: {SHARE}"),
    ("budget.flops", 0, f"0: {SHARE}"),
    ("budget.flops", -0.1, f"-0.1: {SHARE}"),
    ("budget.flops", "30%", f"'30%': {SHARE} For 30 %: 0.3."),
    ("budget.flops", "lots", f"'lots': {SHARE}"),
    ("budget.params", 12.5, f"12.5: {SHARE} For 12.5 %: 0.125."),
    ("budget.params", 0, f"0: {SHARE}"),
    ("budget.latency", "30", f"30: {LATENCY} For 30 %: 0.3."),
    ("budget.latency", "150%", f"'150%': {LATENCY}"),
    ("budget.latency", "0ms", f"'0ms': {LATENCY}"),
    ("budget.latency", "fast", f"'fast': {LATENCY}"),
    ("min_accuracy", 95, f"95: {SHARE} For 95 %: 0.95."),
    ("min_accuracy", 0, f"0: {SHARE}"),
    ("max_drop", 5, "5: must be a number of at least 0 and below 1. For 5 %: 0.05."),
    ("max_drop", -1, "-1: must be a number of at least 0 and below 1."),
]
FIELDS = sorted({field for field, _, _ in CASES})
BY_FLAG = {"search": FIELDS, "pick": [field for field in FIELDS if field != "max_drop"]} | {
    command: [field for field in FIELDS if field.startswith("budget")] for command in ("check", "prune")
}
"""Command -> the fields that it has a flag for."""


@pytest.mark.parametrize(("field", "value", "told"), CASES, ids=[f"{case[0]}={case[1]}" for case in CASES])
def test_bad_value_is_refused_with_one_message(field: str, value: float | str, told: str, tmp_path: Path) -> None:
    flag, text, job = f"--{re.sub('[._]', '-', field)}", json.dumps(value), tmp_path / "job.toml"
    job.write_text(f"{field} = {text}\n")
    asked = [[command, *(["RUN"] if command == "pick" else []), f"{flag}={value}"] for command in BY_FLAG]
    asked = [words for words in asked if field in BY_FLAG[words[0]]]
    asked += [[command, "--set", f"{field}={text}"] for command in ("search", "check", "prune")]
    for words in asked:
        done = CliRunner(env={"COLUMNS": "200"}).invoke(app, words)
        assert done.exit_code == 2, words
        assert done.stderr.splitlines()[0] == f"Error: {field} ({flag}) {told}", words
        assert done.stderr.splitlines()[1].startswith("docs/job.md describes every field")
    for command in ("search", "check", "prune"):
        done = CliRunner(env={"COLUMNS": "200"}).invoke(app, [command, str(job)])
        assert done.stderr.splitlines()[0] == f"Error: {job}: {field} ({flag}) {told}"
