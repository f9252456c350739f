"""Depth: the damage of leaving out blocks, and the blocks that go together with the widths of the others.

The damage of a gate (`raprune.channels.gates`) is measured like that of a width: the distance of the logits from the
dense network's once the block is the identity and the method has repaired what follows, on images that the repair did
not see. Blocks go in one order, by the damage that each does alone for the FLOPs that it saves; the damage of the first
ones is measured for them together, because the damages of neighbours do not add up. The widths of two networks with all
blocks are measured in the same way, which gives the method's predictions for widths the same unit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from raprune.channels.cut import cut
from raprune.channels.evaluating import evaluating
from raprune.channels.graph import ChannelGraph
from raprune.channels.inputs import call, tensors_in
from raprune.cost.flops import CostModel, Counts, fractions_by_gate
from raprune.cost.latency import Floats
from raprune.errors import BudgetError
from raprune.methods import Batches, Cut, Method, Scores
from raprune.pruning.allocate import LEAST_DAMAGE, allocate, select
from raprune.pruning.target import Target
from raprune.records import Candidate
from raprune.spec.budget import Budget
from raprune.store.scores import Arrays, key_of

REPAIR_IMAGES, JUDGED_IMAGES = 256, 256
"""Maximum number of calibration images that a repair sees, and of others on which the damage is measured."""
RUINED = 0.1
"""Damage, as a fraction of that of a network whose logits are all equal, beyond which no further block is tried."""
COUNTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
"""Numbers of blocks for which the damage is measured; it is interpolated between."""
REFERENCES = (0.6, 0.3, 0.12)
"""Fractions of the FLOPs at which the predicted damage of widths is set against the measured one."""


@dataclass(frozen=True)
class BlockDamage:
    """The order in which blocks go, the damage of the first ones together, and the unit of the damage of widths."""

    order: tuple[str, ...]
    damage: Floats
    """Damage without the first m blocks, m = 0 .. M <= len(order); ascending."""
    predicted: Floats
    """Damage of some widths as the method predicts it (`Method.damage`), ascending from 0."""
    measured: Floats
    """Damage of these widths, measured as that of blocks is; ascending from 0."""

    def of_widths(self, predicted: float) -> float:
        """The damage of widths in the unit of blocks, from the method's prediction.

        A prediction adds up what each group loses alone, in units of the method; what all lose together after the
        repair is another figure. Beyond the largest reference the last ratio holds.
        """
        if predicted >= self.predicted[-1]:
            return float(predicted * self.measured[-1] / self.predicted[-1])
        return float(np.interp(predicted, self.predicted, self.measured))


def key_of_blocks(method: Method, network: Mapping[str, Any], *, base: str | None, images: int) -> str:
    """Key of the damage of blocks in the statistics: one for all methods with the same repair."""
    repair = type(method).repair
    own = repair is not Method.repair
    content = {
        **network,
        "base": base,
        "repair": f"{repair.__module__}.{repair.__qualname__}",
        "settings": asdict(method) if own else {},
        "images": images,
    }
    return key_of("blocks", content)


def key_of_references(method: Method, scores: str, *, limits: Mapping[str, int]) -> str:
    """Key of the references of a method, whose scores have the key `scores`, under the job's limits of the widths."""
    return key_of("references", {"scores": scores, "settings": asdict(method), "limits": dict(limits)})


def block_damage(model: nn.Module, graph: ChannelGraph, method: Method, batches: Batches) -> Arrays:
    """Measure the damage of leaving out the gates of `graph` in `model`; the arrays are those of `read_blocks`."""
    ground = _Ground(model, graph, method, batches)
    alone = {gate: ground.damage(Candidate("blocks", {}, identity=(gate,)), repaired=False) for gate in graph.gates}
    saved = {gate: flops for gate, (flops, _) in fractions_by_gate(graph).items()}
    order = sorted(graph.gates, key=lambda gate: alone[gate] / max(saved[gate], 1e-12))
    counts, damage = [0], [0.0]
    for count in (*(c for c in COUNTS if c < len(order)), len(order)):
        found = ground.damage(Candidate("blocks", {}, identity=tuple(order[:count])))
        if not np.isfinite(found) or found > RUINED * ground.energy:
            break
        counts.append(count)
        damage.append(max(found, damage[-1]))
    return {
        "order": np.array([graph.gates.index(gate) for gate in order], dtype=np.int64),
        "counts": np.array(counts, dtype=np.int64),
        "damage": np.array(damage, dtype=np.float64),
    }


def references(
    model: nn.Module,
    graph: ChannelGraph,
    method: Method,
    scores: Scores,
    batches: Batches,
    *,
    limits: Mapping[str, int],
) -> Arrays:
    """Measure the damage of the widths that `least_damage` gives at `REFERENCES`, and what the method predicts.

    `limits` are `min_channels` and `multiple_of` of the job. A reference out of reach is left out.
    """
    ground, cost, curves = _Ground(model, graph, method, batches), CostModel(graph), method.damage(scores)
    predicted, measured = [0.0], [0.0]
    for fraction in REFERENCES:
        target = Target(budget=Budget(flops=fraction), **limits)
        try:
            widths = _least_damage(cost, target, method, scores, curves)
        except BudgetError:
            continue
        expected = _predicted(cost, widths, curves)
        found = ground.damage(select(scores, cost, widths, method="reference", settings={}))
        if np.isfinite(found) and expected > predicted[-1]:
            predicted.append(expected)
            measured.append(max(found, measured[-1]))
    return {"predicted": np.array(predicted), "measured": np.array(measured)}


def read_blocks(graph: ChannelGraph, blocks: Arrays, references: Arrays) -> BlockDamage:
    """Return the measurements of `block_damage` and `references` for the gates of `graph`."""
    order = tuple(graph.gates[place] for place in blocks["order"].tolist())
    counts, predicted, measured = blocks["counts"], references["predicted"], references["measured"]
    if len(predicted) == 1 or measured[-1] <= 0:
        # No widths to compare with: the prediction is taken as it is.
        predicted = measured = np.array([0.0, 1.0])
    return BlockDamage(order, np.interp(np.arange(counts[-1] + 1), counts, blocks["damage"]), predicted, measured)


class _Ground:
    """The dense network, its logits, and the images on which candidates are repaired and judged."""

    def __init__(self, model: nn.Module, graph: ChannelGraph, method: Method, batches: Batches) -> None:
        self._model, self._graph, self._method = model, graph, method
        self._fitted, self._judged = _halves(batches)
        with evaluating(model), torch.no_grad():
            self._wanted = _logits(model, self._judged)
        self.energy = float(self._wanted.square().sum(1).mean()) / 2
        """Damage of a network whose logits are all equal."""

    def damage(self, candidate: Candidate, *, repaired: bool = True) -> float:
        """Mean over images of the squared distance of the logits from the dense network's, over two."""
        smaller, gone = cut(self._model, self._graph, candidate), candidate.identity
        if repaired:
            description = Cut(self._model, self._graph.closed(gone), candidate.kept, identity=gone)
            self._method.repair(smaller, lambda: self._fitted, description)
        with evaluating(smaller), torch.no_grad():
            return float((_logits(smaller, self._judged) - self._wanted).square().sum(1).mean()) / 2


def allocate_with_blocks(
    cost: CostModel, target: Target, method: Method, scores: Scores, blocks: BlockDamage
) -> tuple[tuple[str, ...], Counts]:
    """Return the blocks that go and the widths of the groups that are left, with the least predicted damage together.

    For each number of blocks the widths are those of `least_damage` without these blocks. A budget that the network
    cannot reach with all its blocks may be in reach without some of them.

    Raises:
        BudgetError: if no widths meet the target, with any number of blocks.
    """
    curves = method.damage(scores)
    best: tuple[float, tuple[str, ...], Counts] | None = None
    problem: BudgetError | None = None
    for count, lost in enumerate(blocks.damage.tolist()):
        if best is not None and lost >= best[0]:
            break
        gone = blocks.order[:count]
        left = cost.closed(gone)
        try:
            widths = _least_damage(left, target, method, scores, curves)
        except BudgetError as error:
            problem = problem or error
            continue
        predicted = lost + blocks.of_widths(_predicted(left, widths, curves))
        if best is None or predicted < best[0]:
            best = (predicted, gone, widths)
    if best is None:
        assert problem is not None, "there is an attempt with all blocks"
        raise problem
    return best[1], best[2]


def _least_damage(cost: CostModel, target: Target, method: Method, scores: Scores, curves: Scores) -> Counts:
    return allocate(
        LEAST_DAMAGE,
        cost,
        target,
        scores=scores,
        keep_ratios={},
        damage=curves,
        comparable=method.comparable,
    )


def _predicted(cost: CostModel, widths: Counts, curves: Scores) -> float:
    """The sum of the predicted damages of the groups at these widths."""
    places = zip(cost.group_names, (cost.num_channels - widths).tolist(), strict=True)
    return sum(float(curves[name][gone]) for name, gone in places)


def _halves(batches: Batches) -> tuple[list[tuple[Tensor, Tensor]], list[tuple[Tensor, Tensor]]]:
    """Divide the calibration images into those that a repair sees and those on which the damage is measured."""
    every = list(batches())
    total = sum(len(images) for images, _ in every)
    fitted = min(REPAIR_IMAGES, max(2, total // 2))
    first = _first(every, 0, fitted)
    return first, _first(every, fitted, min(total, fitted + JUDGED_IMAGES)) or first


def _first(batches: Iterable[tuple[Tensor, Tensor]], begin: int, end: int) -> list[tuple[Tensor, Tensor]]:
    """The images from `begin` to `end` of the batches, in batches."""
    found, at = [], 0
    for images, labels in batches:
        low, high = max(begin - at, 0), min(end - at, len(images))
        if low < high:
            found.append((images[low:high], labels[low:high]))
        at += len(images)
    return found


def _logits(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """The logits of all images, each image's less their mean: a shift of all logits changes no prediction."""
    outputs = ([value.flatten(1) for value in tensors_in(call(model, images))] for images, _ in batches)
    logits = torch.cat([torch.cat(values, dim=1).double() for values in outputs])
    return logits - logits.mean(1, keepdim=True)
