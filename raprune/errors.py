"""Errors for the user: each message says what was wrong, what came, what is valid, and what to do.

Errors cross process borders (Ray actors raise them), so each error pickles.
"""

from __future__ import annotations

EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143


class RapruneError(Exception):
    """Base class of all errors that are shown to the user: a message, and a hint that says what to do next.

    `exit_code` is the exit status of the command line: 1 for a failure, 2 for an invalid request.
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
    """Raised on SIGTERM, which a job manager sends to end the process. The run then ends as after Ctrl-C."""


class UsageError(RapruneError):
    """An error in the request itself: a flag, a field or a name. Nothing has been started."""

    exit_code = EXIT_USAGE


class DataError(RapruneError):
    """A data set that cannot be read, or that does not fit the request."""


class ModelError(RapruneError):
    """A network or its weights that cannot be built, loaded or run."""


class TargetError(RapruneError):
    """A timing worker that does not answer, or that refuses a request."""


class MethodError(RapruneError):
    """A method that breaks the contract of all methods."""


class RecipeError(RapruneError):
    """A recipe that does not belong to this network, or that was changed after it was written."""


class BudgetError(UsageError):
    """A budget that no sub-network can meet."""


class StoreError(RapruneError):
    """A run's folder that cannot be read or written."""


def _rebuild(kind: type[RapruneError], message: str, hint: str) -> RapruneError:
    return kind(message, hint=hint)
