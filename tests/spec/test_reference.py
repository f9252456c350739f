"""Every field of a job in words: the dry run's comments and docs/job.md."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Literal

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from raprune.cli import app
from raprune.spec.fields import DescribedField, DescribedTable, described
from raprune.spec.job import FLAGS, SearchSpec
from raprune.spec.reference import commented_job, document
from raprune.spec.toml import dump_spec, load_spec
from tests.spec.job_fields import LEAVES

DOCUMENT = Path(__file__).parents[2] / "docs" / "job.md"


def fields(table: DescribedTable, prefix: str = "") -> Iterator[tuple[str, DescribedField]]:
    for field in table.fields:
        yield prefix + field.name, field
    for inner in table.tables:
        yield from fields(inner, f"{inner.name}.")


FIELDS = dict(fields(described(SearchSpec)))


def test_document_is_what_the_command_writes() -> None:
    assert DOCUMENT.read_text() == document(), "run: uv run python -m raprune.spec.reference > docs/job.md"


def test_document_has_a_row_for_every_field() -> None:
    assert set(FIELDS) == set(LEAVES)
    rows = re.findall(r"^\| `(\w+)` \|", document(), re.MULTILINE)
    assert rows == [name.rpartition(".")[2] for name in FIELDS]


@pytest.mark.parametrize("name", FIELDS)
def test_field_is_described_by_a_sentence_of_one_line(name: str) -> None:
    field = FIELDS[name]
    assert re.match(r"[A-Z]", field.meaning) and field.meaning.endswith(".")
    assert not re.match(r"(What|Whether|Whose|Where|That|With|Of|None)\b", field.meaning)
    assert len(f"# {field.summary}") <= 100 and len(f"#{name.rpartition('.')[2]} =  # {field.default}") <= 100
    assert field.default != "`null`", f"{name}: say what holds without a value, in a sentence that starts with Default:"


def test_valid_values_are_said_in_words() -> None:
    class Model(BaseModel):
        share: float | None = Field(default=None, gt=0, le=1)
        count: int = Field(default=1, gt=0)
        port: int = Field(default=80, ge=1, le=65535)
        way: Literal["a", "b", "c"] = "a"
        names: tuple[str, ...] = ()
        steps: tuple[float, ...] = ()
        on: bool = True

    assert {field.name: field.valid for field in described(Model).fields} == {
        "share": "a number above 0 and at most 1",
        "count": "a whole number of at least 1",
        "port": "a whole number of at least 1 and at most 65535",
        "way": "`a`, `b` or `c`",
        "names": "a list of strings",
        "steps": "a list of numbers",
        "on": "true or false",
    }


@given(
    st.none() | st.floats(0.01, 1.0),
    st.none() | st.integers(1, 99),
    st.dictionaries(st.sampled_from(["l1", "l2", "a.b"]), st.dictionaries(st.text(max_size=4), st.integers(0, 9))),
    st.lists(st.text(st.characters(codec="utf-8"), max_size=9), max_size=3),
)
def test_dry_run_reads_back_equal(
    tmp_path_factory: pytest.TempPathFactory,
    params: float | None,
    workers: int | None,
    settings: dict[str, dict[str, int]],
    exclude: list[str],
) -> None:
    given = {"budget.params": params, "resources.workers": workers, "settings": settings, "exclude": exclude}
    spec = load_spec(None, {**given, "output": "run"})
    path = tmp_path_factory.getbasetemp() / "commented.toml"
    for text in (commented_job(spec), dump_spec(spec)):
        path.write_text(text)
        assert load_spec(path) == spec


def test_dry_run_has_every_field_with_a_comment_before_it() -> None:
    lines = commented_job(load_spec()).splitlines()
    table = ""
    seen = []
    for above, line in pairwise(lines):
        if header := re.fullmatch(r"\[(.+)\]", line):
            table = f"{header[1]}."
            name = header[1]
        elif setting := re.match(r"#?(\w+) =", line):
            name = table + setting[1]
        else:
            continue
        assert above.startswith("# ") and above.endswith("."), name
        seen.append(name)
    assert set(LEAVES) <= set(seen)


def test_dry_run_comments_out_only_what_has_no_value() -> None:
    text = commented_job(load_spec(None, {"budget.flops": 0.5, "finalists.train.lr": 0.02}))
    assert "\nflops = 0.5\n" in text and "\n#params =  # no limit\n" in text
    read = tomllib.loads(text)
    assert read["budget"] == {"flops": 0.5} and read["finalists"]["train"]["lr"] == 0.02


def test_flag_of_a_field_is_an_option_of_search() -> None:
    (search,) = [c for name, c in typer.main.get_command(app).commands.items() if name == "search"]  # type: ignore[attr-defined]
    options = {option: parameter.name for parameter in search.params for option in parameter.opts}
    assert set(FLAGS) <= set(LEAVES)
    assert {flag: options.get(flag) for flag in FLAGS.values()} == {
        flag: flag[2:].replace("-", "_") for flag in FLAGS.values()
    }
    others = {"--set", "--resume", "--dry-run", "job", "--help"}
    assert set(options) - set(FLAGS.values()) - others == set(), "a flag of a field is in FLAGS"
