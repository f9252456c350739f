"""Records of a search, frozen and without torch: `Candidate`, `Proposal`, `Metrics`, `Trial`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from types import MappingProxyType

from raprune.spec.budget import Budget

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


@dataclass(frozen=True, kw_only=True)
class CandidateOutline:
    """A candidate that was read without its channel indices, which would fill the memory of a reader of many trials."""

    id: str
    method: str
    settings: Mapping[str, Setting]
    widths: Mapping[str, int]
    """Group name -> number of channels that stay."""


class TrialState(StrEnum):
    """The state of a trial. A trial is stopped early; only channels are pruned.

    What ended below the last rung of successive halving is STOPPED, whether or not a trial of the next rung continues
    it: its accuracy is none that counts.
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
    group's name to the share of its channels to keep, in (0, 1], before the projection onto the target; groups that
    are not named use 1. `target` holds the fractions of the dense network that the candidate must come up to and never
    pass; a cost without a value has no limit.
    """

    number: int
    """Position in the search, from 0. Results are told in this order."""
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

    @property
    def trial_id(self) -> str:
        """Unique in a run, and the same again when the run is resumed."""
        on_the_way = "" if self.step is None else f".{self.step}"
        rung = f"-r{self.rung}" if self.rung else ""
        repeat = f"-s{self.repeat}" if self.repeat else ""
        return f"{self.stage.value}-{self.number:05d}{rung}{repeat}{on_the_way}"


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
    def channels(self) -> Candidate:
        """The candidate with its channel indices. Only trials that were read with them have one."""
        assert isinstance(self.candidate, Candidate), "the trial was read without channels, or has no network"
        return self.candidate

    @property
    def name(self) -> str:
        """Name of the candidate as it was taken so far: its id, followed by `-ft` once it was fine-tuned.

        Fine-tunings of one candidate by several seeds share it. Only trials with a candidate have one.
        """
        assert self.candidate is not None, "a trial without a candidate has no network"
        return f"{self.candidate.id}-ft" if self.proposal.stage is Stage.FINETUNE else self.candidate.id

    @property
    def network(self) -> str:
        """Name of the trial's own network in the run: `name`, followed by `-s1`, `-s2`, ... for a repeat."""
        return f"{self.name}-s{self.proposal.repeat}" if self.proposal.repeat else self.name
