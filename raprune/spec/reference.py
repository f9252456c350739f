"""Every field of a job: the job that `raprune search --dry-run` prints, and the reference `docs/job.md`.

`uv run python -m raprune.spec.reference > docs/job.md` writes the latter.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from raprune.spec.fields import DescribedField, DescribedTable, described, toml_value
from raprune.spec.job import FLAGS, SearchSpec
from raprune.spec.toml import to_toml

_DRY_RUN = """\
# The job with every field. A field that begins with # has no value. docs/job.md describes each.

"""

_DOCUMENT = """\
<!-- Written by `uv run python -m raprune.spec.reference > docs/job.md` from raprune/spec/job.py: change it there. -->

# Every field of a job

A job is a TOML file, flags, or both: `raprune search job.toml --seed 1` overrides a field of the file. A field without
a flag of its own is set by `--set`, for example `--set finalists.train.lr=0.02`. Setting one field leaves all others as
they are. `raprune search --dry-run` prints the job with every field.

Paths in a file are relative to the file, those in flags to the working folder. `${NAME}` in a path is an environment
variable, `${NAME:-folder}` one with a default. A budget, an accuracy and every other fraction is a number: 0.3 is 30 %.

Jobs and runs from before the table `[budget]` are still read: `budget_flops = 0.3` at the top of a job is `flops = 0.3`
in its table `[budget]`, and likewise `budget_params` and `budget_latency`.
"""


def commented_job(spec: SearchSpec) -> str:
    """The spec as TOML with a comment for each field; `load_spec` reads it back to an equal spec.

    Fields without a value are commented out.
    """
    return _DRY_RUN + "\n".join(_commented(spec.model_dump(mode="json"), described(SearchSpec))) + "\n"


def document() -> str:
    """The reference of all fields, as Markdown."""
    return _DOCUMENT + "".join(_section(table) for table in _all(described(SearchSpec)))


def _commented(values: Mapping[str, Any], table: DescribedTable) -> Iterator[str]:
    free = [field for field in table.fields if isinstance(values[field.name], dict)]
    for field in table.fields:
        if field not in free:
            value = values[field.name]
            yield f"# {field.summary}"
            yield f"#{field.name} =  # {field.default}" if value is None else f"{field.name} = {toml_value(value)}"
    for field in free:
        name = f"{table.name}.{field.name}" if table.name else field.name
        # The lines of a table begin with an empty one.
        yield f"\n# {field.summary}{to_toml(values[field.name], table=name).rstrip()}"
    for inner in table.tables:
        yield f"\n# {inner.meaning}\n[{inner.name}]"
        yield from _commented(values[inner.name.rpartition(".")[2]], inner)


def _all(table: DescribedTable) -> Iterator[DescribedTable]:
    yield table
    for inner in table.tables:
        yield from _all(inner)


def _section(table: DescribedTable) -> str:
    title, about = (f"`[{table.name}]`", table.meaning) if table.name else ("At the top", "Fields outside any table.")
    rows = "".join(_row(field, f"{table.name}.{field.name}" if table.name else field.name) for field in table.fields)
    heads = "| field | flag | valid values | default | meaning |\n| --- | --- | --- | --- | --- |\n"
    return f"\n## {title}\n\n{about}\n\n{heads}{rows}"


def _row(field: DescribedField, dotted: str) -> str:
    flag = f"`{FLAGS[dotted]}`" if dotted in FLAGS else ""
    cells = (f"`{field.name}`", flag, field.valid, field.default, field.meaning)
    return f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |\n"


if __name__ == "__main__":
    print(document(), end="")
