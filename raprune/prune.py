"""ONE CANDIDATE, top to bottom: the page to read first.

    proposal -> score -> allocate -> cut -> repair -> evaluate -> (fine-tune -> evaluate) -> trial

No Ray: `raprune prune` runs this in one process, and every trial of a search runs it in its actor.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from raprune.allocate import Target, allocate, select
from raprune.budget import Budget
from raprune.candidate import Candidate, Setting
from raprune.cost import CostModel
from raprune.evaluate import Evaluation, evaluate
from raprune.methods import Cut, Method, Scores, method_named
from raprune.spec import SamplerSpec, TrainSpec
from raprune.surgery import cut
from raprune.tracing.graph import ChannelGraph
from raprune.training import Epoch, train
from raprune.trial import Metrics, Proposal, Trial, TrialState
from raprune.workload import Workload


@dataclass(frozen=True)
class Pruned:
    """A network that was cut and repaired, on its way to being judged."""

    model: nn.Module
    candidate: Candidate
    after_cut: float | None
    """Validation accuracy before the repair, where it was asked for."""


class Pruner:
    """Makes candidates of one dense network. Holds what they share: costs, scores and calibration images."""

    def __init__(self, workload: Workload, graph: ChannelGraph, search: SamplerSpec, *, seed: int = 0) -> None:
        self.workload = workload
        self.graph = graph
        self.cost = CostModel(graph)
        self._search = search
        generator = torch.Generator().manual_seed(seed)
        self._calibration = workload.train.take(min(search.calibration_images, len(workload.train)), generator)
        self._scores: dict[tuple[object, ...], Scores] = {}

    def prune(self, proposal: Proposal) -> tuple[Trial, nn.Module]:
        """The proposal's network, cut and repaired, and its trial.

        Raises:
            UsageError: if the method or the allocation is unknown.
            BudgetError: if no widths meet the proposal's target.
        """
        started = time.time()
        pruned = self.cut_and_repair(proposal)
        result = self._evaluate(pruned.model)
        return self._trial(proposal, pruned, result, started, after_repair=result.accuracy), pruned.model

    def finetune(
        self, proposal: Proposal, parent: Proposal, spec: TrainSpec, on_epoch: Callable[[Epoch], None] | None = None
    ) -> tuple[Trial, nn.Module]:
        """The network of `parent`, made again and fine-tuned with the dense network as teacher; and its trial.

        Raises:
            ModelError: if the training diverges.
        """
        started = time.time()
        pruned = self.cut_and_repair(parent, judge_cut=True)
        repaired = self._evaluate(pruned.model)
        train(
            pruned.model,
            self.workload.train,
            spec,
            augment=self.workload.augment,
            seed=proposal.seed,
            teacher=self.workload.model if spec.distillation > 0 else None,
            on_epoch=on_epoch,
        )
        result = self._evaluate(pruned.model)
        trial = self._trial(proposal, pruned, result, started, after_repair=repaired.accuracy, epochs=spec.epochs)
        return trial, pruned.model

    def cut_and_repair(self, proposal: Proposal, *, judge_cut: bool = False) -> Pruned:
        """score -> allocate -> cut -> repair. `judge_cut` also evaluates between cut and repair."""
        method = method_named(proposal.method)(**proposal.settings)
        scores = self._score(method, proposal.settings, proposal.seed)
        target = Target(
            budget=Budget(flops=proposal.target_flops, params=proposal.target_params),
            min_channels=self._search.min_channels,
            multiple_of=self._search.multiple_of,
        )
        widths = allocate(proposal.allocation, self.cost, target, scores=scores, keep_ratios=proposal.keep_ratios)
        candidate = select(scores, self.cost, widths, method=proposal.method, settings=proposal.settings)
        model = cut(self.workload.model, self.graph, candidate)
        after_cut = self._evaluate(model).accuracy if judge_cut else None
        method.repair(model, self._batches, Cut(self.workload.model, self.graph, candidate.kept))
        return Pruned(model, candidate, after_cut)

    def _score(self, method: Method, settings: Mapping[str, Setting], seed: int) -> Scores:
        """Scores, computed once for each method and setting; `random` anew for each seed."""
        key = (type(method), tuple(sorted(settings.items())), seed if method.seeded else None)
        if key not in self._scores:
            if method.seeded:
                return method.score(self.workload.model, self.graph, self._batches, seed=seed)
            self._scores[key] = method.score(self.workload.model, self.graph, self._batches, seed=seed)
        return self._scores[key]

    def _batches(self) -> Iterable[tuple[Tensor, Tensor]]:
        # Two at least: batch statistics of one image are none (methods/method.py).
        return self._calibration.batches(max(2, min(self._search.eval_batch_size, 256)))

    def _evaluate(self, model: nn.Module) -> Evaluation:
        return evaluate(model, self.workload.validation, batch_size=self._search.eval_batch_size)

    def _trial(
        self,
        proposal: Proposal,
        pruned: Pruned,
        result: Evaluation,
        started: float,
        *,
        after_repair: float,
        epochs: float = 0.0,
    ) -> Trial:
        widths = self.cost.vector(pruned.candidate.widths)
        flops, params = int(self.cost.flops(widths)), int(self.cost.params(widths))
        seconds = time.time() - started
        return Trial(
            trial_id=proposal.trial_id,
            proposal=proposal,
            state=TrialState.COMPLETE,
            candidate=pruned.candidate,
            metrics=Metrics(
                accuracy=result.accuracy,
                loss=result.loss,
                flops=flops,
                params=params,
                flops_fraction=flops / self.cost.dense_flops,
                params_fraction=params / self.cost.dense_params,
            ),
            accuracy_after_cut=pruned.after_cut,
            accuracy_after_repair=after_repair,
            epochs=epochs,
            seconds=seconds,
            gpu_seconds=seconds if self.workload.device.type == "cuda" else 0.0,
            started_at=started,
            worker=f"{socket.gethostname()}:{os.getpid()}",
        )
