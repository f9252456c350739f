"""The leaf fields of a job, as pydantic has them."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from raprune.spec.job import SearchSpec


def leaves(part: type[BaseModel] = SearchSpec, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, info in part.model_fields.items():
        kind = info.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from leaves(kind, f"{prefix}{name}.")
        else:
            yield prefix + name, info


LEAVES = dict(leaves())
"""Dotted name of each field -> the field."""
