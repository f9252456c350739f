"""Random networks: programs that hypothesis draws, built of steps that take and give images `(B, C, H, W)`.

The steps are in `random_steps.py`; here they are put in a row and in branches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.channels.random_steps import SIZE, STEPS, resized

CLASSES = 3


@dataclass(frozen=True)
class Step:
    """One step of a program: its kind, three small numbers that it may use, and the programs of its branches."""

    kind: str
    a: int
    b: int
    c: int
    branches: tuple[tuple[Step, ...], ...] = ()


def programs() -> st.SearchStrategy[tuple[Step, ...]]:
    """Draw programs of two to six steps, some of which have branches."""
    numbers = st.integers(0, 11)
    plain = st.builds(Step, st.sampled_from(sorted(STEPS)), numbers, numbers, numbers)
    branch = st.lists(plain, min_size=0, max_size=2).map(tuple)
    branching = st.builds(
        Step,
        st.sampled_from(sorted(BRANCHING)),
        numbers,
        numbers,
        numbers,
        st.lists(branch, min_size=2, max_size=3).map(tuple),
    )
    return st.lists(st.one_of(plain, plain, branching), min_size=2, max_size=6).map(tuple)


class RandomNetwork(nn.Module):
    """A stem, the steps of a program and a head."""

    def __init__(self, program: tuple[Step, ...], seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            width = 4 * (1 + program[0].c % 3)
            self.stem = nn.Conv2d(3, width, 3, padding=1)
            self.steps = nn.ModuleList()
            for step in program:
                built = build_step(step, width)
                self.steps.append(built)
                width = width_of(built, width)
            self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for step in self.steps:
            x = step(x)
        out: Tensor = self.head(x.mean((2, 3)))
        return out


def build_step(step: Step, width: int) -> nn.Module:
    """Build one step that takes `width` channels."""
    if step.branches:
        return Branches(step, width)
    return STEPS[step.kind](width, step.a, step.b, step.c)


def width_of(module: nn.Module, width: int) -> int:
    """Return the number of channels that a step gives."""
    with torch.no_grad():
        return int(module.eval()(torch.zeros(1, width, SIZE, SIZE)).shape[1])


class Branches(nn.Module):
    """Several programs that read one tensor; their outputs are joined."""

    def __init__(self, step: Step, width: int) -> None:
        super().__init__()
        self.kind = step.kind
        self.paths = nn.ModuleList()
        for branch in step.branches:
            path, inside = nn.Sequential(), width
            for part in branch:
                path.append(build_step(part, inside))
                inside = width_of(path[-1], inside)
            if step.kind != "join" and inside != width:
                path.append(nn.Conv2d(inside, width, 1))
            self.paths.append(path)

    def forward(self, x: Tensor) -> Tensor:
        outs = [resized(path(x), SIZE) for path in self.paths]
        return BRANCHING[self.kind](x, outs)


def selected(x: Tensor, outs: list[Tensor]) -> Tensor:
    """Weigh the branches against each other, as selective kernels do."""
    stack = torch.stack(outs, 1)
    weights = stack.mean((3, 4), keepdim=True).softmax(1)
    return (stack * weights).sum(1)


BRANCHING: dict[str, Callable[[Tensor, list[Tensor]], Tensor]] = {
    "add": lambda x, outs: x + sum(outs[1:], outs[0]),
    "average": lambda x, outs: torch.stack(outs).mean(0),
    "gate": lambda x, outs: x * torch.sigmoid(outs[0]) + outs[1],
    "join": lambda x, outs: torch.cat([x, *outs], 1),
    "maximum": lambda x, outs: torch.maximum(outs[0], outs[1]),
    "select": selected,
}
"""Ways to join branches."""
