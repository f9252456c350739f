"""The command line: one screen and the right code for whatever goes wrong, and nothing imported that is not needed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import raprune
from raprune.cli import Commands, app
from raprune.errors import DataError, UsageError
from raprune.methods import METHODS
from raprune.pruning.allocate import ALLOCATIONS
from raprune.spec.toml import load_spec
from raprune.store.folder import Store
from raprune.store.record import RunRecord
from tests.factories import make_run

COMMANDS = list(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


@pytest.fixture
def cli() -> CliRunner:
    return CliRunner(env={"COLUMNS": "140", "TERM": "dumb"})


def test_help_imports_neither_torch_nor_ray() -> None:
    program = """
import sys
from raprune.cli import app
try:
    app(["--help"])
except SystemExit as stop:
    assert not stop.code
heavy = {"torch", "ray", "optuna", "pyarrow", "pydantic", "numpy"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "search" in done.stdout


def test_the_package_loads_its_names_on_first_use() -> None:
    program = """
import sys
import raprune
assert raprune.__version__.count(".") == 2
assert set(raprune.__all__) <= set(dir(raprune))
assert not {"torch", "ray"} & set(sys.modules)
assert callable(raprune.cut) and "ray" not in sys.modules
assert not hasattr(raprune, "nothing")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_version_is_printed_without_torch() -> None:
    program = "import sys\nfrom raprune.__main__ import main\nsys.argv = ['raprune', '--version']\nmain()"
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"raprune {raprune.__version__}\n"
    assert not {"torch", "ray", "pydantic"} & {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}


def test_help_groups_the_commands_in_the_order_of_a_newcomer(cli: CliRunner) -> None:
    told = cli.invoke(app, ["--help"]).stdout
    headings = re.findall(r"^(\w[^:\n]*):$", told, re.MULTILINE)
    assert headings == ["Options", "Search", "Results of a run", "One network", "Ray clusters", "Reference"]


@pytest.mark.parametrize("command", ["search", "check", "prune", "pick"])
def test_help_groups_all_options_of_a_command_by_subject(command: str) -> None:
    entry = typer.main.get_command(app).commands[command]  # type: ignore[attr-defined]
    ungrouped = {p.name for p in entry.params if p.param_type_name == "option" and not p.rich_help_panel}
    assert ungrouped <= {"as_json"}


@pytest.mark.parametrize(
    "command", [[], *([name] for name in COMMANDS)], ids=lambda words: " ".join(words) or "raprune"
)
def test_help_fits_a_narrow_terminal_and_cuts_nothing(cli: CliRunner, command: list[str]) -> None:
    told = cli.invoke(app, [*command, "--help"]).stdout
    assert max(len(line) for line in told.splitlines()) <= 80
    assert "..." not in told.replace("ARGS]...", "").replace("OPTIONS]...", "")


def test_help_uses_a_wide_terminal_and_imports_no_rich() -> None:
    program = "import sys\nfrom raprune.__main__ import main\nsys.argv = ['raprune', '--help']\nmain()"
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", program],
        env={**os.environ, "COLUMNS": "120"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert 100 < max(len(line) for line in done.stdout.splitlines()) <= 120
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert not {"rich", "torch", "ray", "pydantic"} & loaded


def test_help_of_commands_is_in_the_imperative() -> None:
    first = {name: entry.help.split()[0] for name, entry in typer.main.get_command(app).commands.items()}  # type: ignore[attr-defined]
    verbs = "Check Export Install List Pick Print Prune Resume Search Serve Show Stop Submit Write".split()  # noqa: SIM905
    assert set(first.values()) <= set(verbs), first


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("raprune search --methods l1,tay", "l1,taylor"),
        ("raprune search --data cifar", "cifar10"),
        ("raprune search --model cifar-vgg", "cifar-vgg16-bn"),
        ("raprune front ru", "runs/mine"),
        ("raprune insp", "inspect"),
    ],
)
def test_completion_of_the_shell_knows_names_and_runs(tmp_path: Path, words: str, completed: str) -> None:
    (tmp_path / "runs/mine").mkdir(parents=True)
    (tmp_path / "runs/mine/run.json").write_text("{}")
    program = "import sys\nfrom raprune.__main__ import main\nsys.argv = ['raprune']\nmain()"
    environment = {
        **os.environ,
        "_RAPRUNE_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
        "PYTHONPATH": str(Path(raprune.__path__[0]).parent),
    }
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert completed in done.stdout.split(), done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(cli: CliRunner, command: str) -> None:
    done = cli.invoke(app, [command, "--help"])
    assert done.exit_code == 0
    assert "Usage" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            ["search", "--budget-flops", "30"],
            "budget.flops (--budget-flops) 30: must be a number above 0 and at most 1. For 30 %: 0.3.",
        ),
        (["search", "--budget-flops", "lots"], "budget.flops (--budget-flops) 'lots': must be a number above 0"),
        (["search", "--trials", "lots"], "Invalid value for '--trials'"),
        (["search", "--budget-flops", "0"], "budget.flops (--budget-flops) 0: must be a number above 0"),
        (["search", "--bogus"], "No such option"),
        (["search", "missing.toml"], "missing.toml: no such file"),
        (
            ["search", "--sampler", "grid"],
            "search.sampler (--sampler) 'grid': must be `mixed`, `tpe`, `gp`, `nsga2` or `random`",
        ),
        (["search", "--time-limit", "soon"], "--time-limit soon: not a duration"),
        (["search", "--set", "finalists.train.lr"], "not FIELD=VALUE"),
        (["search", "--set", "finalists.lr=0.1"], "finalists.lr: no such field. Valid here: count, seeds"),
        (["search", "--validation", "x.parquet"], "the bundled mnist-sample reads no files"),
        (["search", "--train", "x.parquet"], "the bundled mnist-sample reads no files"),
        (["search", "--trials", "0"], "search.trials (--trials) 0: must be a whole number of at least 1"),
        (["pick", "RUN", "--budget-flops", "3"], "budget.flops (--budget-flops) 3: must be a number above 0"),
        (
            ["pick", "RUN", "--min-accuracy", "95"],
            "min_accuracy (--min-accuracy) 95: must be a number above 0 and at most 1.",
        ),
        (["export", "RUN"], "Missing argument 'NETWORK'"),
        (["frobnicate"], "No such command"),
    ],
)
def test_a_wrong_request_exits_with_2_and_says_why(cli: CliRunner, arguments: list[str], told: str) -> None:
    done = cli.invoke(app, arguments)
    assert done.exit_code == 2
    assert told in done.stderr
    assert len(done.stderr.splitlines()) <= 20 and "Traceback" not in done.stderr


def test_methods_lists_methods_and_allocations(cli: CliRunner) -> None:
    lines = cli.invoke(app, ["methods"]).stdout.splitlines()
    begin = lines.index("Allocations, which divide the budget over the layers:")
    assert {line.split()[0] for line in lines[:begin] if line and line[0] != " "} >= set(METHODS)
    listed = dict(line.split(maxsplit=1) for line in lines[begin + 1 :])
    assert set(listed) == set(ALLOCATIONS) and all(text.endswith(".") for text in listed.values())


@pytest.mark.parametrize("command", ["status", "front", "pick"])
def test_a_folder_that_is_no_run_exits_with_1(cli: CliRunner, tmp_path: Path, command: str) -> None:
    done = cli.invoke(app, [command, str(tmp_path)])
    assert done.exit_code == 1
    assert "not the folder of a run" in done.stderr and "--output" in done.stderr
    assert done.stdout == ""


def test_dry_run_prints_a_job_that_reads_back(cli: CliRunner, tmp_path: Path) -> None:
    flags = (  # noqa: SIM905  # a command line reads best as one
        "--budget-flops 0.25 --methods l1,random --trials 5 --time-limit 2m --seed 7 --exclude head* --exclude stem "
        "--min-channels 2 --multiple-of 4 --finalists 0 --epochs 0.5 --recipe cnn --sampler random --output here "
        "--address auto --model lenet5 --set data.max_images=100 --set search.smallest=0.5 --set data.augment=none"
    ).split()
    done = cli.invoke(app, ["search", "--dry-run", *flags])
    assert done.exit_code == 0, done.stderr
    job = tmp_path / "job.toml"
    job.write_text(done.stdout)
    spec = load_spec(job)
    assert (spec.budget.flops, spec.methods, spec.seed, spec.output) == (0.25, ("l1", "random"), 7, "here")
    assert (spec.search.trials, spec.search.time_limit_s, spec.search.sampler) == (5, 120.0, "random")
    assert (spec.search.min_channels, spec.search.multiple_of, spec.search.smallest) == (2, 4, 0.5)
    assert spec.finalists.train.recipe == "cnn"
    assert (spec.finalists.count, spec.finalists.train.epochs, spec.exclude) == (0, 0.5, ("head*", "stem"))
    assert (spec.model.name, spec.resources.address, spec.data.max_images) == ("lenet5", "auto", 100)
    again = cli.invoke(app, ["search", str(job), "--dry-run", "--seed", "8"])
    assert again.stdout == done.stdout.replace("seed = 7", "seed = 8")


def test_front_pick_and_status_of_a_run(cli: CliRunner, tmp_path: Path) -> None:
    run = make_run(tmp_path).uri
    rows = json.loads(cli.invoke(app, ["front", run, "--json"]).stdout)
    assert rows and all(row["flops_fraction"] <= 0.3 for row in rows)
    assert len(json.loads(cli.invoke(app, ["front", run, "--json", "--all"]).stdout)) == 44
    compared = json.loads(cli.invoke(app, ["front", run, "--json", "--ablation"]).stdout)
    assert {row["method"] for row in compared} == {"l1", "l2", "random"}
    assert "Fine-tuned for 20 epochs" in cli.invoke(app, ["front", run, "--ablation"]).stdout
    picked = json.loads(cli.invoke(app, ["pick", run, "--budget-flops", "0.25", "--json"]).stdout)
    assert picked == max((r for r in rows if r["flops_fraction"] <= 0.25), key=lambda r: r["val_accuracy"])
    assert picked["candidate"] in cli.invoke(app, ["front", run]).stdout
    assert "40 of 40 searched" in cli.invoke(app, ["status", run]).stdout
    missed = cli.invoke(app, ["pick", run, "--budget-flops", "0.001"])
    assert missed.exit_code == 1 and "No candidate is within 0.1%" in missed.stderr


def test_a_reader_that_leaves_early_is_no_error(tmp_path: Path) -> None:
    run = make_run(tmp_path).uri
    command = f"{sys.executable} -m raprune.cli front {run} --all --json | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout == "[\n" and "Error" not in done.stderr and "Traceback" not in done.stderr


def failing(error: BaseException, *, run: str | None = None) -> typer.Typer:
    """An app like ours with one command that fails."""
    program = typer.Typer(cls=Commands, pretty_exceptions_enable=False)

    @program.callback()
    def main() -> None: ...

    @program.command()
    def fail(ctx: typer.Context) -> None:
        ctx.find_root().obj = run
        raise error

    return program


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (UsageError("--x 3: wrong.", hint="Give 2."), 2, "Error: --x 3: wrong.\nGive 2.\n"),
        (DataError("No such file."), 1, "Error: No such file.\n"),
        (ZeroDivisionError("a\n" * 50), 1, "RAPRUNE_TRACEBACK=1"),
        (KeyboardInterrupt(), 130, "Interrupted."),
    ],
)
def test_a_failure_is_one_screen(cli: CliRunner, error: BaseException, code: int, told: str) -> None:
    done = cli.invoke(failing(error), ["fail"])
    assert done.exit_code == code
    assert told in done.stderr and len(done.stderr.splitlines()) < 15


def test_on_request_the_trace_is_shown(cli: CliRunner) -> None:
    done = cli.invoke(failing(ZeroDivisionError("by zero")), ["fail"], env={"RAPRUNE_TRACEBACK": "1"})
    assert isinstance(done.exception, ZeroDivisionError)


def test_an_interrupted_search_says_how_to_go_on(cli: CliRunner, tmp_path: Path) -> None:
    run = os.fspath(tmp_path)
    early = cli.invoke(failing(KeyboardInterrupt(), run=run), ["fail"])
    assert "start the search again" in early.stderr
    Store(run).create(RunRecord())
    later = cli.invoke(failing(KeyboardInterrupt(), run=run), ["fail"])
    assert f"raprune resume {run}" in later.stderr
