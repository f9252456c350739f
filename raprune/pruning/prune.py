"""ONE CANDIDATE, top to bottom: the page to read first.

    proposal -> (train for the method) -> score -> allocate -> cut -> repair -> evaluate -> (fine-tune -> evaluate)
             -> trial

A method that trains while it cuts leads along a path of networks instead, each of them a trial.
No Ray: `raprune prune` runs this in one process, and every trial of a search runs it in its actor.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from raprune.channels.cut import cut, rebuild
from raprune.channels.graph import ChannelGraph
from raprune.channels.maxout import inserted
from raprune.cost.flops import CostModel
from raprune.cost.latency import LatencyTable
from raprune.methods import Cut, Kept, Method, Network, Scores, Step, method_named
from raprune.pruning.allocate import LEAST_DAMAGE, allocate, select
from raprune.pruning.depth import allocate_with_blocks
from raprune.pruning.gradual import kept_in_steps, positions_of
from raprune.pruning.phases import DenseInputs, Phases, telling
from raprune.pruning.record import Pruned, check_not_trained, method_of, record
from raprune.pruning.room import repair_room
from raprune.pruning.scoring import Scoring
from raprune.pruning.services import WorkloadServices
from raprune.pruning.target import Target
from raprune.pruning.workload import Workload
from raprune.records import Candidate, Proposal, Trial
from raprune.results.stages import OnWork
from raprune.spec.job import SearchSpec, TrainSpec
from raprune.store.scores import Statistics
from raprune.training.checkpoint import Overwritten
from raprune.training.distillation import ChannelMap, channel_map
from raprune.training.distributed import agree_on_weights
from raprune.training.epoch import Epoch
from raprune.training.evaluate import Evaluation, evaluate
from raprune.training.loop import ALONE, Checkpoints, Ranks, is_checkpoint_of, train


class Result(NamedTuple):
    """A trial and its network."""

    trial: Trial
    model: nn.Module
    history: Sequence[Epoch] = ()
    """Results of each epoch of fine-tuning."""


class Pruner:
    """Makes candidates of one dense network. Holds what they share: costs, scores and calibration images."""

    def __init__(
        self,
        workload: Workload,
        graph: ChannelGraph,
        spec: SearchSpec,
        *,
        statistics: Statistics | None = None,
        latency: LatencyTable | None = None,
        on_work: OnWork | None = None,
    ) -> None:
        """`on_work` hears how far the training of a method and the scores of groups are."""
        self.workload = workload
        self._on_work = on_work
        self.graph = graph
        self.cost = CostModel(graph, latency)
        self.statistics = statistics or Statistics()
        self._spec = spec
        self._search = spec.search
        inputs = DenseInputs(workload, graph, spec, self.statistics, on_work)
        self.phases = Phases(inputs)
        self.scoring = Scoring(inputs, self.phases)

    def evaluating(self, batch_size: int) -> Pruner:
        """Return a copy of this pruner with another batch size of evaluation; it shares all else, also the scores."""
        other = copy.copy(self)
        other._search = self._search.model_copy(update={"eval_batch_size": batch_size})
        return other

    def knowing(self, table: LatencyTable) -> Pruner:
        """Return a copy of this pruner with another latency table; it shares all else."""
        other = copy.copy(self)
        other.cost = CostModel(self.graph, table)
        return other

    def candidate(self, proposal: Proposal) -> Candidate:
        """Return the channels that the proposal keeps, without any cut.

        Raises:
            BudgetError: if no widths meet the proposal's target.
        """
        method = method_of(proposal)
        return self._candidate(proposal, method, self.scoring.scores(method, proposal.seed))

    def prune(self, proposal: Proposal) -> Result:
        """The proposal's network, cut and repaired, and its trial.

        Raises:
            UsageError: if the method or the allocation is unknown.
            BudgetError: if no widths meet the proposal's target.
        """
        *_, last = self.results(proposal)
        return last

    def results(self, proposal: Proposal) -> Iterator[Result]:
        """Yield the result of `prune`, after those of the networks before it if the method trains while it cuts."""
        if method_of(proposal).has_path():
            yield from self._walk(proposal)
            return
        started = time.time()
        pruned = self.cut_and_repair(proposal)
        result = self._evaluate(pruned.model)
        yield Result(self._record(proposal, pruned, result, started), pruned.model)

    def finetune(
        self,
        proposal: Proposal,
        parent: Proposal,
        spec: TrainSpec,
        *,
        start: Pruned | None = None,
        ranks: Ranks = ALONE,
        checkpoints: Checkpoints | None = None,
        on_epoch: Callable[[Epoch], None] | None = None,
    ) -> Result:
        """Fine-tune the network of `parent` by the job's teacher; it is made again unless it is given.

        With several `cuts` of the proposal it goes there in so many steps, from the dense network on, with a part of
        the epochs after each. Weights that were pruned one by one stay zero. With several `ranks`, each calls this and
        gets the result. The trial's seconds include the epochs before the checkpoint that it was resumed from.

        Raises:
            ModelError: if the training diverges.
        """
        started = time.time()
        pruned = start or self.made_again(parent)
        repaired = self._evaluate(pruned.model).accuracy if pruned.accuracy is None else pruned.accuracy
        trained: list[Epoch] = []
        told = on_epoch or telling(self._on_work, "")

        def tell(epoch: Epoch) -> None:
            trained.append(epoch)
            if told is not None:
                told(replace(epoch, epochs=spec.epochs))

        def fit(
            fitted: Pruned, part: TrainSpec, seed: int, before: Sequence[Epoch] = (), *, overwrite: bool = False
        ) -> list[Epoch]:
            place = checkpoints if checkpoints is None or not overwrite else Overwritten(checkpoints)
            return train(
                fitted.model,
                self.workload.training,
                part,
                augment=self.workload.augment,
                seed=seed,
                task=self.workload.task,
                teacher=self.workload.teacher if spec.distillation > 0 or spec.features != 0 else None,
                channels=self._channels(fitted) if spec.features != 0 else None,
                regularize=keep_zeros(fitted.model) if method_of(parent).has_path() else None,
                ranks=ranks,
                checkpoints=place,
                on_epoch=tell,
                before=before,
            )

        if proposal.cuts > 1:
            stored = None if checkpoints is None else checkpoints.load()
            pruned, history = self._fit_in_steps(pruned, proposal, parent, spec, fit, stored, ranks)
        else:
            history = fit(pruned, spec, proposal.seed)
        history = [replace(epoch, epochs=spec.epochs) for epoch in history]
        pruned = replace(pruned, epochs=pruned.epochs + spec.epochs)
        result = self._evaluate(pruned.model)
        started -= sum(epoch.seconds for epoch in history[: len(history) - len(trained)])
        trial = self._record(proposal, pruned, result, started, after_repair=repaired)
        return Result(trial, pruned.model, history)

    def _fit_in_steps(
        self,
        pruned: Pruned,
        proposal: Proposal,
        parent: Proposal,
        spec: TrainSpec,
        fit: Callable[..., list[Epoch]],
        stored: bytes | None,
        ranks: Ranks,
    ) -> tuple[Pruned, list[Epoch]]:
        """Cut, repair and train by turns, from the dense network to the channels of `pruned`.

        With the checkpoint `stored` it goes on at the cut whose training that is.
        """
        method, seed = method_of(parent), proposal.seed
        base, _ = self.phases.base(method)
        scores = self.scoring.scores(method, parent.seed)
        # The blocks that go are gone from the first cut on.
        gone = pruned.candidate.identity
        left = self.graph.closed(gone)
        stages = kept_in_steps(left, pruned.candidate.kept, scores, proposal.cuts)
        part = spec.model_copy(update={"epochs": spec.epochs / len(stages)})
        first = self._stage_of(stored, base, stages, gone, part, seed)
        whole = {group.name: tuple(range(group.num_channels)) for group in left.groups}
        network, history = Network(base, self.graph, whole), list[Epoch]()
        for number, kept in list(enumerate(stages))[first or 0 :]:
            narrower = Candidate(parent.method, positions_of(kept, network.kept), identity=gone)
            model = cut(network.model, network.graph, narrower)
            # A checkpoint has all weights: only the channels of this network count.
            if number != first:
                method.repair(model, self.scoring.batches, self._cut(network.model, narrower, network.graph))
                agree_on_weights(model, ranks)
            stage = replace(pruned, model=model, candidate=replace(pruned.candidate, kept=kept))
            history = fit(stage, part, seed + number, history, overwrite=number not in (0, first))
            network = Network(model, network.graph.closed(gone).after(narrower.kept), kept)
            gone = ()
        return replace(pruned, model=network.model), history

    def _stage_of(
        self,
        stored: bytes | None,
        base: nn.Module,
        stages: Sequence[Kept],
        gone: tuple[str, ...],
        part: TrainSpec,
        seed: int,
    ) -> int | None:
        """Return the number of the cut after which the training of the checkpoint `stored` came; None if of none."""
        for number, kept in enumerate(stages):
            model = cut(base, self.graph, Candidate("stage", kept, identity=gone))
            augment, split = self.workload.augment, self.workload.training
            if is_checkpoint_of(stored, model, split, part, augment=augment, seed=seed + number):
                return number
        return None

    def cut_and_repair(self, proposal: Proposal, *, judge_cut: bool = False) -> Pruned:
        """score -> allocate -> cut -> repair. `judge_cut` also evaluates between cut and repair."""
        method = method_of(proposal)
        base, epochs = self.phases.base(method)
        scores = self.scoring.scores(method, proposal.seed)
        candidate = self._candidate(proposal, method, scores)
        model = cut(base, self.graph, candidate)
        after_cut = self._evaluate(model).accuracy if judge_cut else None
        method.repair(model, self.scoring.batches, self._cut(base, candidate))
        return Pruned(model, candidate, epochs, after_cut)

    def repaired_again(self, trial: Trial) -> nn.Module:
        """Make the network of a recorded trial that trained nothing. Its channels are known, so nothing is scored.

        Raises:
            ModelError: if the network was trained: its weights are stored in the run, or they are lost.
        """
        check_not_trained(trial)
        method = method_of(trial.proposal)
        base, _ = self.phases.base(method)
        model = cut(base, self.graph, trial.channels)
        method.repair(model, self.scoring.batches, self._cut(base, trial.channels))
        return model

    def _cut(self, base: nn.Module, candidate: Candidate, graph: ChannelGraph | None = None) -> Cut:
        """Return the description of a cut of `base`, whose graph is that of the dense network unless it is given."""
        left = (graph or self.graph).closed(candidate.identity)
        return Cut(base, left, candidate.kept, repair_room(self.workload.device), candidate.identity)

    def made_again(self, parent: Proposal) -> Pruned:
        """Return the network of a search trial before any fine-tuning."""
        if not method_of(parent).has_path():
            return self.cut_and_repair(parent, judge_cut=True)
        return next(pruned for here, pruned, _ in self._path(replace(parent, step=None)) if here == parent)

    def _candidate(self, proposal: Proposal, method: Method, scores: Scores) -> Candidate:
        target = Target(
            budget=proposal.target,
            min_channels=self._search.min_channels,
            multiple_of=self._search.step,
        )
        gone = self._closed_by(proposal)
        if self._chooses_blocks(proposal):
            usual = method_named(proposal.method)(**self._spec.settings.get(proposal.method, {}))
            gone, widths = allocate_with_blocks(self.cost, target, method, scores, self.scoring.blocks(usual))
        else:
            widths = allocate(
                proposal.allocation,
                self.cost.closed(gone),
                target,
                scores=scores,
                keep_ratios=proposal.keep_ratios,
                damage=method.damage(scores),
                comparable=method.comparable,
            )
        return select(
            scores,
            self.cost.closed(gone),
            widths,
            method=proposal.method,
            settings=proposal.settings,
            identity=gone,
        )

    def _closed_by(self, proposal: Proposal) -> tuple[str, ...]:
        """Return the blocks that the proposal leaves out; a method that trains while it cuts keeps all."""
        if method_of(proposal).has_path():
            return ()
        return tuple(gate for gate in self.graph.gates if proposal.keep_ratios.get(gate, 1.0) == 0.0)

    def _chooses_blocks(self, proposal: Proposal) -> bool:
        """True if the allocation chooses the blocks that go."""
        may_choose = bool(self.graph.gates) and not method_of(proposal).has_path()
        return may_choose and proposal.allocation == LEAST_DAMAGE

    def _walk(self, proposal: Proposal) -> Iterator[Result]:
        for here, pruned, seconds in self._path(proposal):
            # As if its making, which the next network's came after, had ended just now.
            started = time.time() - seconds
            result = self._evaluate(pruned.model)
            yield Result(self._record(here, pruned, result, started), pruned.model)

    def _path(self, proposal: Proposal) -> Iterator[tuple[Proposal, Pruned, float]]:
        """Yield the networks of the method's path to the widths that its scores and the allocation give.

        Each comes with its own proposal (the last one with `proposal` itself) and the seconds that it took.
        """
        method, started = method_of(proposal), time.time()
        goal = self._candidate(proposal, method, self.scoring.scores(method, proposal.seed))
        whole = {group.name: tuple(range(group.num_channels)) for group in self.graph.groups}
        on_epoch = telling(self._on_work, proposal.method)
        services = WorkloadServices(self.workload, self.scoring.batches, seed=proposal.seed, on_epoch=on_epoch)
        steps = method.path(Network(self.workload.model, self.graph, whole), goal.widths, services)
        step: Step | None = next(steps)
        number = 0
        while step is not None:
            candidate = Candidate(proposal.method, step.network.kept, {**proposal.settings, **step.settings})
            # A copy: the path may go on training the same network.
            model = rebuild(step.network.model, lambda name, tensor: tensor.clone())
            pruned = Pruned(model.eval(), candidate, step.epochs)
            seconds, started = time.time() - started, time.time()
            step = next(steps, None)
            yield proposal if step is None else replace(proposal, step=number), pruned, seconds
            number += 1

    def _channels(self, pruned: Pruned) -> ChannelMap | None:
        """Return the kept channels of the dense network; None where maxout units stand between the two networks."""
        if inserted(pruned.model):
            return None
        candidate, teacher, graph = pruned.candidate, self.workload.model, self.graph
        if candidate.identity:
            # The maps are those of layers that both networks have.
            teacher = cut(teacher, graph, Candidate("whole", {}, identity=candidate.identity))
        return channel_map(teacher, graph.closed(candidate.identity), candidate.kept, self.workload.example_input())

    def _evaluate(self, model: nn.Module) -> Evaluation:
        search = self._search
        return evaluate(
            model,
            self.workload.validation,
            task=self.workload.task,
            batch_size=search.eval_batch_size,
            precision=search.eval_precision,
        )

    def _record(
        self,
        proposal: Proposal,
        pruned: Pruned,
        result: Evaluation,
        started: float,
        *,
        after_repair: float | None = None,
    ) -> Trial:
        """Return the trial of a network with this `result`, its accuracy after repair unless it was fine-tuned."""
        repaired = result.accuracy if after_repair is None else after_repair
        return record(proposal, pruned, result, self.workload, self.cost, started=started, after_repair=repaired)


@dataclass(frozen=True)
class ZeroKeeper:
    """Function that sets the gradients of zero weights to zero, so that training keeps these weights."""

    capturable: ClassVar[bool] = True
    masks: Mapping[str, Tensor]
    """False for each weight that is zero, by parameter."""

    def __call__(self, model: nn.Module) -> None:
        for name, parameter in model.named_parameters():
            if name in self.masks and parameter.grad is not None:
                parameter.grad *= self.masks[name]


def keep_zeros(model: nn.Module) -> ZeroKeeper | None:
    """Return a function that keeps zero weights at zero in training; None if there are none."""
    masks = {name: p.detach() != 0 for name, p in model.named_parameters() if p.ndim > 1}
    # One transfer for all parameters.
    whole = torch.stack([mask.all() for mask in masks.values()]).tolist() if masks else []
    masks = {name: mask for (name, mask), is_whole in zip(masks.items(), whole, strict=True) if not is_whole}
    return ZeroKeeper(masks) if masks else None
