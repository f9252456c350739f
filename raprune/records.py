"""Records of a search, frozen and without torch: `Candidate`, `Proposal`, `Metrics`, `Trial`."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property, lru_cache
from itertools import compress
from types import MappingProxyType
from typing import Any

from raprune.spec.budget import Budget

Setting = bool | int | float | str
"""The value of one hyper-parameter of a method."""

_LENGTH = 2
"""Bytes of the number in front of the bits of each group: the bytes of those bits."""

_TO_BITS = bytes.maketrans(b"01", b"\x00\x01")


class KeptChannels(Mapping[str, tuple[int, ...]]):
    """The channels that stay in each group: group name -> ascending indices, unpacked when they are asked for.

    Thousands of trials hold them: those of a ResNet-50 take 70 KB as tuples of integers, and 1.5 KB as bits. `bits`
    holds the groups in their order: a length in two bytes, then one bit a channel up to the last one that stays.
    """

    __slots__ = ("_names", "bits")

    def __init__(self, names: Sequence[str], bits: bytes) -> None:
        self._names = _shared(tuple(names))
        self.bits = bits

    @classmethod
    def of(cls, kept: Mapping[str, Sequence[int]]) -> KeptChannels:
        """The packed form of a mapping of ascending indices."""
        return kept if isinstance(kept, KeptChannels) else cls(tuple(kept), b"".join(map(_pack, kept.values())))

    @property
    def widths(self) -> dict[str, int]:
        """Group name -> number of channels that stay."""
        return {name: piece.bit_count() for name, piece in self._pieces()}

    def __getitem__(self, name: str) -> tuple[int, ...]:
        for group, piece in self._pieces():
            if group == name:
                return _unpack(piece)
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __eq__(self, other: object) -> bool:
        if isinstance(other, KeptChannels) and self._names == other._names:
            return self.bits == other.bits
        return dict(self) == dict(other) if isinstance(other, Mapping) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # as any mapping

    def __repr__(self) -> str:
        return f"KeptChannels({dict(self)})"

    def __reduce__(self) -> tuple[Any, ...]:
        return KeptChannels, (self._names, self.bits)

    def _pieces(self) -> Iterator[tuple[str, int]]:
        """Each group with its bits as one integer."""
        bits, at = self.bits, 0
        for name in self._names:
            begin = at + _LENGTH
            at = begin + int.from_bytes(bits[at:begin], "little")
            yield name, int.from_bytes(bits[begin:at], "little")


class GroupRatios(Mapping[str, float]):
    """Group name -> ratio."""

    __slots__ = ("_names", "_values")

    def __init__(self, names: Sequence[str], values: bytes) -> None:
        self._names = _shared(tuple(names))
        self._values = values

    @classmethod
    def of(cls, ratios: Mapping[str, float]) -> GroupRatios:
        """The packed form of a mapping."""
        return ratios if isinstance(ratios, GroupRatios) else cls(tuple(ratios), array("d", ratios.values()).tobytes())

    def __getitem__(self, name: str) -> float:
        if name not in self._names:
            raise KeyError(name)
        return array("d", self._values)[self._names.index(name)]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __repr__(self) -> str:
        return f"GroupRatios({dict(self)})"

    def __reduce__(self) -> tuple[Any, ...]:
        return GroupRatios, (self._names, self._values)


@dataclass(frozen=True)
class Candidate:
    """A sub-network: a method, its settings, and the channels that stay in each group.

    `kept` maps a group's name to the indices of its channels that stay, in any order, each once and in
    `[0, group.num_channels)`; a group that is not named stays whole. The cut refuses other indices. Two
    candidates are equal when method, settings and kept channels are, whoever proposed them.
    """

    method: str
    kept: Mapping[str, tuple[int, ...]]
    settings: Mapping[str, Setting] = field(default_factory=dict)
    identity: tuple[str, ...] = ()
    """Names of the blocks whose place `nn.Identity` takes. Groups that are all inside of them are not in `kept`."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "kept", _packed(self.kept))
        object.__setattr__(self, "identity", tuple(sorted(self.identity)))
        object.__setattr__(self, "settings", MappingProxyType(dict(self.settings)))

    @classmethod
    def recorded(
        cls,
        method: str,
        kept: KeptChannels,
        settings: Mapping[str, Setting],
        identity: tuple[str, ...] = (),
        *,
        candidate_id: str,
    ) -> Candidate:
        """A candidate with the id under which it was recorded, which is expensive to compute again."""
        candidate = cls(method, kept, settings, identity)
        candidate.__dict__["id"] = candidate_id
        return candidate

    @cached_property
    def id(self) -> str:
        """The first 12 hexadecimal digits of the SHA-256 of the content: the same on every machine."""
        content = {"method": self.method, "settings": dict(self.settings), "kept": dict(self.kept)}
        # Only where blocks are gone: the ids of all other candidates stay as they were.
        content |= {"identity": list(self.identity)} if self.identity else {}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def widths(self) -> dict[str, int]:
        """Group name -> number of channels that stay."""
        if isinstance(self.kept, KeptChannels):
            return self.kept.widths
        return {name: len(channels) for name, channels in self.kept.items()}

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        gone = f", {len(self.identity)} blocks gone" if self.identity else ""
        channels = f"{sum(self.widths.values())} channels in {len(self.kept)} groups{gone}"
        return f"Candidate({self.id} by {self.method!r}: {channels})"

    def __reduce__(self) -> tuple[object, ...]:
        # A mapping proxy does not pickle; its dictionary does. The id is expensive to compute again.
        return _candidate, (self.method, self.kept, dict(self.settings), self.id, self.identity)


def _candidate(
    method: str,
    kept: KeptChannels,
    settings: Mapping[str, Setting],
    candidate_id: str,
    identity: tuple[str, ...] = (),
) -> Candidate:
    return Candidate.recorded(method, kept, settings, identity, candidate_id=candidate_id)


@dataclass(frozen=True, kw_only=True)
class CandidateOutline:
    """A candidate that was read without its channel indices, which would fill the memory of a reader of many trials."""

    id: str
    method: str
    settings: Mapping[str, Setting]
    widths: Mapping[str, int]
    """Group name -> number of channels that stay."""
    identity: tuple[str, ...] = ()
    """Names of the blocks whose place `nn.Identity` takes."""


class TrialState(StrEnum):
    """The state of a trial. A trial is stopped early; only channels are pruned.

    A trial that ended below the last rung of successive halving is STOPPED, even if a trial of the next rung continues
    it: its accuracy does not count.
    """

    WAITING = "WAITING"
    RUNNING = "RUNNING"
    COMPLETE = "COMPLETE"
    STOPPED = "STOPPED"
    FAILED = "FAILED"


class Stage(StrEnum):
    """How far a trial takes its network: cut and repaired, or fine-tuned as well."""

    SEARCH = "search"
    FINETUNE = "finetune"


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """A proposal of the searcher. The channels that stay are known once the method has scored them.

    `allocation` is a name of `raprune.pruning.allocate.ALLOCATIONS`: how scores become widths. `keep_ratios` maps a
    group's name to the fraction of its channels to keep, in (0, 1], before the projection onto the target; groups that
    are not named use 1. The name of a residual block is mapped to 0 if the block goes. `target` holds the fractions of
    the dense network that the candidate should reach and must not exceed; a cost without a value has no limit.
    """

    number: int
    """Position in the search, from 0. The sampler hears of results in this order."""
    method: str
    allocation: str
    target: Budget
    settings: Mapping[str, Setting] = field(default_factory=dict)
    keep_ratios: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0
    stage: Stage = Stage.SEARCH
    parent: str | None = None
    """The search trial that a fine-tuned finalist continues."""
    step: int | None = None
    """Number of the network on the path of a method that trains while it cuts, from 0. None: the requested network,
    the last of the path."""
    rung: int = 0
    """Rung of successive halving that the trial reached. From 1 on it continues `parent`, the rung before."""
    repeat: int = 0
    """Number of the seed of a finalist that is fine-tuned with several seeds, from 0."""
    cuts: int = 1
    """Number of cuts on the way to a finalist, with training after each."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "keep_ratios", GroupRatios.of(self.keep_ratios))

    @property
    def trial_id(self) -> str:
        """Unique in a run, and the same again when the run is resumed."""
        on_the_way = "" if self.step is None else f".{self.step}"
        rung = f"-r{self.rung}" if self.rung else ""
        cuts = f"-c{self.cuts}" if self.cuts > 1 else ""
        repeat = f"-s{self.repeat}" if self.repeat else ""
        return f"{self.stage.value}-{self.number:05d}{rung}{cuts}{repeat}{on_the_way}"


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """Cost and accuracy of a network. Counts are in units for one image, fractions in [0, 1]."""

    accuracy: float
    """Top-1 on the validation split."""
    loss: float
    """Mean cross-entropy on the validation split."""
    flops: int
    """Multiply-adds counted as 2."""
    params: int
    flops_fraction: float
    params_fraction: float
    zeros: int = 0
    """Parameters that are stored and exactly zero: weights that were pruned one by one."""
    latency_ms: float | None = None
    """Latency of one batch on the run's device, predicted by the latency table; None if there is no table."""
    latency_fraction: float | None = None
    """Fraction of the dense network's latency, which was measured with the table; at most 1."""
    memory_bytes: int | None = None
    """Peak of the activations of one image in float32, in closed form; None in records of earlier versions and for
    networks with maxout units."""
    memory_fraction: float | None = None


@dataclass(frozen=True, kw_only=True)
class Trial:
    """The record of a proposal that was tried: one row of the store."""

    trial_id: str
    proposal: Proposal
    state: TrialState
    candidate: Candidate | CandidateOutline | None = None
    metrics: Metrics | None = None
    """After the last step of the trial's stage."""
    accuracy_after_cut: float | None = None
    """Validation accuracy before any repair."""
    accuracy_after_repair: float | None = None
    """Validation accuracy after repair, before any fine-tuning."""
    epochs: float = 0.0
    """Epochs of training behind `metrics` since the dense network, including the method's own phases."""
    error: str | None = None
    seconds: float = 0.0
    gpu_seconds: float = 0.0
    started_at: float = 0.0
    """Seconds since the epoch."""
    worker: str = ""
    """Node and process that ran it."""

    @property
    def counts(self) -> bool:
        """True if the trial ended with a network that may stand on the front."""
        return self.state is TrialState.COMPLETE and self.candidate is not None and self.metrics is not None

    @property
    def outline(self) -> Trial:
        """The trial without its channel indices, for a reader of many trials."""
        made = self.candidate
        if not isinstance(made, Candidate):
            return self
        outline = CandidateOutline(
            id=made.id, method=made.method, settings=dict(made.settings), widths=made.widths, identity=made.identity
        )
        return replace(self, candidate=outline)

    @property
    def channels(self) -> Candidate:
        """The candidate with its channel indices. Only trials that were read with them have one."""
        assert isinstance(self.candidate, Candidate), "the trial was read without channels, or has no network"
        return self.candidate

    @property
    def name(self) -> str:
        """Name of the candidate at this stage: its id, followed by `-ft` after fine-tuning, and by `-c3` after three
        cuts.

        Fine-tunings of one candidate by several seeds share it. Only trials with a candidate have one.
        """
        assert self.candidate is not None, "a trial without a candidate has no network"
        if self.proposal.stage is not Stage.FINETUNE:
            return self.candidate.id
        return f"{self.candidate.id}-ft" + (f"-c{self.proposal.cuts}" if self.proposal.cuts > 1 else "")

    @property
    def network(self) -> str:
        """Name of the trial's own network in the run: `name`, followed by `-s1`, `-s2`, ... for a repeat."""
        return f"{self.name}-s{self.proposal.repeat}" if self.proposal.repeat else self.name


@lru_cache(maxsize=256)
def _shared(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the first tuple that was equal to this one, because all trials of a network name the same groups."""
    return names


def _packed(kept: Mapping[str, Sequence[int]]) -> Mapping[str, Sequence[int]]:
    """The packed form of a user's or a method's indices; indices that no network has stay as they are."""
    if isinstance(kept, KeptChannels):
        return kept
    ascending = {name: sorted(channels) for name, channels in kept.items()}
    for channels in ascending.values():
        if channels and (channels[0] < 0 or len(set(channels)) < len(channels)):
            return dict(kept)
    return KeptChannels.of(ascending)


def _pack(channels: Sequence[int]) -> bytes:
    """Length and bits of one group."""
    if not channels:
        return bytes(_LENGTH)
    digits = bytearray(b"0") * (channels[-1] + 1)
    for channel in channels:
        digits[channel] = 49
    assert digits.count(49) == len(channels), "indices ascend, each once"
    # Python's integers read the highest digit first.
    digits.reverse()
    bits = int(digits, 2).to_bytes((len(digits) + 7) // 8, "little")
    return len(bits).to_bytes(_LENGTH, "little") + bits


def _unpack(bits: int) -> tuple[int, ...]:
    """Positions of the bits that are set, ascending."""
    flags = f"{bits:b}".encode()[::-1].translate(_TO_BITS)
    return tuple(compress(range(len(flags)), flags))
