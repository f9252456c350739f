"""The fields of a pydantic model in words: what each one means, which values are valid, what holds by default."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

VALID = "valid_values"
"""Key of a field's `json_schema_extra`: its valid values in words, where its type does not say them."""

_DEFAULT = re.compile(r"\s*Default: ([^.]*(?:\.(?!\s|$)[^.]*)*)\.")
_SENTENCE = re.compile(r"(.*?)\.(?=\s+[A-Z`0-9]|$)")


@dataclass(frozen=True, kw_only=True)
class DescribedField:
    """One field of a table, in words."""

    name: str
    valid: str
    """Its valid values: `a number above 0 and at most 1`."""
    default: str
    """Its default as code, or, where that is no value, what holds then."""
    meaning: str
    """Its docstring on one line, without what holds by default."""

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

    def at(self, location: tuple[Any, ...]) -> DescribedTable | DescribedField | None:
        """The field that a location leads to or into, or the table; None where there is no such name."""
        if not location:
            return self
        for field in self.fields:
            if field.name == location[0]:
                return field
        for table in self.tables:
            if table.name.rpartition(".")[2] == location[0]:
                return table.at(location[1:])
        return None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of its fields and tables."""
        return tuple(field.name for field in self.fields) + tuple(t.name.rpartition(".")[2] for t in self.tables)


def described(model: type[BaseModel]) -> DescribedTable:
    """The model and all models in it."""
    schema = model.model_json_schema()
    return _table(schema, schema.get("$defs", {}), "")


def toml_value(value: Any) -> str:
    """A number, string or list in TOML.

    JSON writes these as TOML does, but for DEL, which TOML wants escaped.
    """
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def toml_key(key: str) -> str:
    """A key in TOML, quoted where it must be."""
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else toml_value(key)


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
        default=said[1] if said and value is None else f"`{toml_value(value)}`",
        meaning=_DEFAULT.sub("", text, count=1),
    )


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _valid(schema: Mapping[str, Any]) -> str:
    if VALID in schema:
        return str(schema[VALID])
    if "anyOf" in schema:
        return _choice([_valid(kind) for kind in schema["anyOf"] if kind.get("type") != "null"])
    if "enum" in schema:
        return _choice([f"`{value}`" for value in schema["enum"]])
    match schema.get("type"):
        case "boolean":
            return "true or false"
        case "string":
            return "a string"
        case "object":
            return "a table"
        case "array":
            nouns, limits = _plural(schema["items"])
            return f"a list of {nouns}" + (f", each {limits}" if limits else "")
        case "integer" | "number":
            noun = "whole number" if schema["type"] == "integer" else "number"
            limits = _limits(schema)
            return f"a {noun} {'of ' if limits.startswith('at') else ''}{limits}".rstrip()
    raise NotImplementedError(f"no words for {schema}")


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
