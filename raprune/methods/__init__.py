"""Methods: one file per paper, and the table `METHODS` of their names; a new method is a file and a line in this table.

Imports `channels`; the modules of methods import no other room. Open `method.py` first.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from raprune.errors import UsageError
from raprune.methods.activation import Activation
from raprune.methods.apoz import Apoz
from raprune.methods.auto_balanced import AutoBalanced
from raprune.methods.binary_search import BinarySearch
from raprune.methods.fpgm import Fpgm
from raprune.methods.lasso import Lasso
from raprune.methods.local_bn import LocalBN
from raprune.methods.magnitude import L1, L2
from raprune.methods.maxout import Maxout
from raprune.methods.method import (
    Batches,
    Cut,
    Kept,
    Method,
    Network,
    Regularizer,
    Scores,
    Step,
    TrainingServices,
    reestimate_batch_norm,
)
from raprune.methods.random import Random
from raprune.methods.reconstruction import Reconstruction
from raprune.methods.slimming import Slimming
from raprune.methods.taylor import Taylor
from raprune.methods.thinet import ThiNet
from raprune.plugins import is_user_function, load_function
from raprune.spec.names import METHODS_GROUP

METHODS: dict[str, type[Method]] = {
    "activation": Activation,
    "apoz": Apoz,
    "auto_balanced": AutoBalanced,
    "binary_search": BinarySearch,
    "fpgm": Fpgm,
    "l1": L1,
    "l2": L2,
    "lasso": Lasso,
    "local_bn": LocalBN,
    "maxout": Maxout,
    "random": Random,
    "reconstruction": Reconstruction,
    "slimming": Slimming,
    "taylor": Taylor,
    "thinet": ThiNet,
}


@dataclass(frozen=True)
class ListedMethod:
    """One row of the list of methods."""

    name: str
    origin: str
    """`raprune`, or the distribution that adds the method."""
    title: str
    settings: tuple[str, ...]
    """`field=default` for each hyper-parameter."""
    labels: str = ""
    """Need of labels in a few words; empty for a method that cannot be loaded."""


def method_named(name: str) -> type[Method]:
    """Return the method with this name: built-in, of an installed distribution, or the user's `package.module:Class`.

    Raises:
        UsageError: if there is no such method, or the object with this name is no method.
    """
    if name in METHODS:
        return METHODS[name]
    if is_user_function(name):
        return _as_method(name, load_function(name, field="methods"))
    if ":" in name:
        raise UsageError(
            f"method {name!r}: a method of your own is written package.module:Class.",
            hint="For example mypackage.pruning:Smallest.",
        )
    offered = {entry.name: entry for entry in _entry_points()}
    if name not in offered:
        close = difflib.get_close_matches(name, [*METHODS, *offered], n=2)
        raise UsageError(
            f"method {name!r}: no such method. Valid: {', '.join(sorted({*METHODS, *offered}))}.",
            hint=(f"Did you mean {' or '.join(close)}? " if close else "")
            + "`raprune methods` describes each method; name your own as package.module:Class.",
        )
    return _load(offered[name])


def list_methods() -> list[ListedMethod]:
    """List all named methods: the built-in methods, then those of distributions; a broken one shows its error."""
    listed = [_listed(name, "raprune", kind) for name, kind in sorted(METHODS.items())]
    for entry in _entry_points():
        origin = f"{entry.dist.name} {entry.dist.version}" if entry.dist else entry.value
        if entry.name in METHODS:
            hidden = f"hidden by the built-in method {entry.name}; use it as {entry.value}"
            listed.append(ListedMethod(entry.name, origin, hidden, ()))
            continue
        try:
            listed.append(_listed(entry.name, origin, _load(entry)))
        except UsageError as error:
            listed.append(ListedMethod(entry.name, origin, error.message, ()))
    return listed


def _listed(name: str, origin: str, kind: type[Method]) -> ListedMethod:
    settings = tuple(f"{entry.name}={entry.default}" for entry in fields(kind))
    return ListedMethod(name, origin, kind.title, settings, _labels(kind))


def _labels(kind: type[Method]) -> str:
    """Return the method's need of labels in a few words."""
    if kind.uses_labels:
        return "needs labels"
    return "needs labels, because it trains" if kind.needs_labels() else "unlabelled images suffice"


def _entry_points() -> list[EntryPoint]:
    return sorted(entry_points(group=METHODS_GROUP), key=lambda entry: (entry.name, entry.value))


def _load(entry: EntryPoint) -> type[Method]:
    where = f"entry point {entry.name} = {entry.value}" + (f" of {entry.dist.name}" if entry.dist else "")
    try:
        found = entry.load()
    except Exception as error:
        raise UsageError(
            f"method {entry.name!r}: loading the {where} raised {type(error).__name__}: {error}",
            hint="Install the distribution again, or remove it.",
        ) from error
    return _as_method(entry.name, found, where=where)


def _as_method(name: str, found: object, *, where: str = "") -> type[Method]:
    if isinstance(found, type) and issubclass(found, Method) and found is not Method:
        return found
    what = found.__name__ if isinstance(found, type) else f"an object of type {type(found).__name__}"
    raise UsageError(
        f"method {name!r}: {where + ' is ' if where else ''}{what}, no subclass of raprune.methods.Method.",
        hint="A method is a frozen dataclass derived from Method; `raprune check --method` checks its behaviour.",
    )


__all__ = [
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


def searched_settings(method: type[Method]) -> dict[str, Mapping[str, Any]]:
    """Return the hyper-parameters of a method that are searched over, from the metadata of its fields."""
    found: dict[str, Mapping[str, Any]] = {}
    for entry in fields(method):
        if "search" in entry.metadata:
            is_int = entry.type in (int, "int")
            found[entry.name] = {"int": is_int, "default": entry.default, **entry.metadata["search"]}
    return found
