"""The result of a trace: the groups of coupled channels, and the costs as functions of the widths. No torch.

A *class* is a set of parameter slices that must be removed together; a *group* is all classes that slice the same
(parameter, axis) pairs, so that any subset of a group's classes can be removed. The index of a class in its group is
its *channel*.
"""

from __future__ import annotations

import hashlib
import html
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from raprune.channels.members import (
    CodeEdit,
    Factor,
    Frozen,
    Group,
    HeadRows,
    Member,
    QueryKeyProduct,
    SizeAttribute,
    Term,
    WidthScale,
)
from raprune.channels.positions import IndexArray, pack_indices, pack_positions, unpack_indices, unpack_positions

_SHOWN = 24
"""Groups that the text of a graph shows: as many as fit a screen."""


@dataclass(frozen=True)
class ChannelGraph:
    """All groups of one network, and the closed form of its costs."""

    architecture: str
    """Two digests joined by a dash: of the modules, their settings and parameter shapes, and of the whole graph."""
    input_shape: tuple[int, ...]
    """Shape `(channels, height, width)` of one image."""
    groups: tuple[Group, ...]
    frozen: tuple[Frozen, ...]
    factors: tuple[Factor, ...]
    flops: tuple[Term, ...]
    params: tuple[Term, ...]
    memory: tuple[Factor, ...] = ()
    """Bytes of the activations that live at each moment of a forward pass of one image; the largest is the peak. Empty
    if the graph was made without a trace."""
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Shape in the dense network of every parameter or buffer that a group slices, by name."""
    notes: tuple[str, ...] = ()
    """Warnings for the user, for example about parameters that the forward pass never used."""
    attributes: tuple[SizeAttribute, ...] = ()
    """Numbers on modules that a cut sets anew."""
    scales: tuple[WidthScale, ...] = ()
    """Weights that a cut multiplies, so that attention keeps the scale of the dense network."""
    products: tuple[QueryKeyProduct, ...] = ()
    """Products of queries and keys in which the basis of a head's width is free."""
    edits: tuple[CodeEdit, ...] = ()
    """Sizes in the code that a cut lets PyTorch compute."""
    gates: tuple[str, ...] = ()
    """Names of the residual blocks whose place `nn.Identity` can take (`raprune.channels.gates`), in the order in which
    they run. Empty if nobody looked for them."""

    def __repr__(self) -> str:
        return (
            f"ChannelGraph: {self._told()}\n{_as_lines(self._shown(), ('group', 'channels', 'tensors'))}{self._left()}"
        )

    def _repr_html_(self) -> str:
        """A table of the groups for a notebook."""
        head = "".join(f"<th>{title}</th>" for title in ("group", "channels", "tensors that they slice"))
        body = "".join(
            "<tr>" + "".join(f'<td style="text-align:left">{html.escape(cell)}</td>' for cell in row) + "</tr>"
            for row in self._shown()
        )
        left = html.escape(self._left().strip())
        return f"<p>{html.escape(self._told())}</p><table><tr>{head}</tr>{body}</table><p>{left}</p>"

    def _told(self) -> str:
        channels = sum(group.num_channels for group in self.groups)
        size = "x".join(map(str, self.input_shape))
        return f"{len(self.groups)} groups with {channels:,} channels, for an input of {size}"

    def _shown(self) -> list[tuple[str, str, str]]:
        """Name, channels and tensors of the groups that a screen has room for."""
        return [
            (group.name, str(group.num_channels), _few([member.parameter for member in group.members]))
            for group in self.groups[:_SHOWN]
        ]

    def _left(self) -> str:
        """A line on the groups that are not shown and on the channels that stay."""
        more = len(self.groups) - _SHOWN
        lines = [f"... and {more} more groups"] if more > 0 else []
        if self.frozen:
            stay = sum(frozen.num_channels for frozen in self.frozen)
            lines.append(f"{stay:,} channels stay whole, in {_few([frozen.module for frozen in self.frozen])}")
        return "".join(f"\n{line}" for line in lines)

    @cached_property
    def by_name(self) -> dict[str, Group]:
        return {group.name: group for group in self.groups}

    @property
    def widths(self) -> dict[str, int]:
        """Number of channels of each group in the dense network, by group name."""
        return {group.name: group.num_channels for group in self.groups}

    @cached_property
    def kinds(self) -> dict[str, int]:
        """A number for each group, by name: two groups have the same one if they slice the same kinds of layers.

        A kind of layer is the form of its weight without the numbers of channels, the axis that is sliced, and the
        positions that a channel has on it: heads, widths of heads, MLPs, streams and filters are different kinds.
        """
        known: dict[tuple[Any, ...], int] = {}
        return {group.name: known.setdefault(self._kind(group), len(known)) for group in self.groups}

    def _kind(self, group: Group) -> tuple[Any, ...]:
        layers = []
        for member in group.members:
            shape = self.shapes.get(member.parameter, ())
            if len(shape) > 1:
                layers.append((shape[2:], shape[1] == 1, member.axis, member.indices.shape[1], member.writes))
        return tuple(sorted(layers))

    def without(self, names: Mapping[str, str]) -> ChannelGraph:
        """Return the graph with the groups of `names` (name -> reason) frozen: their widths become constants."""
        if not names:
            return self
        stay = {name: self.widths[name] for name in names}
        factors = tuple(factor.without(stay) for factor in self.factors)
        attributes = (replace(attribute, size=attribute.size.without(stay)) for attribute in self.attributes)
        return replace(
            self,
            groups=tuple(group for group in self.groups if group.name not in names),
            frozen=self.frozen + tuple(Frozen(name, stay[name], reason) for name, reason in names.items()),
            factors=factors,
            memory=tuple(moment.without(stay) for moment in self.memory),
            attributes=tuple(attribute for attribute in attributes if attribute.size.groups),
            scales=tuple(scale for scale in self.scales if scale.group not in names),
        )

    def closed(self, gates: Sequence[str]) -> ChannelGraph:
        """Return the graph of the network in which `nn.Identity` stands in the place of the modules `gates`.

        Channels of the stream that a block adds to stay coupled as they were, so a group only loses its members inside
        the blocks; a group that has no others is gone. `factors` keeps its order. `memory` becomes an upper bound: it
        still counts moments inside the blocks, without the channels that are gone.
        """
        if not gates:
            return self
        prefixes = tuple(f"{gate}." for gate in gates)

        def inside(name: str) -> bool:
            return f"{name}.".startswith(prefixes)

        gone: dict[str, int] = {}
        groups = []
        for group in self.groups:
            members = tuple(member for member in group.members if not inside(member.parameter))
            if not members:
                gone[group.name] = 0
            else:
                groups.append(group if len(members) == len(group.members) else replace(group, members=members))
        attributes = (replace(a, size=a.size.without(gone)) for a in self.attributes if not inside(a.module))
        return replace(
            self,
            groups=tuple(groups),
            frozen=tuple(frozen for frozen in self.frozen if not inside(frozen.module)),
            factors=tuple(factor.without(gone) for factor in self.factors),
            flops=tuple(term for term in self.flops if not inside(term.module)),
            params=tuple(term for term in self.params if not inside(term.module)),
            memory=tuple(moment.without(gone) for moment in self.memory),
            shapes={name: shape for name, shape in self.shapes.items() if not inside(name)},
            attributes=tuple(attribute for attribute in attributes if attribute.size.groups),
            scales=tuple(s for s in self.scales if not inside(s.parameter) and s.group not in gone),
            products=tuple(p for p in self.products if not any(inside(r.parameter) for r in (*p.queries, *p.keys))),
            edits=tuple(edit for edit in self.edits if not inside(edit.module)),
            gates=tuple(gate for gate in self.gates if gate not in gates),
        )

    def only(self, names: Iterable[str]) -> ChannelGraph:
        """Return the graph with only the groups of `names`; all other groups stay whole."""
        wanted = set(names)
        others = {group.name: "left out" for group in self.groups if group.name not in wanted}
        return replace(self.without(others), frozen=self.frozen)

    def after(self, kept: Mapping[str, tuple[int, ...]]) -> ChannelGraph:
        """Return the graph of the network that keeps only the channels of `kept`, renumbered from 0.

        A group that is not in `kept` stays whole. The closed form of the costs does not change, because it is a
        function of the widths.
        """
        positions = KeptPositions(self, kept)
        stays = {group.name: np.flatnonzero(positions.stays(group)) for group in self.groups}
        position: dict[tuple[str, int], IndexArray] = {}
        left_of: dict[tuple[str, int], IndexArray] = {}

        def renumbered(parameter: str, axis: int, indices: IndexArray) -> IndexArray:
            """Return the new positions of `indices`, without those that another group of the same axis removed."""
            here = np.isin(indices, left_of[parameter, axis])
            new = position[parameter, axis][indices]
            return new if here.all() else new[here].reshape(*indices.shape[:-1], -1)

        shapes = {name: list(shape) for name, shape in self.shapes.items()}
        for parameter, axis in {(m.parameter, m.axis): None for group in self.groups for m in group.members}:
            left = positions.of(parameter, axis)
            position[parameter, axis] = np.zeros(self.shapes[parameter][axis], dtype=np.int64)
            position[parameter, axis][left] = np.arange(len(left))
            shapes[parameter][axis] = len(left)
            left_of[parameter, axis] = left
        groups = tuple(
            replace(
                group,
                num_channels=len(stays[group.name]),
                members=tuple(
                    replace(m, indices=renumbered(m.parameter, m.axis, m.indices[stays[group.name]]))
                    for m in group.members
                ),
            )
            for group in self.groups
        )
        scales = tuple(replace(s, positions=renumbered(s.parameter, 0, s.positions)) for s in self.scales)

        def left_in(rows: HeadRows) -> HeadRows:
            left = left_of.get((rows.parameter, 0))
            if left is None:
                return rows
            heads = np.isin(rows.positions, left).any(axis=1)
            return replace(rows, positions=renumbered(rows.parameter, 0, rows.positions[heads]))

        products = tuple(
            QueryKeyProduct(tuple(map(left_in, p.queries)), tuple(map(left_in, p.keys))) for p in self.products
        )
        return replace(
            self,
            groups=groups,
            scales=scales,
            products=products,
            shapes={name: tuple(shape) for name, shape in shapes.items()},
        )

    def digest(self) -> str:
        """Return a digest of the groups, the costs and the frozen channels; texts for the user do not affect it.

        Neither do `memory` and `products`, which graphs of earlier versions do not have, and `gates`, for which not
        everyone looks.
        """
        content = self.to_json()
        del content["architecture"], content["notes"], content["memory"]
        content.pop("gates", None)
        content.pop("products", None)
        content["frozen"] = [[f.module, f.num_channels] for f in self.frozen]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        """Return plain data from which `from_json` makes an equal graph."""
        # Members over the same positions share one index array (trace.py).
        arrays = {id(m.indices): m.indices for g in self.groups for m in g.members}
        packed = {key: pack_indices(indices) for key, indices in arrays.items()}
        return {
            "architecture": self.architecture,
            "input_shape": list(self.input_shape),
            "groups": [
                {
                    "name": g.name,
                    "num_channels": g.num_channels,
                    "maskable": g.maskable,
                    "members": [
                        {"parameter": m.parameter, "axis": m.axis, "writes": m.writes, **packed[id(m.indices)]}
                        for m in g.members
                    ],
                }
                for g in self.groups
            ],
            "frozen": [[f.module, f.num_channels, f.reason] for f in self.frozen],
            "factors": [factor.to_json() for factor in self.factors],
            "flops": [[t.module, t.coefficient, list(t.factors)] for t in self.flops],
            "params": [[t.module, t.coefficient, list(t.factors)] for t in self.params],
            "memory": [moment.to_json() for moment in self.memory],
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
            "notes": list(self.notes),
            # Only where there are some: the digests of all other networks stay as they were.
            **({"attributes": [_attribute_row(a) for a in self.attributes]} if self.attributes else {}),
            **({"scales": [_scale_row(s) for s in self.scales]} if self.scales else {}),
            **({"products": [_product_row(product) for product in self.products]} if self.products else {}),
            **({"edits": [list(astuple(edit)) for edit in self.edits]} if self.edits else {}),
            **({"gates": list(self.gates)} if self.gates else {}),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ChannelGraph:
        def terms(rows: list[Any]) -> tuple[Term, ...]:
            return tuple(Term(module, coefficient, tuple(factors)) for module, coefficient, factors in rows)

        arrays: dict[str, IndexArray] = {}

        def indices(member: Mapping[str, Any]) -> IndexArray:
            # Equal index arrays become one object again, as after a trace, so that a cut handles each array once.
            packed = {key: member[key] for key in ("affine", "indices") if key in member}
            return arrays.setdefault(repr(packed), unpack_indices(packed))

        return cls(
            architecture=data["architecture"],
            input_shape=tuple(data["input_shape"]),
            groups=tuple(
                Group(
                    g["name"],
                    g["num_channels"],
                    tuple(Member(m["parameter"], m["axis"], indices(m), m["writes"]) for m in g["members"]),
                    g["maskable"],
                )
                for g in data["groups"]
            ),
            frozen=tuple(Frozen(*row) for row in data["frozen"]),
            factors=tuple(Factor.from_json(*row) for row in data["factors"]),
            flops=terms(data["flops"]),
            params=terms(data["params"]),
            memory=tuple(Factor.from_json(*row) for row in data["memory"]),
            shapes={name: tuple(shape) for name, shape in data["shapes"].items()},
            notes=tuple(data["notes"]),
            attributes=tuple(
                SizeAttribute(module, name, place, Factor.from_json(*size))
                for module, name, place, size in data.get("attributes", ())
            ),
            scales=tuple(
                WidthScale(parameter, unpack_positions(runs), group)
                for parameter, runs, group in data.get("scales", ())
            ),
            products=tuple(
                QueryKeyProduct(
                    *(tuple(HeadRows(name, unpack_indices(packed)) for name, packed in side) for side in row)
                )
                for row in data.get("products", ())
            ),
            edits=tuple(CodeEdit(*row) for row in data.get("edits", ())),
            gates=tuple(data.get("gates", ())),
        )


def _attribute_row(attribute: SizeAttribute) -> list[Any]:
    return [attribute.module, attribute.name, attribute.place, attribute.size.to_json()]


def _product_row(product: QueryKeyProduct) -> list[Any]:
    return [
        [[rows.parameter, pack_indices(rows.positions)] for rows in side] for side in (product.queries, product.keys)
    ]


def _scale_row(scale: WidthScale) -> list[Any]:
    return [scale.parameter, pack_positions(scale.positions), scale.group]


def _few(names: Sequence[str], most: int = 3) -> str:
    """The first names, each once, and how many more there are."""
    known = list(dict.fromkeys(names))
    more = f" and {len(known) - most} more" if len(known) > most else ""
    return ", ".join(known[:most]) + more


def _as_lines(rows: Sequence[tuple[str, ...]], head: tuple[str, ...]) -> str:
    """Rows below a head, in columns of equal width."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    lines = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in (head, *rows)
    )
    return "\n".join(lines)


class KeptPositions:
    """The positions that stay in a network of `graph` that keeps only the channels of `kept`.

    A group that is not in `kept` stays whole. The channels are taken as they are: `raprune.channels.cut` checks them.
    This class is here, and not beside the cut, because methods import the graph and no surgery.
    """

    def __init__(self, graph: ChannelGraph, kept: Mapping[str, Sequence[int]]) -> None:
        self._graph = graph
        self._kept = kept
        self._removed: dict[tuple[str, int], list[IndexArray]] = {}
        for group in graph.groups:
            stays = self.stays(group)
            if stays.all():
                continue
            gone: dict[int, IndexArray] = {}
            for member in group.members:
                # Members over the same positions share one index array (trace.py).
                if id(member.indices) not in gone:
                    gone[id(member.indices)] = member.indices[~stays].reshape(-1)
                self._removed.setdefault((member.parameter, member.axis), []).append(gone[id(member.indices)])
        self._positions: dict[tuple[int, ...], IndexArray] = {}

    def stays(self, group: Group) -> npt.NDArray[np.bool_]:
        """Return for each channel of `group` whether it stays."""
        stays = np.ones(group.num_channels, dtype=bool)
        if group.name in self._kept:
            stays[:] = False
            stays[list(self._kept[group.name])] = True
        return stays

    @property
    def sliced(self) -> list[tuple[str, int]]:
        """Every parameter or buffer and axis that loses a position."""
        return list(self._removed)

    def of(self, parameter: str, axis: int) -> IndexArray:
        """Return the positions of an axis that stay, ascending; axes that lose the same positions share one array."""
        parts = self._removed.get((parameter, axis), [])
        size = self._graph.shapes[parameter][axis]
        key = (size, *(id(part) for part in parts))
        if key not in self._positions:
            stay = np.ones(size, dtype=bool)
            for part in parts:
                stay[part] = False
            self._positions[key] = np.flatnonzero(stay)
        return self._positions[key]

    def gain(self, parameter: str) -> npt.NDArray[np.float64] | None:
        """Return the factor of each position on the first axis that stays (`WidthScale`); None if all are 1."""
        scales = [s for s in self._graph.scales if s.parameter == parameter and s.group in self._kept]
        if not scales:
            return None
        stays = self.of(parameter, 0)
        gain = np.ones(len(stays))
        for scale in scales:
            group = self._graph.by_name[scale.group]
            gain[np.isin(stays, scale.positions)] *= (len(self._kept[scale.group]) / group.num_channels) ** 0.5
        return gain

    def removed(self, group: Group, member: Member) -> IndexArray:
        """Return the positions of `member`, which is one of `group`, that are removed."""
        return member.indices[~self.stays(group)].reshape(-1)
