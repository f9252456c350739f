"""Jobs as TOML: read with overrides laid over them, checked once, and written."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from raprune.errors import UsageError
from raprune.spec.budget import EARLIER, with_budget_table
from raprune.spec.fields import DescribedTable, PartT, described, no_table, problems, toml_key, toml_value
from raprune.spec.job import FLAGS, PATHS, Limits, SearchSpec

_REFERENCE = "docs/job.md describes every field; `raprune search --dry-run` prints the job with all of them."


def load_spec(path: Path | None = None, overrides: dict[str, Any] | None = None) -> SearchSpec:
    """The spec of a TOML file with `overrides` (dotted field -> value) laid over it.

    Paths in the file are relative to the file, those in `overrides` to the working folder. Both may name environment
    variables: `${NAME}` or `${NAME:-default}`.

    Raises:
        UsageError: if the file is missing or not TOML, or a field is unknown or out of range.
    """
    values = {} if path is None else _read_toml(path)
    values = with_budget_table(values)
    for given, value in (overrides or {}).items():
        dotted = EARLIER.get(given, given)
        if dotted == "budget.latency" and isinstance(values.get("budget"), dict):
            # A time in the file is another form of the same limit.
            values["budget"].pop("latency_ms", None)
        if dotted == "budget.memory" and isinstance(values.get("budget"), dict):
            values["budget"].pop("memory_bytes", None)
        _set(values, dotted, _resolved(value, Path.cwd()) if dotted in PATHS else value)
    return _validated(SearchSpec, values, where=f"{path}: " if path else "")


def load_limits(values: Mapping[str, Any]) -> Limits:
    """The limits of these fields of a job: dotted field -> value, as `load_spec` takes its overrides.

    Raises:
        UsageError: if a value is out of range, with the text of `load_spec`.
    """
    nested: dict[str, Any] = {}
    for given, value in values.items():
        _set(nested, EARLIER.get(given, given), value)
    return _validated(Limits, nested)


def dump_spec(spec: SearchSpec) -> str:
    """The spec as TOML that `load_spec` reads back to an equal one; fields without a value are left out."""
    return to_toml(spec.model_dump(mode="json", exclude_none=True))


def to_toml(fields: Mapping[str, Any], *, table: str = "") -> str:
    """Fields of a job, or of a `table` of it, as TOML: numbers, strings, lists of these, and tables.

    Keys and values are written by `tomli_w`, each list on one line, where `tomli_w` takes a line for each entry.
    """
    return "\n".join(_toml_lines(fields, table)) + "\n"


def _toml_lines(table: Mapping[str, Any], name: str = "") -> list[str]:
    lines = [f"{toml_key(key)} = {toml_value(value)}" for key, value in table.items() if not isinstance(value, dict)]
    if name and (lines or not table):
        lines = ["", f"[{name}]", *lines]
    for key, value in table.items():
        if isinstance(value, dict):
            lines += _toml_lines(value, f"{name}.{toml_key(key)}" if name else toml_key(key))
    return lines


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file.", hint="Give the path of a TOML job; see jobs/.") from None
    except IsADirectoryError:
        raise UsageError(f"{path}: a folder, not a TOML job.", hint="Give the path of a TOML job.") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{path}: not readable as TOML: {error}", hint="See jobs/ for complete examples.") from None
    for dotted in PATHS:
        *tables, key = dotted.split(".")
        part = values.get(tables[0]) if tables else values
        if isinstance(part, dict) and key in part:
            part[key] = _resolved(part[key], path.absolute().parent)
    return values


def _set(values: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, leaf = dotted.split(".")
    table = values
    for depth, parent in enumerate(parents, start=1):
        table = table.setdefault(parent, {})
        if not isinstance(table, dict):
            found, _ = described(SearchSpec).down(parents[:depth])
            wrong = f"{dotted}: no such field."
            if isinstance(found, DescribedTable):
                wrong = no_table(".".join(parents[:depth]), table, found)
            raise UsageError(wrong, hint=_REFERENCE)
    table[leaf] = value


def _resolved(value: Any, folder: Path) -> Any:
    """Resolve the paths of a field; other values are left for the check of their type."""
    if isinstance(value, list | tuple):
        return [_resolved(one, folder) for one in value]
    return _resolve_path(value, folder) if isinstance(value, str) else value


def _resolve_path(text: str, folder: Path) -> str:
    """`text` with environment variables filled in, and made relative to `folder` unless absolute or a URI."""

    def fill(match: re.Match[str]) -> str:
        name, default = match["name"], match["default"]
        if name in os.environ:
            value = os.environ[name]
            return value if "://" in value else str(Path(value).absolute())
        if default is None:
            raise UsageError(
                f"The job names the environment variable {name}, which is not set.",
                hint=f"Set it: export {name}=...",
            )
        return default

    text = re.sub(r"\$\{(?P<name>\w+)(?::-(?P<default>[^}]*))?\}", fill, text)
    return text if "://" in text or Path(text).is_absolute() else str(folder / text)


def _validated(model: type[PartT], values: Mapping[str, Any], *, where: str = "") -> PartT:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise UsageError(where + "\n".join(problems(error, model, values, FLAGS)), hint=_REFERENCE) from None
