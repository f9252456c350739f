"""Setting one field of a job changes one field: in flags, in TOML and in Python."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import reduce
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from pydantic import BaseModel
from typer.testing import CliRunner

from raprune.cli import app
from raprune.errors import UsageError
from raprune.spec.job import DenseTrainSpec, FinalistSpec, FinetuneSpec, SearchSpec, TrainSpec
from raprune.spec.toml import load_spec, to_toml
from tests.spec.job_fields import LEAVES

BASE: dict[str, Any] = {
    "data.name": "parquet",
    "data.train": "/train.parquet",
    "teacher.name": "mynets:trained",
    "budget.flops": 0.5,
    "output": "run",
}
"""A job without the two fields that follow others: the FLOPs of a job that asks for nothing, and the name of its run.
Its data and its teacher can have files."""

VALUES = (
    True,
    False,
    2,
    3,
    0.25,
    0.75,
    "/x",
    "http://x:1",
    "x:y",
    ["/x"],
    ["mlflow"],
    [0.0, 0.5],
    [0.5, 0.25],
    {"x": 1},
    {"l2": {"x": 1}},
)
"""For every field at least one of these is valid and not its default."""


def flat(spec: SearchSpec) -> dict[str, Any]:
    """Dotted name of each leaf -> its value."""
    dumped = spec.model_dump(mode="json")
    return {name: reduce(lambda part, key: part[key], name.split("."), dumped) for name in LEAVES}


def nested(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields as a job's tables hold them."""
    tables: dict[str, Any] = {}
    for dotted, value in fields.items():
        *parents, leaf = dotted.split(".")
        reduce(lambda table, key: table.setdefault(key, {}), parents, tables)[leaf] = value
    return tables


def built(part: type[BaseModel], values: dict[str, Any]) -> Any:
    """The part as Python code writes it: each part inside by its own class."""
    inside = {name: part.model_fields[name].annotation for name in values}
    return part(
        **{
            name: built(kind, values[name]) if isinstance(kind, type) and issubclass(kind, BaseModel) else values[name]
            for name, kind in inside.items()
        }
    )


def literals(annotation: Any) -> Iterator[Any]:
    if get_origin(annotation) is Literal:
        yield from get_args(annotation)
    for inner in get_args(annotation):
        yield from literals(inner)


def other(field: str) -> tuple[Any, SearchSpec]:
    """A valid value that the field does not have in the job of `BASE`, and the job with that value."""
    before = flat(load_spec(None, BASE))
    for value in (*literals(LEAVES[field].annotation), *VALUES):
        try:
            spec = load_spec(None, BASE | {field: value})
        except UsageError:
            continue
        if flat(spec)[field] != before[field]:
            return value, spec
    raise AssertionError(f"no value for {field}: add one to VALUES")


@pytest.mark.parametrize("field", LEAVES)
def test_field_set_alone_changes_no_other(field: str, tmp_path: Path) -> None:
    before = flat(load_spec(None, BASE))
    value, spec = other(field)
    fields = BASE | {field: value}
    path = tmp_path / "job.toml"
    path.write_text(to_toml(nested(fields)))
    for way, given in {
        "overrides": spec,
        "TOML": load_spec(path),
        "override of a job": load_spec(_job(tmp_path), {field: value}),
        "Python": built(SearchSpec, nested(fields)),
    }.items():
        assert {name for name, now in flat(given).items() if now != before[name]} == {field}, way


def _job(folder: Path) -> Path:
    path = folder / "base.toml"
    path.write_text(to_toml(nested(BASE)))
    return path


def test_no_part_has_an_instance_with_values_of_its_own_as_default() -> None:
    def check(part: type[BaseModel]) -> None:
        for name, info in part.model_fields.items():
            if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
                assert not info.default.model_fields_set, f"{part.__name__}.{name}"
                assert type(info.default) is info.annotation
                check(info.annotation)

    check(SearchSpec)


@pytest.mark.parametrize("field", TrainSpec.model_fields)
def test_plain_train_spec_changes_only_what_was_given_to_it(field: str) -> None:
    value, _ = other(f"finalists.train.{field}")
    plain = TrainSpec.model_validate({field: value})
    assert FinalistSpec.model_validate({"train": plain}).train == FinetuneSpec.model_validate({field: value})
    assert SearchSpec.model_validate({"dense": plain}).dense == DenseTrainSpec.model_validate({field: value})


@pytest.mark.parametrize(
    ("flags", "field", "kept"),
    [
        (["--epochs", "7"], "finalists.train.epochs", "finalists.train.lr"),
        (["--set", "finalists.train.lr=0.02"], "finalists.train.lr", "finalists.train.epochs"),
        (["--set", "dense.momentum=0.8"], "dense.momentum", "dense.epochs"),
    ],
)
def test_flag_changes_only_its_field(flags: list[str], field: str, kept: str, tmp_path: Path) -> None:
    base = [text for name, value in BASE.items() for text in ("--set", f"{name}={json.dumps(value)}")]
    done = CliRunner().invoke(app, ["search", "--dry-run", *base, *flags])
    assert done.exit_code == 0, done.stderr
    path = tmp_path / "job.toml"
    path.write_text(done.stdout)
    before, after = flat(load_spec(None, BASE)), flat(load_spec(path))
    assert {name for name in before if before[name] != after[name]} == {field}
    assert after[kept] == before[kept]
