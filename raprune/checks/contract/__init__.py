"""What every method must do, found out on small networks: the box's own methods and the user's are held to it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from raprune.checks.contract.checks import CHECKS, PATH_CHECKS, Check
from raprune.errors import MethodError
from raprune.methods import Method

__all__ = ["Finding", "checks_of", "examine"]


@dataclass(frozen=True)
class Finding:
    """Whether one check holds."""

    check: str
    problem: str | None
    """What the method did instead; None: it holds."""


def checks_of(kind: type[Method]) -> dict[str, Check]:
    """The checks that concern the method."""
    return CHECKS | (PATH_CHECKS if kind.has_path() else {})


def examine(kind: type[Method]) -> Iterator[Finding]:
    """One finding a check, each as soon as it is known."""
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
