"""Tasks: the loss and the metric of a network. One file a task; open `task.py` first."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec

from raprune.errors import UsageError
from raprune.plugins import check_name_form, is_user_function, load_function
from raprune.training.tasks.classification import Classification
from raprune.training.tasks.columns import MultiLabel, Regression
from raprune.training.tasks.detection import Detection
from raprune.training.tasks.segmentation import Segmentation
from raprune.training.tasks.task import Task

TASKS: dict[str, Callable[[], Task]] = {
    "classification": Classification,
    "segmentation": Segmentation,
    "detection": Detection,
    "multi_label": MultiLabel,
    "regression": Regression,
}
"""Tasks by name."""


@cache
def task_named(name: str) -> Task:
    """Return the task of a name in `TASKS`, or the user's own, `package.module:Class`.

    Raises:
        UsageError: if there is no such task, the class is none, or a module that it needs is not installed.
    """
    if name in TASKS:
        return _installed(name, TASKS[name]())
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


def _installed(name: str, task: Task) -> Task:
    missing = [module for module in task.needs if find_spec(module) is None]
    if missing:
        raise UsageError(
            f"task (--task) {name!r}: not installed: {', '.join(missing)}.", hint=f"pip install 'raprune[{name}]'"
        )
    return task
