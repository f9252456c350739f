"""Groups of classes that slice the same axes, and the sizes of axes as functions of their widths."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from raprune.channels.head_groups import Heads
from raprune.channels.members import Factor, Group, Member
from raprune.channels.positions import IndexArray
from raprune.channels.shadow import Tracer

Reasons = dict[int, tuple[str, str]]
"""Module and text of the reason why a class of channels stays, by label."""


@dataclass
class Grouping:
    """The groups of a trace, and the group of every id."""

    groups: list[Group]
    of_id: IndexArray
    """Number of the group of each id; -1 if it stays."""
    head_of_id: IndexArray | None = None
    """Number of the group of heads of each id; -1 if it belongs to no head that can go. None: there are no heads."""
    of_head: IndexArray = field(default_factory=lambda: np.arange(0))
    """Number of the group of each head id; -1 if it stays."""
    head_reasons: list[tuple[str, int, str]] = field(default_factory=list)
    """Module, number and reason of the heads that stay."""


@dataclass(frozen=True)
class _Positions:
    """All positions of all axes that a trace used."""

    axes: list[tuple[str, int]]
    ids: IndexArray
    axis_number: IndexArray
    position: IndexArray

    @classmethod
    def of(cls, tracer: Tracer) -> _Positions:
        axes = list(tracer.axis_base)
        sizes = [tracer.shapes[name][axis] for name, axis in axes]
        ids = [np.arange(b, b + n) for b, n in zip(tracer.axis_base.values(), sizes, strict=True)]
        return cls(
            axes,
            np.concatenate([np.arange(0), *ids]).astype(np.int64),
            np.repeat(np.arange(len(axes)), sizes),
            np.concatenate([np.arange(n) for n in sizes] or [np.arange(0)]).astype(np.int64),
        )

    def in_classes(self, label: IndexArray, free: npt.NDArray[np.bool_]) -> _Classes:
        """Sort the free positions by the class that `label` gives each, then by axis and position."""
        # The positions are in the order of the axes already, and a stable sort keeps it.
        order = np.argsort(label[free], kind="stable")
        return _Classes(*(array[free][order] for array in (label, self.axis_number, self.position)))


@dataclass(frozen=True)
class _Classes:
    """Positions, sorted by class."""

    label: IndexArray
    axis_number: IndexArray
    position: IndexArray

    def by_axes(self) -> Iterator[tuple[tuple[int, ...], IndexArray]]:
        """Yield the axes that a class slices, once a position, and the first row of each class that slices them."""
        if not len(self.label):
            return
        starts = np.flatnonzero(np.r_[True, self.label[1:] != self.label[:-1]])
        sizes = np.diff(np.r_[starts, len(self.label)])
        # Channels of a group are mostly next to each other: a class is compared with the one before, row by row.
        row_before = np.maximum(np.arange(len(self.label)) - np.repeat(sizes, sizes), 0)
        same_axes = self.axis_number == self.axis_number[row_before]
        continues = np.r_[False, sizes[1:] == sizes[:-1]] & np.logical_and.reduceat(same_axes, starts)
        classes: dict[tuple[int, ...], list[IndexArray]] = defaultdict(list)
        first = np.flatnonzero(~continues)
        for run, size in zip(np.split(starts, first[1:]), sizes[first], strict=True):
            classes[tuple(self.axis_number[run[0] : run[0] + size].tolist())].append(run)
        for signature, runs in classes.items():
            yield signature, np.concatenate(runs)


class _Members:
    """Maker of the members of groups; equal index arrays are one object, so that a cut handles each array once."""

    def __init__(self, tracer: Tracer, axes: list[tuple[str, int]]) -> None:
        self._tracer = tracer
        self._axes = axes
        self._shared: dict[bytes, IndexArray] = {}

    def of(self, signature: tuple[int, ...], first: IndexArray, position: IndexArray) -> tuple[Member, ...]:
        members, offset = [], 0
        for axis, count in Counter(signature).items():
            indices = position[first[:, None] + offset + np.arange(count)]
            indices = self._shared.setdefault(indices.tobytes() + bytes([count % 251]), indices)
            members.append(Member(*self._axes[axis], indices, self._axes[axis] in self._tracer.written))
            offset += count
        return tuple(members)


def grouped(
    tracer: Tracer, labels: IndexArray, frozen: npt.NDArray[np.bool_], reasons: Reasons, heads: Heads | None
) -> Grouping:
    """Return the groups: classes that slice the same axes.

    A class that is alone in its group cannot be removed, because at least one channel stays: it is added to `frozen`.
    """
    places = _Positions.of(tracer)
    classes = places.in_classes(labels[places.ids], ~frozen[labels[places.ids]])
    group_of_label = np.full(len(labels), -1, dtype=np.int64)
    across = np.zeros(len(labels), dtype=bool)
    for seen in tracer.across:
        across[labels[seen]] = True
    summed, contracted = (np.zeros(len(labels), dtype=bool) for _ in range(2))
    for marks, seen_ids in ((summed, tracer.summed), (contracted, tracer.contracted)):
        for seen in seen_ids:
            marks[labels[seen]] = True
    made = _Members(tracer, places.axes)
    groups: list[Group] = []
    names: Counter[str] = Counter()
    for signature, rows in classes.by_axes():
        own = classes.label[rows]
        if len(rows) == 1:
            frozen[own] = True
            reasons[int(own[0])] = ("", "all its channels are coupled with each other")
            continue
        if all(places.axes[a] in tracer.reduced for a in signature):
            frozen[own] = True
            reasons.update(dict.fromkeys(own.tolist(), ("", "only a statistic is taken over these positions")))
            continue
        unread = not any(_reads(tracer, places.axes[a]) for a in signature) and not contracted[own].any()
        if unread and summed[own].any():
            frozen[own] = True
            reasons.update(
                dict.fromkeys(own.tolist(), ("", "no layer reads them: only a statistic is taken over them"))
            )
            continue
        name = _group_name(tracer, [places.axes[a] for a in dict.fromkeys(signature)])
        names[name] += 1
        name = name if names[name] == 1 else f"{name}#{names[name]}"
        members = made.of(signature, rows, classes.position)
        groups.append(Group(name, len(rows), members, not bool(across[own].any())))
        group_of_label[own] = len(groups) - 1
    grouping = Grouping(groups, group_of_label[labels])
    if heads is not None:
        _add_heads(tracer, grouping, places, labels, heads, across)
    return grouping


def _add_heads(
    tracer: Tracer,
    grouping: Grouping,
    places: _Positions,
    labels: IndexArray,
    heads: Heads,
    across: npt.NDArray[np.bool_],
) -> None:
    """Add the groups of heads. Heads that slice other widths of an axis than the other heads stay."""
    head = heads.of_position[places.ids]
    classes = places.in_classes(head, head > 0)
    width = np.where(grouping.of_id < 0, -1, labels)
    base = np.array([tracer.axis_base[axis] for axis in places.axes], dtype=np.int64)
    made = _Members(tracer, places.axes)
    group_of_head = np.full(int(heads.label.max()) + 1, -1, dtype=np.int64)
    for signature, rows in classes.by_axes():
        columns = rows[:, None] + np.arange(len(signature))
        ids = base[classes.axis_number[columns]] + classes.position[columns]
        axes = dict.fromkeys(places.axes[axis] for axis in signature)
        module = _module_of(heads, classes.label[rows])
        if len(rows) == 1 or not (width[ids] == width[ids[:1]]).all():
            reason = "all its heads are coupled" if len(rows) == 1 else "its heads have unequal widths"
            grouping.head_reasons.append((module, len(rows), reason))
            continue
        name = f"{module}.heads" if module else "heads"
        taken = sum(group.name.partition("#")[0] == name for group in grouping.groups)
        name = f"{name}#{taken + 1}" if taken else name
        members = made.of(signature, rows, classes.position)
        grouping.groups.append(Group(name, len(rows), members, not bool(across[labels[ids]].any() and axes)))
        group_of_head[classes.label[rows]] = len(grouping.groups) - 1
    grouping.of_head = group_of_head[heads.label]
    grouping.head_of_id = group_of_head[heads.of_position]
    grouping.head_reasons += heads.reasons


def _module_of(heads: Heads, classes: IndexArray) -> str:
    """Return the module of the first split into these heads."""
    return next(s.module for s in heads.splits if np.isin(heads.label[s.heads], classes).any())


def _reads(tracer: Tracer, axis: tuple[str, int]) -> bool:
    """Return True for an axis along which a layer with a matrix reads channels."""
    return axis not in tracer.written and len(tracer.shapes[axis[0]]) > 1


def _group_name(tracer: Tracer, axes: list[tuple[str, int]]) -> str:
    """Return the name of the first module that writes the channels."""
    for axis in axes:
        if axis in tracer.written:
            return tracer.written[axis] or axis[0]
    return axes[0][0]


class FactorTable:
    """Table of axis sizes as functions of the widths; each distinct function occurs once."""

    def __init__(self, grouping: Grouping) -> None:
        self._grouping = grouping
        self._names = [group.name for group in grouping.groups]
        self._counts = [group.num_channels for group in grouping.groups]
        self._positions: dict[tuple[object, ...], int] = {}
        self.factors: list[Factor] = []

    def of(self, ids: IndexArray, *, of_each_head: bool = False) -> int | None:
        """Return the position of the factor of an axis with these ids; None if the axis never changes its size."""
        factor = self.factor(ids, of_each_head=of_each_head)
        if factor is None:
            return None
        key = (factor.constant, tuple(factor.coefficients.items()), factor.products)
        if key not in self._positions:
            self._positions[key] = len(self.factors)
            self.factors.append(factor)
        return self._positions[key]

    def factor(self, ids: IndexArray, *, of_each_head: bool = False) -> Factor | None:
        """Return the size of an axis with these ids; None if it never changes.

        Negative ids are those of heads. With `of_each_head`, the ids stand for the width of every head.
        """
        if len(ids) and ids[0] < 0:
            return self._affine(self._grouping.of_head[-ids])
        groups, heads = self._grouping.of_id[ids], self._grouping.head_of_id
        if of_each_head or heads is None or (heads[ids] < 0).all() or self._is_one_head(groups):
            return self._affine(groups)
        constant = 0
        coefficients: dict[str, int] = {}
        products: list[tuple[str, str, int]] = []
        pairs, counts = np.unique(np.stack([heads[ids], groups]), axis=1, return_counts=True)
        for (head, group), count in zip(pairs.T.tolist(), counts.tolist(), strict=True):
            known = [number for number in (head, group) if number >= 0]
            for number in known:
                assert count % self._counts[number] == 0, f"heads and widths of {self._names[number]} are no product"
                count //= self._counts[number]
            if len(known) == 2:
                products.append((self._names[head], self._names[group], count))
            elif known:
                coefficients[self._names[known[0]]] = coefficients.get(self._names[known[0]], 0) + count
            else:
                constant += count
        return Factor(constant, coefficients, tuple(products))

    def _is_one_head(self, groups: IndexArray) -> bool:
        """True for an axis that holds each channel of the width of a head once, as the axis of a single head does."""
        first = int(groups[0]) if len(groups) else -1
        return first >= 0 and len(groups) == self._counts[first] and bool((groups == first).all())

    def _affine(self, groups: IndexArray) -> Factor | None:
        if len(groups) and (groups == groups[0]).all():
            counts = {int(groups[0]): len(groups)}
        else:
            counts = dict(zip(*(part.tolist() for part in np.unique(groups, return_counts=True)), strict=True))
        fixed = counts.pop(-1, 0)
        if not counts:
            return None
        return Factor(fixed, {self._names[n]: count // self._counts[n] for n, count in counts.items()})
