"""Numbers that Python code keeps on a module, and that a cut must set anew: of heads, of their width, of both.

The numbers are found by their values and their names, and proved like everything else in a graph: the network is cut
with them, run, and compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import nn

from raprune.channels.grouping import FactorTable
from raprune.channels.head_groups import Heads
from raprune.channels.head_shadows import HeadSplit
from raprune.channels.members import Factor, SizeAttribute
from raprune.channels.parts import OTHERS, SizedPart

_OF_HEADS = ("num_heads", "n_heads", "nheads", "num_attention_heads", "heads", "num_head", "n_head", "num_groups")
"""Names of numbers of heads."""
_PARTS = (1, 2, 3)
"""Multiples of heads times width: queries, keys and values may be in one tensor."""


def size_attributes(
    model: nn.Module, heads: Heads | None, parts: Iterable[SizedPart], factors: FactorTable
) -> tuple[SizeAttribute, ...]:
    """Return the numbers on modules that split an axis into heads or into parts, as functions of the widths."""
    found: dict[tuple[str, str, int | None], SizeAttribute] = {}
    for part in parts:
        size = _size_of(part, factors)
        if size.groups:
            found.setdefault(
                (part.module, part.name, part.place), SizeAttribute(part.module, part.name, part.place, size)
            )
    for split in heads.splits if heads else ():
        module = model.get_submodule(split.module)
        sizes = _sizes(split, factors)
        for name, place, value in _numbers(module):
            named = _named(name, value, sizes)
            if named is not None and named.groups:
                found.setdefault((split.module, name, place), SizeAttribute(split.module, name, place, named))
    return tuple(found.values())


def _size_of(part: SizedPart, factors: FactorTable) -> Factor:
    width = factors.factor(part.ids, of_each_head=part.heads is not None) or Factor(len(part.ids))
    if part.heads is None or not part.times_heads:
        return width
    return _times(factors.factor(-part.heads) or Factor(len(part.heads)), width, 1)


def _sizes(split: HeadSplit, factors: FactorTable) -> dict[str, list[tuple[int, Factor]]]:
    """Return the dense numbers of a split and their factors, by kind."""
    heads = factors.factor(-split.heads) or Factor(len(split.heads))
    width = factors.factor(split.widths, of_each_head=True) or Factor(len(split.widths))
    both = len(split.heads) * len(split.widths)
    return {
        "heads": [(len(split.heads), heads)],
        "width": [(len(split.widths), width)],
        "both": [(both * parts, _times(heads, width, parts)) for parts in _PARTS],
    }


def _times(left: Factor, right: Factor, parts: int) -> Factor:
    """Return the product of two factors, neither of which has products, and of a number."""
    coefficients: dict[str, int] = {}
    for one, other in ((left, right), (right, left)):
        for name, count in one.coefficients.items():
            if other.constant:
                coefficients[name] = coefficients.get(name, 0) + count * other.constant * parts
    products = tuple((g, h, a * b * parts) for g, a in left.coefficients.items() for h, b in right.coefficients.items())
    return Factor(left.constant * right.constant * parts, coefficients, products)


def _named(name: str, value: int, sizes: dict[str, list[tuple[int, Factor]]]) -> Factor | None:
    """Return the factor of a number; where several are equal to it, its name decides."""
    lower = name.lower()
    if any(part in lower for part in OTHERS):
        return None
    kinds = ["heads"] if lower.rpartition(".")[2] in _OF_HEADS else ["width", "both", "heads"]
    for kind in kinds:
        for number, factor in sizes[kind]:
            if number == value and value > 1:
                return factor
    return None


def _numbers(module: nn.Module) -> Iterator[tuple[str, int | None, int]]:
    """Yield the whole numbers among a module's attributes: name, place in a tuple or list, value."""
    for name, value in vars(module).items():
        if name.startswith("_") or name == "training":
            continue
        if type(value) is int:
            yield name, None, value
        elif isinstance(value, tuple | list) and value and all(type(part) is int for part in value):
            for place, part in enumerate(value):
                yield name, place, part
