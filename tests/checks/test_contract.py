"""Tests of the contract: each check finds the methods that break it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from raprune.channels.graph import ChannelGraph
from raprune.checks.contract import checks_of, examine
from raprune.checks.contract.checks import CHECKS, PATH_CHECKS
from raprune.methods import Batches, Cut, Method, Network, Regularizer, Scores, Step, TrainingServices
from raprune.methods.magnitude import L1


@dataclass(frozen=True, kw_only=True)
class Good(L1):
    """A correct method, which the broken methods derive from."""

    title: ClassVar[str] = "as it should be"

    def path(self, dense: Network, widths: Mapping[str, int], services: TrainingServices) -> Iterator[Step]:
        kept = {name: tuple(range(width)) for name, width in widths.items()}
        network = services.cut(dense, kept)
        services.train(network.model, 1.0)
        yield Step(network=network, epochs=1.0)


@dataclass(frozen=True, kw_only=True)
class NoTitle(Good):
    title: ClassVar[str] = ""


class Undecorated(Good):
    strength: float = 0.5


@dataclass(frozen=True, kw_only=True)
class ListSetting(Good):
    strengths: tuple[float, ...] = (0.5, 1.0)


@dataclass(frozen=True, kw_only=True)
class NoDefault(Good):
    strength: float


@dataclass(frozen=True, kw_only=True)
class OutOfRange(Good):
    strength: float = field(default=2.0, metadata={"search": {"low": 0.0, "high": 1.0}})


@dataclass(frozen=True, kw_only=True)
class LogFromZero(Good):
    strength: float = field(default=0.5, metadata={"search": {"low": 0.0, "high": 1.0, "log": True}})


@dataclass(frozen=True, kw_only=True)
class UnknownRange(Good):
    strength: float = field(default=0.5, metadata={"search": {"from": 0.0, "to": 1.0}})


@dataclass(frozen=True, kw_only=True)
class NotAmongChoices(Good):
    strength: int = field(default=3, metadata={"search": {"choices": (1, 2)}})


def local() -> type[Method]:
    @dataclass(frozen=True, kw_only=True)
    class Local(Good):
        pass

    return Local


@dataclass(frozen=True, kw_only=True)
class Single(Good):
    def score(self, model: nn.Module, graph: ChannelGraph, batches: Batches, *, seed: int) -> Scores:
        scores = super().score(model, graph, batches, seed=seed)
        return {name: values.astype(np.float32) for name, values in scores.items()}


@dataclass(frozen=True, kw_only=True)
class OneTooFew(Good):
    def score(self, model: nn.Module, graph: ChannelGraph, batches: Batches, *, seed: int) -> Scores:
        return {name: values[1:] for name, values in super().score(model, graph, batches, seed=seed).items()}


@dataclass(frozen=True, kw_only=True)
class FirstGroupOnly(Good):
    def score(self, model: nn.Module, graph: ChannelGraph, batches: Batches, *, seed: int) -> Scores:
        return super().score(model, graph.only([graph.groups[0].name]), batches, seed=seed)


@dataclass(frozen=True, kw_only=True)
class NotANumber(Good):
    def score(self, model: nn.Module, graph: ChannelGraph, batches: Batches, *, seed: int) -> Scores:
        return {name: values / 0 for name, values in super().score(model, graph, batches, seed=seed).items()}


@dataclass(frozen=True, kw_only=True)
class Unseeded(Good):
    def score(self, model: nn.Module, graph: ChannelGraph, batches: Batches, *, seed: int) -> Scores:
        return {name: np.random.default_rng().random(count) for name, count in graph.widths.items()}


@dataclass(frozen=True, kw_only=True)
class SeededInSecret(Good):
    def score(self, model: nn.Module, graph: ChannelGraph, batches: Batches, *, seed: int) -> Scores:
        return {name: np.random.default_rng(seed).random(count) for name, count in graph.widths.items()}


@dataclass(frozen=True, kw_only=True)
class Ranked(Good):
    """A method whose scores are ranks among all given channels."""

    def score(self, model: nn.Module, graph: ChannelGraph, batches: Batches, *, seed: int) -> Scores:
        scores = super().score(model, graph, batches, seed=seed)
        everything = np.sort(np.concatenate(list(scores.values())))
        return {name: np.searchsorted(everything, values).astype(np.float64) for name, values in scores.items()}


@dataclass(frozen=True, kw_only=True)
class HidesASetting(Good):
    power: float = field(default=1.0, metadata={"search": {"low": 1.0, "high": 2.0}, "repair": True})

    def score(self, model: nn.Module, graph: ChannelGraph, batches: Batches, *, seed: int) -> Scores:
        scores = super().score(model, graph, batches, seed=seed)
        return {name: values**self.power for name, values in scores.items()}


@dataclass(frozen=True, kw_only=True)
class Writes(Good):
    def score(self, model: nn.Module, graph: ChannelGraph, batches: Batches, *, seed: int) -> Scores:
        with torch.no_grad():
            next(model.parameters()).mul_(2)
        return super().score(model, graph, batches, seed=seed)


@dataclass(frozen=True, kw_only=True)
class LeavesAHook(Good):
    def score(self, model: nn.Module, graph: ChannelGraph, batches: Batches, *, seed: int) -> Scores:
        model.register_forward_hook(lambda *_: None)
        return super().score(model, graph, batches, seed=seed)


@dataclass(frozen=True, kw_only=True)
class LeavesEvaluation(Good):
    def score(self, model: nn.Module, graph: ChannelGraph, batches: Batches, *, seed: int) -> Scores:
        model.eval()
        return super().score(model, graph, batches, seed=seed)


@dataclass(frozen=True, kw_only=True)
class UsesTheGenerator(Good):
    def score(self, model: nn.Module, graph: ChannelGraph, batches: Batches, *, seed: int) -> Scores:
        torch.rand(1)
        return super().score(model, graph, batches, seed=seed)


@dataclass(frozen=True, kw_only=True)
class LooksAtData(Good):
    def score(self, model: nn.Module, graph: ChannelGraph, batches: Batches, *, seed: int) -> Scores:
        list(batches())
        return super().score(model, graph, batches, seed=seed)


@dataclass(frozen=True, kw_only=True)
class LooksAtLabels(Good):
    data_free = False

    def score(self, model: nn.Module, graph: ChannelGraph, batches: Batches, *, seed: int) -> Scores:
        mean = float(torch.cat([labels for _, labels in batches()]).double().mean())
        return {name: values + mean for name, values in super().score(model, graph, batches, seed=seed).items()}


@dataclass(frozen=True, kw_only=True)
class InNumPy(Good):
    """A method that computes in NumPy, which has no bfloat16."""

    def score(self, model: nn.Module, graph: ChannelGraph, batches: Batches, *, seed: int) -> Scores:
        for parameter in model.parameters():
            parameter.detach().numpy()
        return super().score(model, graph, batches, seed=seed)


@dataclass(frozen=True, kw_only=True)
class FallingDamage(Good):
    def damage(self, scores: Scores) -> Scores:
        return {name: curve[::-1].copy() for name, curve in super().damage(scores).items()}


@dataclass(frozen=True, kw_only=True)
class ShortDamage(Good):
    def damage(self, scores: Scores) -> Scores:
        return {name: np.sort(values) for name, values in scores.items()}


@dataclass(frozen=True, kw_only=True)
class Decay(Regularizer):
    def __call__(self, model: nn.Module) -> None:
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad += 0.1 * parameter.detach()


@dataclass(frozen=True, kw_only=True)
class WritesWeights(Decay):
    def __call__(self, model: nn.Module) -> None:
        with torch.no_grad():
            next(model.parameters()).mul_(0.9)


class ByIdentity(Decay):
    __eq__ = object.__eq__
    __hash__ = object.__hash__


@dataclass(frozen=True, kw_only=True)
class Decayed(Good):
    def regularize(self) -> Regularizer | None:
        return Decay(epochs=1.0, lr=0.1)


@dataclass(frozen=True, kw_only=True)
class OtherEachTime(Good):
    def regularize(self) -> Regularizer | None:
        return ByIdentity(epochs=1.0, lr=0.1)


@dataclass(frozen=True, kw_only=True)
class RegularizesWeights(Good):
    def regularize(self) -> Regularizer | None:
        return WritesWeights(epochs=1.0, lr=0.1)


@dataclass(frozen=True, kw_only=True)
class RepairsTheDense(Good):
    def repair(self, model: nn.Module, batches: Batches, cut: Cut) -> None:
        with torch.no_grad():
            next(cut.dense.parameters()).zero_()


@dataclass(frozen=True, kw_only=True)
class LeavesTraining(Good):
    def repair(self, model: nn.Module, batches: Batches, cut: Cut) -> None:
        model.train()


@dataclass(frozen=True, kw_only=True)
class RepairsByChance(Good):
    def repair(self, model: nn.Module, batches: Batches, cut: Cut) -> None:
        with torch.no_grad():
            next(model.parameters()).add_(torch.rand(()))


@dataclass(frozen=True, kw_only=True)
class TooWide(Good):
    def path(self, dense: Network, widths: Mapping[str, int], services: TrainingServices) -> Iterator[Step]:
        return super().path(dense, {name: width + 1 for name, width in widths.items()}, services)


@dataclass(frozen=True, kw_only=True)
class NoStep(Good):
    def path(self, dense: Network, widths: Mapping[str, int], services: TrainingServices) -> Iterator[Step]:
        return iter(())


@dataclass(frozen=True, kw_only=True)
class GrowsAgain(Good):
    def path(self, dense: Network, widths: Mapping[str, int], services: TrainingServices) -> Iterator[Step]:
        yield from super().path(dense, widths, services)
        yield Step(network=dense, epochs=1.0)


@dataclass(frozen=True, kw_only=True)
class ForgetsEpochs(Good):
    def path(self, dense: Network, widths: Mapping[str, int], services: TrainingServices) -> Iterator[Step]:
        *_, last = super().path(dense, widths, services)
        yield last
        yield replace(last, epochs=0.0)


@dataclass(frozen=True, kw_only=True)
class TrainsTheDense(Good):
    def path(self, dense: Network, widths: Mapping[str, int], services: TrainingServices) -> Iterator[Step]:
        services.train(dense.model, 1.0)
        yield from super().path(dense, widths, services)


@dataclass(frozen=True, kw_only=True)
class WalksByChance(Good):
    def path(self, dense: Network, widths: Mapping[str, int], services: TrainingServices) -> Iterator[Step]:
        for step in super().path(dense, widths, services):
            with torch.no_grad():
                next(step.network.model.parameters()).add_(torch.rand(()))
            yield step


BROKEN: dict[type[Method], tuple[str, str]] = {
    NoTitle: ("describes itself", "`title` is no line of text"),
    Undecorated: ("describes itself", "`strength` is no field: decorate the class"),
    ListSetting: ("describes itself", "`strengths`: the default is no bool, int, float or str"),
    NoDefault: ("describes itself", "raised TypeError"),
    OutOfRange: ("describes itself", "low <= default <= high does not hold"),
    LogFromZero: ("describes itself", "low must be above 0"),
    UnknownRange: ("describes itself", "`search` has ['from', 'to']"),
    NotAmongChoices: ("describes itself", "not among the choices"),
    local(): ("can be pickled", "raised AttributeError: Can't pickle local object"),
    Single: ("gives one finite score", "Residual, group stem: no float64 array"),
    OneTooFew: ("gives one finite score", "Residual, group stem: shape (7,), not one score per channel"),
    FirstGroupOnly: ("gives one finite score", "the method scores ['stem'], the groups are ['stem', 'conv1']"),
    NotANumber: ("gives one finite score", "divide by zero"),
    Unseeded: ("gives the same scores for the same seed", "the same seed gave other scores"),
    SeededInSecret: ("gives the same scores for the same seed", "`seeded` is False"),
    Ranked: ("gives a group the same scores", "Residual: stem alone has other scores"),
    HidesASetting: ("names in behind_scores", "`power` = 2.0 gives other scores"),
    Writes: ("leaves the network", "the network was changed"),
    LeavesAHook: ("leaves the network", "the network has hooks left"),
    LeavesEvaluation: ("leaves the network", "the network's training mode was changed"),
    UsesTheGenerator: ("leaves the network", "torch's global generator was used"),
    LooksAtData: ("sets data_free", "`data_free` is True, but batches were used"),
    LooksAtLabels: ("sets uses_labels", "`uses_labels` is False, but other labels gave other scores"),
    InNumPy: ("takes weights of any dtype", "raised TypeError"),
    FallingDamage: ("predicts damage", "Residual, group stem: damage falls"),
    ShortDamage: ("predicts damage", "not one value for each of 0 .. all channels removed"),
    OtherEachTime: ("gives the same regularizer", "another regularizer each time"),
    RegularizesWeights: ("gives the same regularizer", "was changed"),
    RepairsTheDense: ("repairs in place", "Residual: the dense network was changed"),
    LeavesTraining: ("repairs in place", "after the repair, the network is not in evaluation mode"),
    RepairsByChance: ("repairs in place", "two repairs of the same network gave different weights"),
    TooWide: ("gives smaller", "the last step has 5 channels in stem, but at most 4 may stay"),
    NoStep: ("gives smaller", "the path has no step"),
    GrowsAgain: ("gives smaller", "step 2: stem has channels that were removed before"),
    ForgetsEpochs: ("gives smaller", "step 2: 0 epochs after 1"),
    TrainsTheDense: ("gives smaller", "the dense network was changed"),
    WalksByChance: ("gives the same networks", "other weights in step 1"),
}


@pytest.mark.parametrize("kind", [Good, Decayed])
def test_contract_correct_method_passes_every_check(kind: type[Method]) -> None:
    findings = list(examine(kind))
    assert [finding.problem for finding in findings] == [None] * len(CHECKS | PATH_CHECKS)


@pytest.mark.parametrize("kind", BROKEN, ids=lambda kind: kind.__name__)
def test_contract_broken_method_fails_the_check_of_its_fault(kind: type[Method]) -> None:
    beginning, problem = BROKEN[kind]
    (name,) = [name for name in CHECKS | PATH_CHECKS if name.startswith(beginning)]
    found = next(finding.problem for finding in examine(kind) if finding.check == name)
    assert found is not None and problem in found


def test_every_check_can_fail() -> None:
    beginnings = {beginning for beginning, _ in BROKEN.values()}
    for name in CHECKS | PATH_CHECKS:
        assert any(name.startswith(beginning) for beginning in beginnings), name


def test_a_method_without_a_path_is_not_asked_for_one() -> None:
    assert list(checks_of(L1)) == list(CHECKS)
    assert list(checks_of(Good)) == list(CHECKS | PATH_CHECKS)
