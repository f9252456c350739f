"""One sub-network, as plain data: which channels stay."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType

Setting = bool | int | float | str
"""The value of one hyper-parameter of a method."""


@dataclass(frozen=True)
class Candidate:
    """A sub-network: a method, its settings, and the channels that stay in each group.

    `kept` maps a group's name to the ascending indices of its channels that stay, each in
    `[0, group.num_channels)`; a group that is not named stays whole. Two candidates are equal when method,
    settings and kept channels are, whoever proposed them.
    """

    method: str
    kept: Mapping[str, tuple[int, ...]]
    settings: Mapping[str, Setting] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "kept", MappingProxyType({g: tuple(k) for g, k in self.kept.items()}))
        object.__setattr__(self, "settings", MappingProxyType(dict(self.settings)))

    @cached_property
    def id(self) -> str:
        """The first 12 hexadecimal digits of the SHA-256 of the content: the same on every machine."""
        content = {"method": self.method, "settings": dict(self.settings), "kept": dict(self.kept)}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def widths(self) -> dict[str, int]:
        """Group name -> how many channels stay."""
        return {group: len(kept) for group, kept in self.kept.items()}

    def __hash__(self) -> int:
        return hash(self.id)

    def __reduce__(self) -> tuple[object, ...]:
        # A mapping proxy does not pickle; its dictionary does.
        return Candidate, (self.method, dict(self.kept), dict(self.settings))
