"""Functions of the user, named as `package.module:function`."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

from raprune.errors import UsageError

TIMM = "timm:"
"""Prefix of the names of timm's networks; it looks like a module of the user."""


GIVEN = "object:"
"""Prefix of the names of networks and data sets that a Python session gave as objects."""


def is_user_function(name: str) -> bool:
    """True if `name` has the form `package.module:function` with identifiers, and is neither timm's nor an object's."""
    module, colon, function = name.partition(":")
    return (
        bool(colon)
        and not name.startswith((TIMM, GIVEN))
        and all(part.isidentifier() for part in [*module.split("."), function])
    )


def load_function(name: str, *, field: str) -> Callable[..., Any]:
    """Import the function that `package.module:function` names; the working directory is on the import path.

    `field` is the field of the spec that holds the name, for error messages.

    Raises:
        UsageError: if the module cannot be imported or has no such function.
    """
    module_name, _, function_name = name.partition(":")
    if os.getcwd() not in sys.path and "" not in sys.path:
        # The `raprune` script puts its own folder on the path, not the working directory.
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise UsageError(
            f"{field} {name!r}: importing {module_name} raised {type(error).__name__}: {error}",
            hint=f"Python looks for {module_name} in the working directory and in the installed packages.",
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        found = sorted(key for key, value in vars(module).items() if callable(value) and not key.startswith("_"))
        raise UsageError(
            f"{field} {name!r}: {module_name} has no function {function_name}.",
            hint=f"Its functions: {', '.join(found) or 'none'}.",
        )
    result: Callable[..., Any] = function
    return result


def check_name_form(name: str, *, field: str) -> None:
    """Refuse a name that has a colon and is not of the form `package.module:function`.

    Raises:
        UsageError: if the name has another form; the message names the field.
    """
    if ":" in name and not is_user_function(name):
        raise UsageError(
            f"{field} {name!r}: a function of your own is written package.module:function.",
            hint="For example mypackage.nets:tiny_resnet.",
        )
