"""Tasks: the loss and the metric of a network. One file a task; open `task.py` first."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from raprune.errors import UsageError
from raprune.plugins import check_name_form, is_user_function, load_function
from raprune.training.tasks.classification import Classification
from raprune.training.tasks.columns import MultiLabel, Regression
from raprune.training.tasks.segmentation import Segmentation
from raprune.training.tasks.task import Task

TASKS: dict[str, Callable[[], Task]] = {
    "classification": Classification,
    "segmentation": Segmentation,
    "multi_label": MultiLabel,
    "regression": Regression,
}
"""Tasks by name."""


@cache
def task_named(name: str) -> Task:
    """Return the task of a name in `TASKS`, or the user's own, `package.module:Class`.

    Raises:
        UsageError: if there is no such task, or the class is none.
    """
    if name in TASKS:
        return TASKS[name]()
    check_name_form(name, field="task (--task)")
    if not is_user_function(name):
        raise UsageError(
            f"task (--task) {name!r}: no such task.", hint=f"Valid: {', '.join(TASKS)}, or package.module:Class."
        )
    made = load_function(name, field="task (--task)")
    if not (isinstance(made, type) and issubclass(made, Task)):
        raise UsageError(
            f"task (--task) {name!r} is no class of tasks.",
            hint="Derive it from raprune.training.tasks.task.Task: docs/tasks.md has an example.",
        )
    try:
        task = made()
    except TypeError as error:
        raise UsageError(
            f"task (--task) {name!r} cannot be made: {error}",
            hint="A task is made without arguments, and has metric, loss, sums and value: docs/tasks.md.",
        ) from error
    if not getattr(task, "metric", ""):
        raise UsageError(
            f"task (--task) {name!r} has no name of its metric.", hint='Give it one: metric = "mean error".'
        )
    return task
