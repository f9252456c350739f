"""The parts of a graph: groups with their members, sizes as functions of widths, what a cut does to code. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

from raprune.channels.positions import IndexArray


@dataclass(frozen=True)
class Member:
    """One axis of one parameter or buffer that a group slices.

    `indices[c]` are the positions on `axis` that channel c owns; shape `(num_channels, multiplicity)`. The multiplicity
    is above 1 after a flatten (height x width positions per channel) and where equal parts are coupled.
    """

    parameter: str
    axis: int
    indices: IndexArray
    writes: bool = False
    """True if the layer writes the channels along this axis (its filters); False if it reads or scales them."""

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.indices.shape))
        return f"Member({self.parameter!r}, axis={self.axis}, indices={shape}, writes={self.writes})"


@dataclass(frozen=True)
class Group:
    """Channels of several layers that must be removed together."""

    name: str
    """Name of the module that writes the channels."""
    num_channels: int
    members: tuple[Member, ...]
    maskable: bool = True
    """True if zeroing a channel equals removing it; False if a normalisation runs across the channels."""


@dataclass(frozen=True)
class Factor:
    """The size of one tensor axis as a function of the widths.

    It is `constant + sum(coefficients[g] * width[g]) + sum(c * width[g] * width[h] for g, h, c in products)`: an axis
    of attention has as many positions as heads times their width.
    """

    constant: int
    coefficients: Mapping[str, int] = field(default_factory=dict)
    products: tuple[tuple[str, str, int], ...] = ()

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the groups that change the size, each once."""
        both = (name for *pair, _ in self.products for name in pair)
        return tuple(dict.fromkeys([*self.coefficients, *both]))

    def size(self, widths: Mapping[str, int]) -> int:
        """Return the size of the axis at `widths`, which names all groups of the factor."""
        affine = self.constant + sum(c * widths[g] for g, c in self.coefficients.items())
        return affine + sum(c * widths[g] * widths[h] for g, h, c in self.products)

    def part_of(self, name: str, widths: Mapping[str, int]) -> int:
        """Return the number of positions at `widths` that go if all channels of the group `name` go."""
        part = self.coefficients.get(name, 0) * widths[name]
        return part + sum(c * widths[g] * widths[h] for g, h, c in self.products if name in (g, h))

    def without(self, widths: Mapping[str, int]) -> Factor:
        """Return the factor with the groups of `widths` as constants of these widths."""
        constant = self.constant + sum(c * widths[g] for g, c in self.coefficients.items() if g in widths)
        coefficients = {g: c for g, c in self.coefficients.items() if g not in widths}
        products = []
        for g, h, c in self.products:
            left = [name for name in (g, h) if name not in widths]
            known = c * prod(widths[name] for name in (g, h) if name in widths)
            if len(left) == 2:
                products.append((g, h, c))
            elif left:
                coefficients[left[0]] = coefficients.get(left[0], 0) + known
            else:
                constant += known
        return Factor(constant, coefficients, tuple(products))

    def to_json(self) -> list[Any]:
        """Return plain data; a factor without products has two parts, as before there were products."""
        affine = [self.constant, dict(self.coefficients)]
        return [*affine, [list(product) for product in self.products]] if self.products else affine

    @classmethod
    def from_json(cls, constant: int, coefficients: Mapping[str, int], products: Sequence[Any] = ()) -> Factor:
        return cls(constant, coefficients, tuple((g, h, c) for g, h, c in products))


@dataclass(frozen=True)
class SizeAttribute:
    """A number that Python code keeps on a module, such as a number of heads, as a function of the widths."""

    module: str
    name: str
    """Name of the attribute."""
    place: int | None
    """Index in the attribute, if it is a tuple or a list."""
    size: Factor


@dataclass(frozen=True)
class CodeEdit:
    """A change of the code of a module: -1 in place of one size of a reshape, or a number in place of an expression.

    Where another size of the reshape is -1, `y.reshape(B, C, -1)` gets the size of `y` along an axis in place of `C`.
    """

    module: str
    function: str
    """Method of the module's class, or function that its `forward` calls."""
    call: str
    """Text of the call or of the expression, as `ast.unparse` writes it."""
    argument: int = -1
    """Place of the size in the reshape; negative for an expression."""
    value: float = -1
    """Number that the dense network has in place of an expression; the axis of `y`, if another size is -1."""


@dataclass(frozen=True)
class WidthScale:
    """Positions on the first axis of a parameter that a cut multiplies by `sqrt(width / num_channels)` of a group.

    PyTorch's attention divides the products of queries and keys by the root of their width. The products that stay
    must not change, so the queries take up the difference.
    """

    parameter: str
    positions: IndexArray
    group: str

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, WidthScale):
            return NotImplemented
        mine, theirs = ((s.parameter, s.group) for s in (self, other))
        return mine == theirs and np.array_equal(self.positions, other.positions)

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True)
class HeadRows:
    """Positions on the first axis of a parameter that write the channels of each head."""

    parameter: str
    positions: IndexArray
    """Shape `(heads, width)`."""

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, HeadRows):
            return NotImplemented
        return self.parameter == other.parameter and np.array_equal(self.positions, other.positions)

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True)
class QueryKeyProduct:
    """The products of queries and keys of one attention, head by head, and the parameters that write both.

    The network does nothing else with these queries and keys, so that every basis of a head's width gives the same
    products: the rows of the queries of a head may be replaced by `A` times them, if those of the keys are replaced by
    the inverse of `A`, transposed, times them.
    """

    queries: tuple[HeadRows, ...]
    """The weight, then biases."""
    keys: tuple[HeadRows, ...]
    """The same for the keys. Heads that share their keys have equal rows here."""


@dataclass(frozen=True)
class Term:
    """A cost of module `module` that is a product of axis sizes: `coefficient * prod(factors)`."""

    module: str
    coefficient: int
    factors: tuple[int, ...]
    """Indices into `ChannelGraph.factors`."""


@dataclass(frozen=True)
class Frozen:
    """Channels that cannot be removed, and the reason."""

    module: str
    num_channels: int
    reason: str
