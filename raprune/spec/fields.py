"""The fields of a pydantic model in words: meaning, valid values, default, and sentences about invalid values."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import tomli_w
from pydantic import BaseModel, ConfigDict, ValidationError

VALID = "valid_values"
"""Key of a field's `json_schema_extra`: its valid values in words, where its type does not say them."""

_DEFAULT = re.compile(r"\s*Default: ([^.]*(?:\.(?!\s|$)[^.]*)*)\.")
_UP_TO_ONE = re.compile(r"(at most|below) 1\b")
_SENTENCE = re.compile(r"(.*?)\.(?=\s+[A-Z`0-9]|$)")


class Part(BaseModel):
    """A table of the job. The first sentence below a field is its line in `raprune search --dry-run`.

    A sentence that starts with "Default:" says what holds while the field has no value.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


PartT = TypeVar("PartT", bound=Part)


@dataclass(frozen=True, kw_only=True)
class DescribedField:
    """One field of a table, in words."""

    name: str
    valid: str
    """Its valid values: `a number above 0 and at most 1`."""
    default: str
    """Its default as code; for a field without one, a phrase that says what holds then."""
    meaning: str
    """Its docstring on one line, without the sentence on the default."""

    @property
    def summary(self) -> str:
        """The first sentence of its meaning, with its valid values where these are names."""
        first = _SENTENCE.match(self.meaning)
        sentence = first[1] if first else self.meaning
        return f"{sentence}: {self.valid}." if self.valid.startswith("`") else f"{sentence}."


@dataclass(frozen=True, kw_only=True)
class DescribedTable:
    """A model and its fields, in words. The top of the job has no name."""

    name: str
    meaning: str
    fields: tuple[DescribedField, ...]
    tables: tuple[DescribedTable, ...]

    def down(self, location: Sequence[Any]) -> tuple[DescribedTable | DescribedField, int]:
        """The last table or field on the way that a location takes from here, and the number of steps to it."""
        for field in self.fields:
            if location and field.name == location[0]:
                return field, 1
        for table in self.tables:
            if location and table.name.rpartition(".")[2] == location[0]:
                found, steps = table.down(location[1:])
                return found, steps + 1
        return self, 0

    @property
    def names(self) -> tuple[str, ...]:
        """Names of its fields and tables."""
        return tuple(field.name for field in self.fields) + tuple(t.name.rpartition(".")[2] for t in self.tables)


@cache
def described(model: type[BaseModel]) -> DescribedTable:
    """The model and all models in it."""
    schema = model.model_json_schema()
    return _table(schema, schema.get("$defs", {}), "")


def problems(
    error: ValidationError, model: type[BaseModel], values: Mapping[str, Any], flags: Mapping[str, str]
) -> list[str]:
    """Sentences that say what is wrong with `values`, which `model` refused with `error`: a text for each field.

    `flags` maps the dotted name of a field to its flag on the command line.
    """
    told: dict[str, str] = {}
    for problem in error.errors():
        location, kind = problem["loc"], problem["type"]
        found, depth = described(model).down(location)
        name = ".".join(map(str, location[:depth]))
        if kind == "extra_forbidden" and isinstance(found, DescribedTable):
            told[".".join(map(str, location))] = _unknown(location, found)
        elif kind == "value_error" and isinstance(found, DescribedTable):
            told[name] = f"{name}: {problem['msg'].removeprefix('Value error, ')}.".removeprefix(": ")
        else:
            came: Any = values
            for key in location[:depth]:
                came = came[key]
            told[name] = _refused(name, came, found, flags, is_infinite=kind == "finite_number")
    return list(told.values())


def no_table(name: str, came: object, table: DescribedTable) -> str:
    """The sentence for a value in the place of a table."""
    return f"{name} {_shown(came)}: must be a table with the fields {', '.join(table.names)}."


def _refused(
    name: str, came: object, found: DescribedTable | DescribedField, flags: Mapping[str, str], *, is_infinite: bool
) -> str:
    if isinstance(found, DescribedTable):
        return no_table(name, came, found)
    label = f"{name} ({flags[name]})" if name in flags else name
    advice = _percentage(came) if _UP_TO_ONE.search(found.valid) else ""
    return f"{label} {_shown(came)}: must be {'finite, ' if is_infinite else ''}{found.valid}.{advice}"


def _unknown(location: tuple[Any, ...], table: DescribedTable) -> str:
    close = difflib.get_close_matches(str(location[-1]), table.names, n=1)
    meant = f" Did you mean {'.'.join([*map(str, location[:-1]), *close])}?" if close else ""
    return f"{'.'.join(map(str, location))}: no such field.{meant} Valid here: {', '.join(table.names)}."


def _percentage(came: object) -> str:
    """Hint for a number from 2 to 100, which is meant as a percentage."""
    number = re.fullmatch(r"\s*([0-9.]+)\s*%?\s*", str(came))
    try:
        percent = float(number[1]) if number else 0.0
    except ValueError:
        return ""
    return f" For {percent:g} %: {percent / 100:g}." if 2 <= percent <= 100 else ""


def _shown(value: object) -> str:
    """A value as the user wrote it: 30 for 30.0, and for a flag's text 30."""
    if isinstance(value, str) and re.fullmatch(r"-?[0-9.]+", value):
        return value
    return f"{value:.12g}" if isinstance(value, float) else repr(value)


def toml_value(value: Any) -> str:
    """A number, a string, a list of these or an empty table in TOML, on one line."""
    if value == {}:
        return "{}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(toml_value, value))}]"
    return tomli_w.dumps({"value": value}).removeprefix("value = ").rstrip("\n")


def toml_key(key: str) -> str:
    """A key in TOML, quoted if needed."""
    return tomli_w.dumps({key: 0}).removesuffix(" = 0\n")


def _table(schema: Mapping[str, Any], models: Mapping[str, Any], name: str) -> DescribedTable:
    fields, tables = [], []
    for key, field in schema["properties"].items():
        if "$ref" in field:
            inner = models[field["$ref"].rpartition("/")[2]]
            tables.append(_table(inner, models, f"{name}.{key}" if name else key))
        else:
            fields.append(_field(key, field))
    return DescribedTable(
        name=name, meaning=_one_line(schema.get("description", "")), fields=tuple(fields), tables=tuple(tables)
    )


def _field(name: str, schema: Mapping[str, Any]) -> DescribedField:
    text = _one_line(schema.get("description", ""))
    said, value = _DEFAULT.search(text), schema.get("default")
    return DescribedField(
        name=name,
        valid=_valid(schema),
        default=(said[1] if said else "none") if value is None else f"`{toml_value(value)}`",
        meaning=_DEFAULT.sub("", text, count=1),
    )


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _valid(schema: Mapping[str, Any]) -> str:
    if VALID in schema:
        return str(schema[VALID])
    if "anyOf" in schema:
        return _choice([_valid(kind) for kind in schema["anyOf"] if kind.get("type") != "null"])
    if "enum" in schema or "const" in schema:
        return _choice([f"`{value}`" for value in schema.get("enum", [schema.get("const")])])
    match schema.get("type"):
        case "boolean":
            return "true or false"
        case "string":
            return "a string"
        case "object":
            return "a table"
        case "array":
            nouns, limits = _plural(schema["items"])
            least = f"at least {schema['minItems']}" if "minItems" in schema else ""
            return f"a list of {nouns}" + (f", each {limits}" if limits else "") + (f", {least}" if least else "")
        case "integer" | "number":
            noun = "whole number" if schema["type"] == "integer" else "number"
            limits = _limits(schema)
            return f"a {noun} {'of ' if limits.startswith('at') else ''}{limits}".rstrip()
    raise AssertionError(f"no words for {schema}")


def _plural(schema: Mapping[str, Any]) -> tuple[str, str]:
    nouns = {"string": "strings", "integer": "whole numbers", "number": "numbers"}
    return nouns[schema["type"]], _limits(schema)


def _limits(schema: Mapping[str, Any]) -> str:
    words = []
    whole = schema["type"] == "integer"
    for key, word in (("exclusiveMinimum", "above"), ("minimum", "at least"), ("exclusiveMaximum", "below"),
                      ("maximum", "at most")):  # fmt: skip
        if key in schema:
            limit = schema[key]
            if whole and key == "exclusiveMinimum":
                word, limit = "at least", limit + 1
            words.append(f"{word} {limit:g}")
    return " and ".join(words)


def _choice(words: list[str]) -> str:
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


FLOATS = "float images, taken as they are"
"""Origin of the normalisation of images that are not normalised."""


def normalisation_in_words(mean: Sequence[float], std: Sequence[float], origin: str) -> str:
    """Mean and standard deviation of each channel with their origin; `none` for float images."""
    figures = ", ".join(
        f"{name} ({', '.join(f'{value:.4g}' for value in values)})" for name, values in (("mean", mean), ("std", std))
    )
    return f"{'none' if origin == FLOATS else figures} ({origin})"
