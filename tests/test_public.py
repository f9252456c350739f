"""The public surface: names that users import, where they import them, and how they call them.

A test that fails here says that code of users breaks. Change an entry only on purpose, and say so in
`docs/migrating.md`.
"""

from __future__ import annotations

import inspect
from dataclasses import fields, is_dataclass

import pytest

import raprune
from raprune import methods

PUBLIC = {
    "cut": "(model: 'ModuleT', graph: 'ChannelGraph', candidate: 'Candidate') -> 'ModuleT'",
    "load": "(model: 'ModuleT', folder: 'str') -> 'ModuleT'",
    "prune": (
        "(model: 'nn.Module | Callable[[], nn.Module] | str', data: 'object', *, validation: 'object' = None, "
        "calibration: 'object' = None, "
        "method: 'str' = 'l2', allocation: 'str' = 'uniform', budget: 'Budget | Mapping[str, Any] | None' = None, "
        "weights: 'Mapping[str, Tensor] | str | None' = None, trained: 'bool' = True, finetune: 'bool' = False, "
        "epochs: 'float | None' = None, seed: 'int | None' = None, job: 'JobFields | None' = None) -> 'PrunedNetwork'"
    ),
    "search": (
        "(model: 'nn.Module | Callable[[], nn.Module] | str | SearchSpec', train: 'object' = None, "
        "test: 'object' = None, *, validation: 'object' = None, calibration: 'object' = None, "
        "budget: 'Budget | Mapping[str, Any] | None' = None, "
        "weights: 'Mapping[str, Tensor] | str | None' = None, trained: 'bool' = True, methods: 'Sequence[str]' = (), "
        "trials: 'int | None' = None, finalists: 'int | None' = None, epochs: 'float | None' = None, "
        "workers: 'int | None' = None, seed: 'int | None' = None, output: 'str | os.PathLike[str] | None' = None, "
        "track: 'Sequence[str]' = (), job: 'JobFields | None' = None, resume: 'str | os.PathLike[str] | None' = None, "
        "console: 'Console | None' = None, stages: 'Stages | None' = None) -> 'OpenedRun'"
    ),
    "trace": "(model: 'nn.Module', example_input: 'NetworkInputs') -> 'ChannelGraph'",
}
"""Name in `raprune` -> its signature."""

CLASSES = {
    "Budget": {"fractions", "is_free", "limit", "limits_latency"},
    "Run": {
        *("best", "candidates", "export", "finished", "folder", "front", "load", "load_dense", "pick", "plot"),
    },
}
"""Name of a class in `raprune` -> attributes that users call."""

METHOD_NAMES = [
    "METHODS",
    "Batches",
    "Cut",
    "Kept",
    "ListedMethod",
    "Method",
    "Network",
    "Regularizer",
    "Scores",
    "Step",
    "TrainingServices",
    "list_methods",
    "method_named",
    "reestimate_batch_norm",
]
"""Public names of `raprune.methods`."""

METHODS: dict[str, dict[str, object]] = {
    "activation": {},
    "apoz": {},
    "auto_balanced": {
        "alpha": 0.02,
        "steps": 3,
        "epochs": 1.0,
        "last_epochs": 2.0,
        "distil": False,
        "metric": "l1",
        "target": "bn_folded",
        "refresh": 0,
    },
    "binary_search": {
        "norm": "l1",
        "order": "forward",
        "tolerance": 0.005,
        "tolerance_split": "global",
        "probe_epochs": 0.0,
        "finetune_epochs": 1.0,
        "sweeps": 1,
        "images": 5000,
        "gallop": False,
    },
    "fpgm": {},
    "l1": {},
    "l2": {},
    "lasso": {"positions": 10},
    "local_bn": {
        "strength": 0.001,
        "sparse_epochs": 20.0,
        "sparse_lr": 0.05,
        "mu": 1.0,
        "beta": "analytic",
        "reestimate": True,
    },
    "maxout": {
        "candidates": 2,
        "mode": "group",
        "noise": 0.01,
        "from_scratch": False,
        "epochs": 5.0,
        "weight_pruning": 0.7,
        "weight_rounds": 2,
    },
    "random": {},
    "reconstruction": {
        "form": "block",
        "ridge": 1e-06,
        "sensitivity": 1.0,
        "target": "asymmetric",
        "error_budget": 1.0,
        "match_steps": 0,
    },
    "slimming": {"strength": 0.001, "sparse_epochs": 20.0, "sparse_lr": 0.05},
    "taylor": {},
    "thinet": {"positions": 10},
}
"""Method -> its hyper-parameters with their defaults."""

HOOKS = {
    "regularize": "(self) -> 'Regularizer | None'",
    "score": "(self, model: 'nn.Module', graph: 'ChannelGraph', batches: 'Batches', *, seed: 'int') -> 'Scores'",
    "damage": "(self, scores: 'Scores') -> 'Scores'",
    "repair": "(self, model: 'nn.Module', batches: 'Batches', cut: 'Cut') -> 'None'",
    "path": "(self, dense: 'Network', widths: 'Mapping[str, int]', services: 'TrainingServices') -> 'Iterator[Step]'",
    "behind_scores": "(self) -> 'dict[str, bool | int | float | str]'",
}
"""Hook that a user's own method may define -> its signature."""

GIVEN = {
    "Cut": (
        "(dense: 'nn.Module', graph: 'ChannelGraph', kept: 'Kept', room: 'int | None' = None, "
        "identity: 'tuple[str, ...]' = ()) -> None"
    ),
    "Network": "(model: 'nn.Module', graph: 'ChannelGraph', kept: 'Kept') -> None",
    "Regularizer": "(*, epochs: 'float', lr: 'float') -> None",
    "Step": (
        "(*, network: 'Network', epochs: 'float', settings: 'Mapping[str, bool | int | float | str]' = <factory>)"
        " -> None"
    ),
    "method_named": "(name: str) -> type[raprune.methods.method.Method]",
    "list_methods": "() -> list[raprune.methods.ListedMethod]",
    "reestimate_batch_norm": "(model: 'nn.Module', batches: 'Batches') -> 'None'",
}
"""Name in `raprune.methods` that a method builds or calls -> its signature."""


def test_package_offers_exactly_its_public_names() -> None:
    assert set(raprune.__all__) == {*PUBLIC, *CLASSES, "__version__"} == set(dir(raprune))
    assert raprune.__version__


@pytest.mark.parametrize("name", PUBLIC)
def test_public_function_keeps_its_signature(name: str) -> None:
    assert str(inspect.signature(getattr(raprune, name))) == PUBLIC[name]


def test_name_that_the_package_does_not_offer_is_refused() -> None:
    with pytest.raises(AttributeError, match="no attribute 'prune_everything'"):
        _ = raprune.prune_everything


@pytest.mark.parametrize("name", CLASSES)
def test_public_class_keeps_its_attributes(name: str) -> None:
    found = getattr(raprune, name)
    assert {attribute for attribute in CLASSES[name] if hasattr(found, attribute)} == CLASSES[name]


def test_methods_offer_exactly_their_public_names() -> None:
    assert sorted(methods.__all__) == sorted(METHOD_NAMES)
    assert all(hasattr(methods, name) for name in METHOD_NAMES)


def test_table_of_methods_holds_each_method_with_its_hyper_parameters() -> None:
    found = {name: {entry.name: entry.default for entry in fields(kind)} for name, kind in methods.METHODS.items()}
    assert found == METHODS
    assert all(is_dataclass(kind) and issubclass(kind, methods.Method) for kind in methods.METHODS.values())


def test_method_keeps_the_hooks_that_users_define() -> None:
    public = {name: hook for name, hook in vars(methods.Method).items() if inspect.isfunction(hook)}
    assert {name: str(inspect.signature(hook)) for name, hook in public.items() if not name.startswith("_")} == HOOKS


@pytest.mark.parametrize("name", GIVEN)
def test_name_that_a_method_uses_keeps_its_signature(name: str) -> None:
    assert str(inspect.signature(getattr(methods, name))) == GIVEN[name]
