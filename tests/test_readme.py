"""README.md and the documents that it links to: each command is run or parsed, each error text and figure is ours."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml  # type: ignore[import-untyped]  # it has no types
from typer.testing import CliRunner

from raprune.cli import app
from raprune.methods import METHODS
from raprune.spec.job import SearchSpec
from raprune.spec.toml import load_spec
from raprune.store.folder import Store
from tests.orchestration.in_process import in_process

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
SHELL = ("", "bash", "sh", "console")
PLACES = {"FOLDER": "sent", "DIR": "exported", "HEAD": "127.0.0.1"}
"""Word of the documents that stands for something of the reader -> its value here; for RUN and CANDIDATE see below."""


def documents() -> list[Path]:
    """The README, the Markdown files that it links to, and those that they link to."""
    found, todo = [], [README]
    while todo:
        path = todo.pop(0)
        if path.resolve() not in found:
            found.append(path.resolve())
            linked = re.findall(r"\]\(([^)#:]+\.md)(?:#[^)]*)?\)", path.read_text())
            todo += [path.parent / name for name in linked if (path.parent / name).is_file()]
    return found


@dataclass(frozen=True)
class Block:
    """A fenced block of code."""

    document: Path
    language: str
    text: str


def blocks() -> list[Block]:
    fenced = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    return [Block(path, *match) for path in documents() for match in fenced.findall(path.read_text())]


def commands(text: str) -> Iterator[str]:
    """The commands of a block, one at a time, without comments and prompts."""
    for line in text.replace("\\\n", " ").splitlines():
        bare = re.sub(r"(^|\s)#.*$", "", line.removeprefix("$ ")).strip()
        yield from (part.strip() for part in bare.split("&&") if part.strip())


def modules() -> dict[str, str]:
    """File name -> source, of the modules of the reader: blocks of Python that begin with their name."""
    named = [(re.match(r"# (\w+\.py)\n", block.text), block.text) for block in blocks() if block.language == "python"]
    return {match[1]: text for match, text in named if match}


def prose(path: Path) -> str:
    """The text of a document without its fenced blocks."""
    return re.sub(r"^```\w*\n.*?^```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)


def shown(path: Path) -> str:
    """The blocks of a document that show the output of a command."""
    return "\n".join(block.text for block in blocks() if block.document == path and block.language == "text")


ALL = list(dict.fromkeys(command for block in blocks() if block.language in SHELL for command in commands(block.text)))

Check = Callable[[str, pytest.FixtureRequest], None]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the documents name, and the modules and the job of the reader."""
    folder = tmp_path_factory.mktemp("home")
    for name in ("jobs", "cluster", "dashboards"):
        (folder / name).symlink_to(ROOT / name)
    for name, source in modules().items():
        (folder / name).write_text(source)
    (folder / "job.toml").write_text((ROOT / "jobs/digits.toml").read_text())
    return folder


@pytest.fixture(scope="module")
def run(home: Path) -> str:
    """The run of the reader: a short search with the network and data of the README, on the executor of the tests.

    `tests/orchestration` runs such commands on Ray.
    """
    (wanted,) = [command for command in ALL if command.endswith("--data mynets:stripes --budget-flops 0.25")]
    small = "--trials 4 --finalists 1 --epochs 0.5 --workers 1 --set dense.epochs=1 --output run"
    with in_process():
        called_here(shlex.split(f"{wanted} {small}".removeprefix("uv run raprune ")), home)
    return "run"


def called(command: str, home: Path) -> None:
    """Runs a command of raprune in a process of its own."""
    words = shlex.split(command.removeprefix("uv run "))
    assert words[0] == "raprune"
    done = subprocess.run(
        [sys.executable, "-m", *words],
        cwd=home,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


def called_here(words: list[str], home: Path) -> str:
    """The output of a command of raprune that is called in this process, which is quicker."""
    before, known = Path.cwd(), list(sys.path)
    os.chdir(home)
    try:
        done = CliRunner().invoke(app, words)
    finally:
        os.chdir(before)
        sys.path[:] = known
        for name in modules():
            sys.modules.pop(name.removesuffix(".py"), None)
    assert done.exit_code == 0, f"{words}\n{done.output[-2000:]}"
    return done.stdout


def in_place(command: str, request: pytest.FixtureRequest) -> str:
    """The command with the words of the reader replaced by values."""
    words = [*PLACES.items()]
    if re.search(r"\b(RUN|CANDIDATE)\b", command):
        name = request.getfixturevalue("run")
        home: Path = request.getfixturevalue("home")
        first = Store(home / name).read_json("report/front.json")[0]["candidate"]
        words += [("RUN", name), ("CANDIDATE", first)]
    for word, meant in words:
        command = re.sub(rf"\b{word}\b", meant, command)
    return command


def is_run(command: str, request: pytest.FixtureRequest) -> None:
    words = shlex.split(in_place(command, request).removeprefix("uv run ").partition(" > ")[0])
    with pytest.MonkeyPatch.context() as patch:
        # One kind of file of each figure: tests/report draws them all.
        patch.setattr("raprune.report.figures.KINDS", ("svg",))
        called_here(words[1:], request.getfixturevalue("home"))


def is_list_of_runs(command: str, request: pytest.FixtureRequest) -> None:
    """Run where runs/ holds the run of the reader."""
    home: Path = request.getfixturevalue("home")
    (home / "runs").mkdir(exist_ok=True)
    if not (home / "runs/first").exists():
        (home / "runs/first").symlink_to(home / request.getfixturevalue("run"))
    is_run(command, request)


def is_run_alone(command: str, request: pytest.FixtureRequest) -> None:
    """Run in a process of its own, which Ray is started in."""
    called(in_place(command, request), request.getfixturevalue("home"))


def is_the_runs(command: str, request: pytest.FixtureRequest) -> None:
    """The search that made the run of the other commands."""
    assert (request.getfixturevalue("home") / request.getfixturevalue("run") / "report/front.html").is_file()


def is_dry_run(command: str, request: pytest.FixtureRequest) -> None:
    """Parsed and checked as a search, of which the job is printed."""
    words = shlex.split(in_place(command, request).removeprefix("uv run ").replace("$RAY_ADDRESS", "127.0.0.1:6379"))
    job = called_here([*words[1:], "--dry-run"], request.getfixturevalue("home"))
    assert tomllib.loads(job)["model"]["name"]


def is_parsed(command: str, request: pytest.FixtureRequest) -> None:
    """Its command, flags and arguments are taken as they stand; nothing is called."""
    words = shlex.split(in_place(command, request).removeprefix("uv run ").replace("$RAY_ADDRESS", "127.0.0.1:6379"))
    assert words[0] == "raprune"
    parsed(typer.main.get_command(app), words[1:])


def parsed(command: Any, words: list[str], parent: Any = None) -> None:
    context = command.make_context(command.name, list(words), parent=parent)
    if command.name == "submit" and parent is not None and "search" in parent.command.commands:
        parsed(parent.command.commands["search"], context.args)  # it takes those of `search` too
    if hasattr(command, "commands"):
        rest = [*context._protected_args, *context.args]
        parsed(command.commands[rest[0]], rest[1:], context)


def is_parsed_by_ray(command: str, request: pytest.FixtureRequest) -> None:
    """Ray's command line takes its command, flags and arguments as they stand; nothing is called."""
    from ray.scripts.scripts import cli

    words = [word for word in shlex.split(in_place(command, request)) if not re.match(r"[A-Z_]+=", word)]
    assert words[0] == "ray"
    parsed(cli, words[1:])
    if "--" in words:
        assert words[words.index("--") + 1 :][:3] == ["python", "-m", "raprune"]
        parsed(typer.main.get_command(app), words[words.index("--") + 4 :])


def is_a_file(command: str, request: pytest.FixtureRequest) -> None:
    """The files that it names are there; scripts among them are valid shell."""
    named = re.findall(r"(?:cluster|jobs|dashboards|tests)/[\w./-]+\w", command)
    assert named
    for name in named:
        assert (ROOT / name).exists(), name
        if name.endswith((".sh", ".sbatch")):
            subprocess.run(["bash", "-n", str(ROOT / name)], check=True)


def is_of_the_place(command: str, request: pytest.FixtureRequest) -> None:
    """The command belongs to another program."""
    assert "raprune" not in command.partition(" ")[0]


RULES: list[tuple[str, Check, str]] = [
    (r"pip install uv$", is_of_the_place, "uv is what runs this suite"),
    (r"git clone https://github.com/raprune/raprune$", is_of_the_place, "the reader has it then"),
    (r"cd raprune$", is_of_the_place, "the working folder of this suite"),
    (r"uv sync$", is_of_the_place, "it made the environment of this suite"),
    (r"du -sh \.venv$", is_of_the_place, "the size of that environment"),
    (r"uv run --group dev pytest( -m nightly)?$", is_of_the_place, "this is it"),
    (r"uv run --group dev (ruff|mypy)\b", is_of_the_place, "a linter: .ci/run runs it"),
    (r"uv run python -m raprune\.spec\.reference > docs/job\.md$", is_of_the_place, "tests/spec/test_reference.py"),
    (r"uv run raprune search --model mynets:tiny --data mynets:stripes", is_the_runs, "run for real, in small"),
    (r"(uv run )?raprune search\b", is_dry_run, "minutes to hours, or a cluster: the flags and the job are checked"),
    (r"uv run raprune serve\b", is_parsed, "it serves until it is interrupted: tests/page runs it"),
    (r"raprune submit .*--kuberay", is_run, ""),
    (
        r"(uv run )?raprune \w+ s3://",
        is_parsed,
        "there is no such bucket: tests/page and tests/store run on one",
    ),
    (r"uv run raprune export .*--format", is_parsed, "seconds of exporters: tests/pruning/test_export.py runs it"),
    (
        r"uv run raprune report .*--compare",
        is_parsed,
        "needs a trained network: tests/orchestration/test_siblings.py runs it",
    ),
    (
        r"uv run raprune prune .*match_steps=200",
        is_parsed,
        "half a minute of training: tests/methods/test_block_matching.py takes fewer steps",
    ),
    (r"uv run raprune runs$", is_list_of_runs, ""),
    (r"(uv run )?raprune (submit|jobs|logs|stop)\b", is_parsed, "needs a cluster: tests/orchestration runs it on one"),
    (
        r"(uv run )?raprune dashboards\b",
        is_parsed,
        "needs Ray's or Grafana's folder: tests/orchestration/jobs/test_grafana.py runs it",
    ),
    (r"uv run raprune resume\b", is_run_alone, "the run is over, so that it says so and ends"),
    (r"(uv run )?raprune\b", is_run, ""),
    (r"([A-Z_]+=\S+ )?ray (start|job submit)\b", is_parsed_by_ray, "a cluster: tests/orchestration runs it on one"),
    (r"prometheus --config\.file=", is_of_the_place, "tests/orchestration runs it where it is installed"),
    (r"grafana server\b", is_of_the_place, "Grafana is not installed here"),
    (r"ssh -L 8000:127\.0\.0\.1:8000 HEAD$", is_of_the_place, "a cluster's head"),
    (r"kubectl apply -f \S+$", is_of_the_place, "Kubernetes: tests/orchestration hold its files against its schemas"),
    (r"export [A-Z_]+=\S+$", is_of_the_place, "a variable of Ray's"),
    (r"source \.venv/bin/activate$", is_of_the_place, "uv makes it"),
    (r"source cluster/local\.sh (start|stop)$", is_a_file, "tests/orchestration runs it"),
    (r"uv run (--group dev )?python jobs/benchmarks/[\w.]+", is_a_file, "a benchmark: minutes"),
    (r"RAPRUNE_DATA=FOLDER uv run python jobs/[\w.]+", is_a_file, "needs all of MNIST"),
]
"""Pattern of a command -> what is done with it, and why it is not simply run. The first that matches holds."""


@pytest.mark.ray
@pytest.mark.parametrize("command", ALL)
def test_every_command_of_the_documents_works(command: str, request: pytest.FixtureRequest) -> None:
    for pattern, check, _ in RULES:
        if re.match(pattern, command):
            check(command, request)
            return
    pytest.fail(f"no test knows this command: {command!r}; add a rule to RULES")


def test_every_rule_is_of_some_command() -> None:
    stale = [pattern for pattern, _, _ in RULES if not any(re.match(pattern, command) for command in ALL)]
    assert stale == []


def test_no_command_hides_in_a_block_of_another_language() -> None:
    known = {*SHELL, "python", "toml", "yaml", "json", "text"}
    assert {block.language for block in blocks()} <= known


@pytest.mark.parametrize("block", [b for b in blocks() if b.language == "toml"], ids=lambda b: b.document.name)
def test_every_job_of_the_documents_is_valid(block: Block, tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    path.write_text(block.text)
    load_spec(path)


def test_every_yaml_of_the_documents_is_valid() -> None:
    for block in blocks():
        if block.language == "yaml":
            assert list(yaml.safe_load_all(block.text))


@pytest.mark.ray
def test_python_of_the_documents_runs(request: pytest.FixtureRequest) -> None:
    """In one namespace, after `raprune export RUN CANDIDATE DIR`; MyNet is the network of the reader."""
    home: Path = request.getfixturevalue("home")
    request.getfixturevalue("run")
    if not (home / PLACES["DIR"]).is_dir():
        called(in_place("raprune export RUN CANDIDATE DIR", request), home)
    names: dict[str, Any] = {}
    exec((home / "mynets.py").read_text(), names)
    names["MyNet"] = lambda: names["tiny"](2)
    for block in blocks():
        # tests/orchestration/notebook/test_document.py runs the blocks of a session.
        if block.language == "python" and block.text not in modules().values() and block.document.stem != "python":
            exec(block.text.replace('"DIR"', repr(str(home / PLACES["DIR"]))), names)
    small = names["small"]
    images, labels = names["stripes"]()["test"]
    import torch

    logits = small(torch.from_numpy(images[:8]).float())
    assert logits.shape == (8, 2) and len(labels) == 100
    dense = sum(p.numel() for p in names["MyNet"]().parameters())
    assert sum(p.numel() for p in small.parameters()) < dense


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a document."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", documents(), ids=lambda path: path.name)
def test_every_link_leads_somewhere(path: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#]*)(?:#([^)]*))?\)", path.read_text()):
        if target.startswith("https://"):
            continue
        there = path.parent / target if target else path
        assert there.exists(), f"{path.name}: {target}"
        assert not anchor or anchor in anchors(there), f"{path.name}: {target}#{anchor}"


def test_every_document_is_linked_from_the_readme() -> None:
    assert set((ROOT / "docs").glob("*.md")) <= set(documents())


@pytest.mark.parametrize("path", documents(), ids=lambda path: path.name)
def test_every_path_of_the_documents_exists(path: Path) -> None:
    named = re.findall(r"`((?:raprune|tests|jobs|cluster|docs|dashboards)/[\w./-]*)`", prose(path))
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_readme_is_short_and_begins_with_an_install_and_a_search() -> None:
    assert README.stat().st_size <= 9_000
    first = [command for block in blocks() if block.document == README for command in commands(block.text)]
    assert first[0].startswith("git clone") and first[4] == "uv run raprune search --budget-flops 0.3"


def test_map_of_the_readme_names_every_room_once() -> None:
    _, _, rest = README.read_text().partition("| room of `raprune/` |")
    rooms = re.findall(r"^\| `(\w+)` \|", rest, re.MULTILINE)
    assert sorted(rooms) == sorted(path.parent.name for path in (ROOT / "raprune").glob("*/__init__.py"))


def test_picture_of_the_readme_is_small_and_runs_no_script() -> None:
    (name,) = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README.read_text())
    picture = ROOT / name
    assert picture.stat().st_size <= 60_000 and b"<script" not in picture.read_bytes()


def test_documents_describe_every_method_with_its_settings() -> None:
    readme = re.findall(r"^\| `(\w+)`(?:, `(\w+)`)? \|", README.read_text(), re.MULTILINE)
    assert set(METHODS) <= {name for names in readme for name in names}
    sections = re.split(r"^##+ ", (ROOT / "docs/methods.md").read_text(), flags=re.MULTILINE)
    for name, kind in METHODS.items():
        (section,) = [text for text in sections if text.startswith(f"`{name}`\n")]
        described = re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", section, re.MULTILINE)
        assert dict(described) == {entry.name: str(entry.default) for entry in fields(kind)}, name


RESULTS = ROOT / "docs/results.md"
FIGURE = re.compile(
    r"(?<![\w.-])\d[\d,]*(?:\.\d+ ?%|(?:\.\d+)?(?: GB\b|x faster| packages\b| ms\b|-ms\b| test images))"
)
"""A measured figure: a percentage with decimals, or a number with a unit that nobody sets."""


def test_every_measured_figure_of_the_documents_is_in_the_results() -> None:
    figures = {
        path.name: FIGURE.findall(re.sub(r"`[^`]*`", "", prose(path)) + shown(path))
        for path in documents()
        if path.parent in (ROOT, ROOT / "docs") and path not in (RESULTS, ROOT / "docs/job.md")
    }
    assert len(figures["README.md"]) >= 5
    results = RESULTS.read_text()
    assert {
        name: missing for name, found in figures.items() if (missing := [f for f in found if f not in results])
    } == {}


@cache
def strings(*, hints: bool = False) -> list[str]:
    """Every string of the package, or of what its errors tell to do.

    What is filled in when it is used is a null character there.
    """
    found = []
    for path in sorted((ROOT / "raprune").rglob("*.py")):
        trees: list[ast.AST] = [ast.parse(path.read_text())]
        if hints:
            trees = [node.value for node in ast.walk(trees[0]) if isinstance(node, ast.keyword) and node.arg == "hint"]
        for node in (node for tree in trees for node in ast.walk(tree)):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(str(v.value) if isinstance(v, ast.Constant) else "\0" for v in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


TROUBLE = (ROOT / "docs/troubleshooting.md").read_text()


def troubles() -> list[str]:
    """The texts that the headings of docs/troubleshooting.md quote."""
    return re.findall(r"^### `([^`]+)`$", TROUBLE, re.MULTILINE)


@pytest.mark.parametrize("text", troubles())
def test_every_error_of_the_documents_is_said_by_the_code(text: str) -> None:
    pattern = ".*?".join(re.escape(part) for part in text.split("…"))
    pattern = pattern.replace("run\\.json", "(?:run\\.json|\0)").replace("\\-\\-budget\\-flops", "\\-\\-budget\\-\0")
    assert any(re.search(pattern, string, re.DOTALL) for string in strings())


def test_every_error_of_the_documents_has_a_cause_and_a_remedy() -> None:
    assert len(troubles()) >= 60
    for section in re.split(r"^### ", TROUBLE, flags=re.MULTILINE)[1:]:
        assert re.fullmatch(
            r"`[^`]+`\n\n\*\*Cause\.\*\* .+\n\n\*\*Remedy\.\*\* .+", section.partition("\n## ")[0], re.DOTALL
        )


FOREIGN = {"--dashboard-host", "--head", "--temp-dir", "--extra"}
"""Flags of `ray start` and `uv sync` that errors name."""


def flags() -> set[str]:
    """All flags of all commands, and those of Ray's that we speak of."""

    def of(command: Any) -> Iterator[str]:
        for parameter in command.params:
            yield from (*parameter.opts, *parameter.secondary_opts)
        for child in getattr(command, "commands", {}).values():
            yield from of(child)

    return {*of(typer.main.get_command(app)), "--help", *FOREIGN}


FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]*[a-z](?![\w-])")


def test_every_flag_that_an_error_names_is_a_flag() -> None:
    # Not --budget-{kind}: a flag that is put together ends in what is filled in.
    named = {flag for text in strings(hints=True) for flag in FLAG.findall(text)}
    assert len(named) > 15 and named <= flags(), named - flags()


def test_every_flag_of_the_documents_is_a_flag() -> None:
    """In running text; those in blocks are parsed."""
    text = "\n".join(prose(path) for path in documents())
    named = {flag for code in re.findall(r"`([^`]*)`", text) for flag in FLAG.findall(code)}
    assert len(named) > 15 and named <= flags(), named - flags()


EXPORTED = {"model.onnx", "model.pt2", "model.safetensors"}
"""Files of `raprune export`, whose names look like fields."""


def test_every_field_of_the_documents_is_a_field() -> None:
    text = "\n".join(path.read_text() for path in documents())
    named = {
        *re.findall(r"--set ([\w.]+)=", text),
        *re.findall(r"`((?:model|dense|finalists|search|resources|data|latency|page)\.[\w.]+)`", text),
    } - EXPORTED
    assert len(named) > 8
    for field in named:
        if field.startswith("settings."):
            _, method, setting = field.split(".")
            assert setting in {entry.name for entry in fields(METHODS[method])}, field
            continue
        known: Any = SearchSpec
        for name in field.split("."):
            assert name in known.model_fields, field
            known = known.model_fields[name].annotation
