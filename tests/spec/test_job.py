"""The request: what is read, what is refused, and what the refusal says."""

from __future__ import annotations

import math
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from raprune.errors import UsageError
from raprune.spec.budget import Budget
from raprune.spec.job import DataSpec, ModelSpec, SearchSpec
from raprune.spec.toml import dump_spec, load_spec, to_toml

JOB = """
[budget]
flops = 0.2
[model]
name = "lenet5"
weights = "weights.safetensors"
[data]
name = "parquet"
train = "${RAPRUNE_DATA:-data}/train.parquet"
test = "s3://bucket/test.parquet"
[finalists.train]
lr = 0.01
"""


@pytest.fixture
def job(tmp_path: Path) -> Path:
    path = tmp_path / "jobs" / "job.toml"
    path.parent.mkdir()
    path.write_text(JOB)
    return path


def test_defaults_are_a_whole_request() -> None:
    spec = load_spec()
    assert (spec.model.name, spec.data.name, spec.budget.flops, spec.seed) == ("mnist-resnet", "mnist-sample", 0.3, 0)
    assert re.fullmatch(r"runs/mnist-resnet-mnist-sample-\d{8}-\d{6}", spec.output)


def test_paths_of_a_job_are_relative_to_the_job(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAPRUNE_DATA", raising=False)
    spec = load_spec(job)
    assert spec.model.weights == str(job.parent / "weights.safetensors")
    assert spec.data.train == str(job.parent / "data/train.parquet")
    assert spec.data.test == "s3://bucket/test.parquet"
    assert spec.finalists.train.lr == 0.01


def test_a_path_may_name_an_environment_variable(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAPRUNE_DATA", "/somewhere")
    assert load_spec(job).data.train == "/somewhere/train.parquet"
    monkeypatch.setenv("RAPRUNE_DATA", "s3://bucket/data")
    assert load_spec(job).data.train == "s3://bucket/data/train.parquet"
    job.write_text(JOB.replace(":-data", ""))
    monkeypatch.delenv("RAPRUNE_DATA")
    with pytest.raises(UsageError, match="RAPRUNE_DATA, which is not set"):
        load_spec(job)


def test_a_flag_overrides_its_field_and_its_path_is_relative_to_the_working_folder(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    spec = load_spec(job, {"budget.flops": 0.5, "data.train": "mine.parquet", "finalists.train.epochs": 3})
    assert spec.budget.flops == 0.5
    assert spec.data.train == str(tmp_path / "mine.parquet")
    assert (spec.finalists.train.epochs, spec.finalists.train.lr) == (3.0, 0.01)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"budget.flops": 0}, r"budget\.flops \(--budget-flops\) 0: must be a number above 0 and at most 1\.$"),
        ({"budget.flops": 1.5}, r"1.5: must be a number above 0 and at most 1\.$"),
        ({"budget.flops": 30}, r"30: must be a number above 0 and at most 1\. For 30 %: 0\.3\.$"),
        ({"budget.flops": "30%"}, r"'30%': must be a number above 0 and at most 1\. For 30 %: 0\.3\.$"),
        ({"budget.flops": math.nan}, r"nan: must be finite, a number above 0"),
        ({"dense.lr": math.inf}, r"dense.lr inf: must be finite, a number above 0"),
        ({"page.port": 0}, r"page.port 0: must be a whole number of at least 1 and at most 65535\.$"),
        ({"search.trials": 2.5}, r"search.trials \(--trials\) 2.5: must be a whole number of at least 1\.$"),
        ({"data.stream": "maybe"}, r"data.stream 'maybe': must be true or false\.$"),
        ({"data.mean": [0.5, "x"]}, r"data.mean \[0.5, 'x'\]: must be a list of numbers\.$"),
        ({"exclude": "fc"}, r"exclude \(--exclude\) 'fc': must be a list of strings\.$"),
        ({"data.name": 3}, r"data.name \(--data\) 3: must be a string\.$"),
        ({"model.arguments": {"x": [1]}}, r"model.arguments {'x': \[1\]}: must be a table of numbers, strings"),
        ({"settings": {"l2": 3}}, r"settings {'l2': 3}: must be a table per method"),
        ({"seed": {"x": 1}}, r"seed \(--seed\) {'x': 1}: must be a whole number of at least 0\.$"),
        ({"search": 3}, r"search 3: must be a table with the fields trials, "),
        ({"budget.latency": [3]}, r"budget\.latency \(--budget-latency\) \[3\]: must be a fraction of the dense"),
        (
            {"data.name": "parquet", "data.validation": "s3://b/t", "data.test": "s3://b/t"},
            "validation and test name the same images, s3://b/t",
        ),
        ({"budget.flops": "a third"}, "'a third': must be a number above 0 and at most 1"),
        ({"budget.latency": "3 parsecs"}, "'3 parsecs': must be a fraction of the dense .* or a time such as 3ms"),
        ({"search.rungs": [0.5, 2]}, r"\[0.5, 2\]: must be a list of epochs that begins with 0"),
        ({"search.rungs": [0, 2, 1]}, r"\[0, 2, 1\]: must be a list of epochs that begins with 0"),
        (
            {"finalists.steps": [3, 1]},
            r"\[3, 1\]: must be a whole number of at least 1, or several in",
        ),
        ({"finalists.steps": []}, r"\[\]: must be a whole number of at least 1, or several in"),
        (
            {"finalists.steps": 0},
            r"finalists.steps 0: must be a whole number of at least 1, or several in",
        ),
        (
            {"finalists.steps": [1, 2.5]},
            r"finalists.steps \[1, 2.5\]: must be a whole number of at least 1, or several in a rising list",
        ),
        ({"search.trials": 0}, r"search.trials \(--trials\) 0: must be a whole number of at least 1"),
        ({"search.sampler": "grid"}, "'grid': must be `mixed`, `tpe`, `gp`, `nsga2` or `random`"),
        ({"search.triall": 3}, r"search.triall: no such field. Did you mean search.trials\? Valid here: trials, "),
        ({"bugdet.flops": 0.3}, r"bugdet: no such field. Did you mean budget\? Valid here: min_accuracy, "),
        (
            {"budget.flosp": 0.3},
            r"budget.flosp: no such field. Did you mean budget.flops\? Valid here: flops, ",
        ),
        ({"finalists.train.nesterov": True}, "finalists.train.nesterov: no such field. Valid here: batch_size, "),
        ({"data.train": "x.parquet"}, "the bundled mnist-sample reads no files"),
        ({"data.validation_fraction": 1.0}, "data.validation_fraction 1: must be a number above 0 and below 1"),
        ({"seed": -1}, r"seed \(--seed\) -1: must be a whole number of at least 0\.$"),
        (
            {"model": "resnet20", "model.weights": "w"},
            "model 'resnet20': must be a table with the fields name, weights",
        ),
        ({"budget.flops": 0.3, "budget.flops.x": 1}, r"budget.flops.x: no such field\.$"),
        ({"model": "resnet20"}, "model 'resnet20': must be a table with the fields name, weights"),
    ],
)
def test_a_wrong_field_is_named(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_spec(None, overrides)
    assert re.search(message, caught.value.message)
    assert "docs/job.md" in caught.value.hint
    for jargon in ("Input should", "Value error", "valid string", "type=", "pydantic"):
        assert jargon not in str(caught.value)


def test_all_wrong_fields_are_told_at_once() -> None:
    with pytest.raises(UsageError) as caught:
        load_spec(None, {"search.trials": 0, "seed": -1})
    assert "search.trials" in caught.value.message and "seed" in caught.value.message


def test_job_with_earlier_budget_fields_reads_as_its_table(tmp_path: Path) -> None:
    path = tmp_path / "earlier.toml"
    path.write_text('budget_flops = 0.4\nbudget_latency = "3ms"\n')
    assert load_spec(path).budget == Budget(flops=0.4, latency_ms=3.0)
    assert load_spec(path, {"budget.flops": 0.2, "budget_params": 0.5}).budget == Budget(
        flops=0.2, params=0.5, latency_ms=3.0
    )
    path.write_text("budget_flops = 30")
    with pytest.raises(UsageError, match=r"earlier.toml: budget.flops \(--budget-flops\) 30: must be"):
        load_spec(path)
    path.write_text("budget_flops = 0.3\nbudget.flops = 0.4")
    with pytest.raises(UsageError, match=r"budget_flops and budget.flops: two forms"):
        load_spec(path)


def test_spec_of_an_earlier_run_reads_as_the_present_one() -> None:
    earlier = {"budget_flops": 0.4, "budget_params": None, "budget_latency": "3ms", "output": "run"}
    spec = SearchSpec.model_validate(earlier)
    assert spec.budget == Budget(flops=0.4, latency_ms=3.0)
    assert SearchSpec.model_validate(spec.model_dump(mode="json")) == spec


@pytest.mark.parametrize(
    ("content", "message"), [("budget.flops = ", "not readable as TOML"), ("[model]\nnmae = 'x'", "model.nmae")]
)
def test_a_wrong_job_is_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "job.toml"
    path.write_text(content)
    with pytest.raises(UsageError, match=message) as caught:
        load_spec(path)
    assert str(path) in caught.value.message


def test_a_job_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        load_spec(tmp_path / "job.toml")
    with pytest.raises(UsageError, match="a folder"):
        load_spec(tmp_path)
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="not readable as TOML"):
        load_spec(tmp_path / "binary.toml")


def test_a_spec_is_frozen() -> None:
    with pytest.raises(ValidationError):
        load_spec().seed = 3


words = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8)
arguments = st.dictionaries(words, st.booleans() | st.integers(-(2**40), 2**40) | words, max_size=3)


@given(words, arguments, st.floats(0.01, 1.0), st.lists(words, max_size=3), st.none() | st.floats(0.1, 1e6))
def test_a_dumped_spec_reads_back_equal(
    tmp_path_factory: pytest.TempPathFactory,
    name: str,
    arguments: dict[str, bool | int | float | str],
    flops: float,
    exclude: list[str],
    limit: float | None,
) -> None:
    spec = SearchSpec(
        model=ModelSpec(name=name, arguments=arguments),
        data=DataSpec(name="parquet", train="/data/$x.parquet", mean=(0.5, 0.25)),
        budget=Budget(flops=flops),
        exclude=tuple(exclude),
    )
    spec = spec.model_copy(update={"search": spec.search.model_copy(update={"time_limit_s": limit})})
    path = tmp_path_factory.getbasetemp() / "dumped.toml"
    path.write_text(dump_spec(spec))
    assert load_spec(path) == spec


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("field", ["finalists.train.lr", "model.arguments", "data.arguments", "settings"])
def test_number_that_is_not_finite_is_refused_by_every_field(field: str, value: float) -> None:
    """So no job that is written as TOML holds one."""
    given = {"arguments": {"a": value}, "settings": {"l1": {"power": value}}}.get(field.rpartition(".")[2], value)
    with pytest.raises(UsageError, match=re.escape(field)):
        load_spec(None, {"budget_flops": 0.3, field: given})


@pytest.mark.parametrize(
    "value", [float("inf"), float("-inf"), 1e300, 5e-324, [0.5, float("inf")], "\x7f\u00e9\n", True]
)
def test_value_written_as_toml_is_read_back(value: object) -> None:
    """JSON's `Infinity`, which was written for infinity, is no TOML."""
    text = to_toml({"a key": value, "table": {"of": {"tables": value}}})
    assert tomllib.loads(text) == {"a key": value, "table": {"of": {"tables": value}}}


@pytest.mark.parametrize(
    ("output", "folder"),
    [
        ("runs/a", "runs/statistics"),
        ("a", "statistics"),
        ("/data/runs/a/", "/data/runs/statistics"),
        ("s3://bucket/runs/a", "s3://bucket/runs/statistics"),
        (
            "s3://bucket/a?endpoint_override=http://127.0.0.1:9",
            "s3://bucket/statistics?endpoint_override=http://127.0.0.1:9",
        ),
        ("s3://bucket", "s3://bucket/statistics"),
    ],
)
def test_statistics_lie_beside_the_runs_that_share_them(output: str, folder: str) -> None:
    assert SearchSpec(output=output).statistics_folder == folder
    assert SearchSpec(output=output, statistics="elsewhere").statistics_folder == "elsewhere"
