"""What goes wrong, said so that the reader can act: what came, what is valid, what to do.

Errors cross process borders (Ray actors raise them), so each one pickles.
"""

from __future__ import annotations

EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143


class RapruneError(Exception):
    """A failure that is told in one screen: a message, and a hint that says what to do next.

    `exit_code` is what the command line returns: 1 for a failure, 2 for a request that cannot be right.
    """

    exit_code = EXIT_FAILURE

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.message, self.hint)


class Terminated(KeyboardInterrupt):
    """SIGTERM: a job manager wants the process gone. Everything ends as after Ctrl-C."""


class UsageError(RapruneError):
    """The request itself is wrong: a flag, a field or a name. Nothing has been started."""

    exit_code = EXIT_USAGE


class DataError(RapruneError):
    """A data set that cannot be read, or does not fit what was asked of it."""


class ModelError(RapruneError):
    """A network or its weights that cannot be built, loaded or run."""


class MethodError(RapruneError):
    """A method that does not do what every method must."""


class RecipeError(RapruneError):
    """A recipe that does not belong to this network, or was changed since it was written."""


class BudgetError(UsageError):
    """A budget that no sub-network can meet."""


class StoreError(RapruneError):
    """A run's folder that cannot be read or written."""


def _rebuild(kind: type[RapruneError], message: str, hint: str) -> RapruneError:
    return kind(message, hint=hint)
