"""Who may import whom, read from the source."""

from __future__ import annotations

import ast
import sys
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import raprune
from tests.fresh_python import loaded_by

ROOT = Path(raprune.__path__[0])
MODULES = {
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}

ORDER = (
    "errors",
    "pareto",
    "plugins",
    "spec",
    "records",
    "store",
    "results",
    "data",
    "models",
    "channels",
    "cost",
    "methods",
    "training",
    "pruning",
    "sampling",
    "checks",
    "report",
    "page",
    "orchestration",
    "cli",
    "__main__",
)
"""Rooms and files of the package, from top to bottom: a module imports its own room and those above it."""

PURE = ("errors", "pareto", "plugins", "spec", "records", "store", "results", "sampling", "report", "channels.graph")
"""Rooms that import no torch and no ray: results stay readable on a laptop."""


@cache
def tree_of(name: str) -> ast.Module:
    return ast.parse(MODULES[name].read_text())


@cache
def imported(name: str, *, top: bool = False) -> frozenset[str]:
    """Modules that a module imports, anywhere in its text (type-only imports included), or only at its top level."""
    path, tree = MODULES[name], tree_of(name)
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found: set[str] = set()
    for node in tree.body if top else ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative import in {package}"
            module = node.module or ""
            found.update(f"{module}.{a.name}" if f"{module}.{a.name}" in MODULES else module for a in node.names)
    return frozenset(found)


def libraries(name: str) -> set[str]:
    return {module.partition(".")[0] for module in imported(name)}


def own(name: str) -> set[str]:
    return {module for module in imported(name) if module.partition(".")[0] == "raprune"}


def reached(name: str) -> set[str]:
    """All of the package's modules that an import of `name` runs, itself included; packages on the way too."""
    todo, seen = [name], set()
    while todo:
        module = todo.pop()
        if module in seen:
            continue
        seen.add(module)
        parent = module.rpartition(".")[0]
        todo += [m for m in imported(module, top=True) if m in MODULES] + ([parent] if parent in MODULES else [])
    return seen


def test_there_is_something_to_read() -> None:
    assert {"raprune.pruning.prune", "raprune.channels.trace", "raprune.methods"} <= set(MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_only_orchestration_imports_ray(name: str) -> None:
    if not name.startswith("raprune.orchestration"):
        assert "ray" not in libraries(name)


@pytest.mark.parametrize("room", PURE)
def test_records_and_results_need_no_torch_and_no_ray(room: str) -> None:
    for name in MODULES:
        if name == f"raprune.{room}" or name.startswith(f"raprune.{room}."):
            assert libraries(name).isdisjoint({"torch", "torchvision", "ray"}), name


@pytest.mark.parametrize("room", [room for room in PURE if room != "channels.graph"])
def test_nor_do_the_modules_behind_them(room: str) -> None:
    for module in reached(f"raprune.{room}"):
        top = {imported_module.partition(".")[0] for imported_module in imported(module, top=True)}
        assert top.isdisjoint({"torch", "torchvision", "ray"}), module


def test_pareto_takes_numbers_only() -> None:
    assert own("raprune.pareto") <= {"raprune.errors"}


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("raprune.methods.")])
def test_a_method_knows_torch_and_groups_only(name: str) -> None:
    shared = {
        f"raprune.methods.{name}"
        for name in (
            "method",
            "moments",
            "layer_observer",
            "magnitude",
            "activations",
            "gammas",
            "patches",
            "refitted_layer",
            "least_squares",
            "block_matching",
            "contribution",
            "sensitivity",
            "query_key",
        )
    }
    graphs = {
        f"raprune.channels.{name}"
        for name in ("graph", "members", "positions", "inputs", "maxout", "evaluating", "transfer", "multihead")
    }
    allowed = shared | graphs
    assert own(name) <= allowed
    assert libraries(name) <= {*sys.stdlib_module_names, "numpy", "torch", "raprune"}


def test_nobody_imports_the_command_line() -> None:
    """But `python -m raprune`, which is the command line."""
    assert [name for name in MODULES if "raprune.cli" in own(name)] == ["raprune.__main__"]


def test_imports_run_upward() -> None:
    """Type-only imports and imports inside functions included."""
    for name in MODULES:
        if name == "raprune":  # the public names, loaded on first use
            continue
        room = name.split(".")[1]
        assert room in ORDER, f"{room} has no place in the order"
        for module in own(name) - {"raprune"}:
            assert ORDER.index(module.split(".")[1]) <= ORDER.index(room), f"{name} imports {module}, a room below it"


def test_the_house_has_at_most_fifteen_rooms_and_eight_files() -> None:
    entries = [path for path in ROOT.iterdir() if path.name != "__pycache__"]
    rooms = [path for path in entries if path.is_dir()]
    assert len(rooms) <= 15 and len(entries) - len(rooms) <= 8


@pytest.mark.parametrize(
    "room", [name for name in MODULES if name.count(".") == 1 and "__init__" in MODULES[name].name]
)
def test_a_room_says_its_duty_its_imports_and_the_file_to_open_first(room: str) -> None:
    said = ast.get_docstring(ast.parse(MODULES[room].read_text())) or ""
    assert "Imports " in said and "Open `" in said, said
    first = said.partition("Open `")[2].partition("`")[0]
    assert (MODULES[room].parent / first).exists(), first


def test_no_circles() -> None:
    """Between modules, type-only imports and imports inside functions included."""
    graph = {name: {m for m in own(name) if m in MODULES and m != name} for name in MODULES if name != "raprune"}
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize("module", ["raprune", "raprune.cli"])
def test_importing_loads_neither_torch_nor_ray(module: str) -> None:
    assert loaded_by(f"import {module}") == set()


def test_help_loads_neither_torch_nor_ray() -> None:
    code = (
        "import contextlib, io, sys\nfrom raprune.cli import main\nsys.argv = ['raprune', '--help']\n"
        "with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):\n    main()\n"
        "assert 'search' in out.getvalue()"
    )
    assert loaded_by(code) == set()


@pytest.mark.parametrize(
    "room", ["spec.job", "store.folder", "pareto", "results.front", "report.terminal", "report.html"]
)
def test_reading_a_run_loads_neither_torch_nor_ray_nor_pandas(room: str) -> None:
    assert loaded_by(f"import raprune.{room}").isdisjoint({"torch", "torchvision", "ray", "pandas"})


def test_actors_that_do_not_compute_load_no_torch() -> None:
    """It takes 3 s and 500 MB, in each of their processes."""
    actors = "raprune.orchestration.coordinator, raprune.orchestration.workers.bulletin"
    assert loaded_by(f"import {actors}").isdisjoint({"torch", "torchvision"})


def test_one_candidate_runs_without_ray() -> None:
    assert "ray" not in loaded_by("import raprune.pruning.artifact, raprune.pruning.prune, raprune.training.loop")
