"""`package.module:function`: what the user brings."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

from raprune.errors import UsageError

TIMM = "timm:"
"""Networks of timm are called by their name behind this, which looks like a module."""


def is_user_function(name: str) -> bool:
    """True if `name` has the form `package.module:function`, with every part an identifier, and is not timm's."""
    module, colon, function = name.partition(":")
    return (
        bool(colon)
        and not name.startswith(TIMM)
        and all(part.isidentifier() for part in [*module.split("."), function])
    )


def load_function(name: str, *, field: str) -> Callable[..., Any]:
    """The function that `package.module:function` names; the working directory is on the path.

    `field` is the field of the spec that named it, for the message.

    Raises:
        UsageError: if the module cannot be imported or has no such function.
    """
    module_name, _, function_name = name.partition(":")
    if os.getcwd() not in sys.path and "" not in sys.path:
        # The `raprune` script has its own folder there, not the one in which it was called.
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise UsageError(
            f"{field} {name!r}: importing {module_name} raised {type(error).__name__}: {error}",
            hint=f"Python looks for {module_name} in the working directory and in what is installed.",
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        found = sorted(key for key, value in vars(module).items() if callable(value) and not key.startswith("_"))
        raise UsageError(
            f"{field} {name!r}: {module_name} has no function {function_name}.",
            hint=f"It has: {', '.join(found) or 'none'}.",
        )
    result: Callable[..., Any] = function
    return result


def check_name_form(name: str, *, field: str) -> None:
    """Refuse a name with a colon that is no `package.module:function`.

    Raises:
        UsageError: naming the field.
    """
    if ":" in name and not is_user_function(name):
        raise UsageError(
            f"{field} {name!r}: a function of your own is written package.module:function.",
            hint="For example mypackage.nets:tiny_resnet.",
        )
