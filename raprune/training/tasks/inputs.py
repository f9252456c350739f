"""Networks with several inputs: a hook on the network parts the images of a batch into its arguments.

Everything that runs the network on a batch of images, such as the trace, the methods and the evaluation, then need not
know of it. The hook is no part of the network: an exported network is called with its own arguments.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from raprune.training.tasks.task import Task


@dataclass(frozen=True)
class InputsHook:
    """A forward pre-hook that calls a network with `task.inputs(images)`, and with what follows the images."""

    task: Task

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        images, *others = args
        return (*self.task.inputs(images), *others) if isinstance(images, Tensor) else args


def parts_images(task: Task) -> bool:
    """True if the task makes several arguments of a network from the images of a batch."""
    return type(task).inputs is not Task.inputs


def parting_inputs(model: nn.Module, task: Task) -> nn.Module:
    """Return `model`, with a hook if the task parts the images; such a network still takes a batch of images."""
    if parts_images(task):
        model.register_forward_pre_hook(InputsHook(task))
    return model
