"""The contract of all methods, checked on small networks for the built-in methods and for the user's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from raprune.checks.contract.checks import CHECKS, PATH_CHECKS, Check
from raprune.errors import MethodError
from raprune.methods import Method

__all__ = ["Finding", "checks_of", "examine"]


@dataclass(frozen=True)
class Finding:
    """The result of one check of a method."""

    check: str
    problem: str | None
    """Description of the method's wrong behaviour, or None if the check passed."""


def checks_of(kind: type[Method]) -> dict[str, Check]:
    """Return the checks that apply to the method, by their names."""
    return CHECKS | (PATH_CHECKS if kind.has_path() else {})


def examine(kind: type[Method]) -> Iterator[Finding]:
    """Yield one finding per check, each as soon as the check ends."""
    for name, check in checks_of(kind).items():
        try:
            check(kind)
        except MethodError as error:
            yield Finding(name, error.message)
        except Exception as error:
            first_line = str(error).partition("\n")[0]
            yield Finding(name, f"raised {type(error).__name__}: {first_line}")
        else:
            yield Finding(name, None)
