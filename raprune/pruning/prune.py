"""ONE CANDIDATE, top to bottom: the page to read first.

    proposal -> (train for the method) -> score -> allocate -> cut -> repair -> evaluate -> (fine-tune -> evaluate)
             -> trial

A method that trains while it cuts leads along a path of networks instead, each of them a trial.
No Ray: `raprune prune` runs this in one process, and every trial of a search runs it in its actor.
"""

from __future__ import annotations

import math
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from raprune.channels.cut import cut, rebuild
from raprune.channels.graph import ChannelGraph, Group
from raprune.channels.maxout import inserted
from raprune.cost.flops import CostModel, measured
from raprune.cost.latency import LatencyTable
from raprune.errors import ModelError
from raprune.methods import Cut, Method, Network, Regularizer, Scores, Step, method_named
from raprune.pruning.allocate import Target, allocate, select
from raprune.pruning.services import WorkloadServices
from raprune.pruning.workload import Workload
from raprune.records import Candidate, Metrics, Proposal, Stage, Trial, TrialState
from raprune.results.stages import OnWork, Work
from raprune.spec.job import SearchSpec, TrainSpec
from raprune.store.scores import Arrays, Statistics, key_of
from raprune.training.distillation import ChannelMap, channel_map
from raprune.training.evaluate import Evaluation, divergence, evaluate
from raprune.training.loop import ALONE, Checkpoints, Epoch, Ranks, train

PRICED = 256
"""Images, of those for calibration, on which it is measured what cutting one group alone costs.

With 64 the refit of layers of 576 weights a filter fits noise, and widths come out the wrong way round (ResNet-20)."""


@dataclass(frozen=True)
class Pruned:
    """A network that was cut and repaired, on its way to being judged."""

    model: nn.Module
    candidate: Candidate
    epochs: float = 0.0
    """Epochs of training since the dense network."""
    after_cut: float | None = None
    """Validation accuracy before the repair, where it was asked for."""
    accuracy: float | None = None
    """Validation accuracy of `model`, where it is recorded."""


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
        generator = torch.Generator().manual_seed(spec.seed)
        self._calibration = workload.train.take(min(spec.search.calibration, len(workload.train)), generator)
        self._bases: dict[Regularizer, nn.Module] = {}

    def prune(self, proposal: Proposal) -> Result:
        """The proposal's network, cut and repaired, and its trial.

        Raises:
            UsageError: if the method or the allocation is unknown.
            BudgetError: if no widths meet the proposal's target.
        """
        *_, last = self.results(proposal)
        return last

    def results(self, proposal: Proposal) -> Iterator[Result]:
        """`prune`, after the networks on the way to it where the method trains while it cuts."""
        if method_of(proposal).has_path():
            yield from self._walk(proposal)
            return
        started = time.time()
        pruned = self.cut_and_repair(proposal)
        result = self._evaluate(pruned.model)
        yield Result(self._trial(proposal, pruned, result, started, after_repair=result.accuracy), pruned.model)

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
        """The network of `parent`, made again unless it is given, and fine-tuned with the dense network as teacher.

        Weights that were pruned one by one stay zero. Of several `ranks` each calls this, and has the result. The
        trial's seconds include those of epochs that a checkpoint was resumed after.

        Raises:
            ModelError: if the training diverges.
        """
        started = time.time()
        pruned = start or self.made_again(parent)
        repaired = self._evaluate(pruned.model).accuracy if pruned.accuracy is None else pruned.accuracy
        trained: list[Epoch] = []
        told = on_epoch or self._epoch_of("")

        def tell(epoch: Epoch) -> None:
            trained.append(epoch)
            if told is not None:
                told(epoch)

        history = train(
            pruned.model,
            self.workload.training,
            spec,
            augment=self.workload.augment,
            seed=proposal.seed,
            teacher=self.workload.model if spec.distillation > 0 or spec.features > 0 else None,
            channels=self._channels(pruned) if spec.features > 0 else None,
            regularize=keep_zeros(pruned.model) if method_of(parent).has_path() else None,
            ranks=ranks,
            checkpoints=checkpoints,
            on_epoch=tell,
        )
        pruned = replace(pruned, epochs=pruned.epochs + spec.epochs)
        result = self._evaluate(pruned.model)
        started -= sum(epoch.seconds for epoch in history[: len(history) - len(trained)])
        trial = self._trial(proposal, pruned, result, started, after_repair=repaired)
        return Result(trial, pruned.model, history)

    def cut_and_repair(self, proposal: Proposal, *, judge_cut: bool = False) -> Pruned:
        """score -> allocate -> cut -> repair. `judge_cut` also evaluates between cut and repair."""
        method = method_of(proposal)
        base, epochs = self.base(method)
        scores = self.scores(method, proposal.seed)
        candidate = self._candidate(proposal, method, scores)
        model = cut(base, self.graph, candidate)
        after_cut = self._evaluate(model).accuracy if judge_cut else None
        method.repair(model, self._batches, Cut(base, self.graph, candidate.kept))
        return Pruned(model, candidate, epochs, after_cut)

    def repaired_again(self, trial: Trial) -> nn.Module:
        """The network of a recorded trial that trained nothing: its channels are known, so that none is scored.

        Raises:
            ModelError: if the network was trained: its weights are in the run, or lost.
        """
        assert trial.candidate is not None, "only trials with a network are made again"
        check_not_trained(trial)
        method = method_of(trial.proposal)
        base, _ = self.base(method)
        model = cut(base, self.graph, trial.candidate)
        method.repair(model, self._batches, Cut(base, self.graph, trial.candidate.kept))
        return model

    def made_again(self, parent: Proposal) -> Pruned:
        """The network that a search trial came to, before any fine-tuning."""
        if not method_of(parent).has_path():
            return self.cut_and_repair(parent, judge_cut=True)
        return next(pruned for here, pruned, _ in self._path(replace(parent, step=None)) if here == parent)

    def base(self, method: Method) -> tuple[nn.Module, float]:
        """The network that the method scores and cuts, trained for it where it asks for that; and for how long."""
        regularizer = method.regularize()
        if regularizer is None:
            return self.workload.model, 0.0
        if regularizer not in self._bases:
            weights = self.statistics.once(self.base_key(method), lambda: self.train_for(method))
            model = rebuild(self.workload.model, lambda name, tensor: tensor.clone())
            model.load_state_dict({name: torch.as_tensor(array) for name, array in weights.items()})
            self._bases[regularizer] = model.eval()
        return self._bases[regularizer], regularizer.epochs

    def train_for(
        self,
        method: Method,
        *,
        ranks: Ranks = ALONE,
        checkpoints: Checkpoints | None = None,
        on_epoch: Callable[[Epoch], None] | None = None,
    ) -> Arrays:
        """The weights of the dense network after the method's own training phase. Of several `ranks` each calls this.

        Raises:
            ModelError: if the training diverges.
        """
        regularizer = method.regularize()
        assert regularizer is not None, "the method asks for no training"
        model = rebuild(self.workload.model, lambda name, tensor: tensor.clone())
        train(
            model,
            self.workload.training,
            self._phase(regularizer),
            augment=self.workload.augment,
            seed=self._spec.seed,
            regularize=regularizer,
            ranks=ranks,
            checkpoints=checkpoints,
            on_epoch=on_epoch or self._epoch_of(_named(method)),
        )
        return {name: value.detach().cpu().numpy() for name, value in model.state_dict().items()}

    def scores(self, method: Method, seed: int) -> Scores:
        """Scores of all groups, computed once for each method and setting; of a seeded method anew for each seed."""
        if method.seeded:
            return self.score_part(method, self.graph, seed)
        return self.statistics.once(self.score_key(method), lambda: self.score_part(method, self.graph, seed))

    def score_part(self, method: Method, graph: ChannelGraph, seed: int) -> Scores:
        """Scores of the groups of `graph`: all, or some (`ChannelGraph.only`)."""
        scores = method.score(self.base(method)[0], graph, self._batches, seed=seed)
        priced: Scores = {}
        for group in graph.groups:
            of_group = scores[group.name]
            priced[group.name] = method.priced(of_group, self._prices(method, graph, group, of_group))
            if self._on_work is not None:
                self._on_work(Work(what=_named(method), done=len(priced), total=len(graph.groups), unit="groups"))
        return priced

    def _prices(
        self, method: Method, graph: ChannelGraph, group: Group, scores: npt.NDArray[np.float64]
    ) -> dict[int, float]:
        """Measure the sensitivity to cutting `group` alone, at the method's widths (`Method.priced_at`)."""
        dense = self.base(method)[0]
        # With the defaults of what only its repair reads: scores are shared over those.
        repairing = type(method)(**method.behind_scores())
        prices = {}
        for gone in method.priced_at(group.num_channels):
            best = np.argsort(-scores, kind="stable")[: group.num_channels - gone]
            kept = {group.name: tuple(sorted(best.tolist()))}
            model = cut(dense, graph, Candidate("priced", kept))
            repairing.repair(model, partial(self._first, PRICED), Cut(dense, graph, kept))
            prices[gone] = divergence(dense, model, self._first(PRICED))
        return prices

    def score_key(self, method: Method) -> str:
        """Under which key the statistics hold the method's scores."""
        content = {
            **self._network,
            "base": None if method.regularize() is None else self.base_key(method),
            "groups": self.graph.widths,
            "calibration": None if method.data_free else self._calibration_content,
            # A user's method may have the name of another.
            "method": f"{type(method).__module__}.{type(method).__qualname__}",
            "settings": method.behind_scores(),
        }
        return key_of(f"scores-{type(method).__name__.lower()}", content)

    def base_key(self, method: Method) -> str:
        """Under which key the statistics hold the weights that the method's training phase gives."""
        regularizer = method.regularize()
        assert regularizer is not None, "the method asks for no training"
        content = {
            **self._network,
            "regularizer": [f"{type(regularizer).__module__}.{type(regularizer).__qualname__}", asdict(regularizer)],
            "training": self._phase(regularizer).model_dump(mode="json"),
            "augment": self.workload.augment,
            "seed": self._spec.seed,
        }
        return key_of("network", content)

    def _candidate(self, proposal: Proposal, method: Method, scores: Scores) -> Candidate:
        target = Target(
            budget=proposal.target,
            min_channels=self._search.min_channels,
            multiple_of=self._search.step,
        )
        widths = allocate(
            proposal.allocation,
            self.cost,
            target,
            scores=scores,
            keep_ratios=proposal.keep_ratios,
            damage=method.damage(scores),
            comparable=method.comparable,
        )
        return select(scores, self.cost, widths, method=proposal.method, settings=proposal.settings)

    def _walk(self, proposal: Proposal) -> Iterator[Result]:
        for here, pruned, seconds in self._path(proposal):
            # As if its making, which the next network's came after, had ended just now.
            started = time.time() - seconds
            result = self._evaluate(pruned.model)
            yield Result(self._trial(here, pruned, result, started, after_repair=result.accuracy), pruned.model)

    def _path(self, proposal: Proposal) -> Iterator[tuple[Proposal, Pruned, float]]:
        """The networks of the method's path to the widths that its scores and the allocation give.

        Each with its own proposal (the last has `proposal` itself), and the seconds that its making took.
        """
        method, started = method_of(proposal), time.time()
        goal = self._candidate(proposal, method, self.scores(method, proposal.seed))
        whole = {group.name: tuple(range(group.num_channels)) for group in self.graph.groups}
        on_epoch = self._epoch_of(proposal.method)
        services = WorkloadServices(self.workload, self._batches, seed=proposal.seed, on_epoch=on_epoch)
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

    def _epoch_of(self, what: str) -> Callable[[Epoch], None] | None:
        """Callback that tells of a training's epochs, if anybody listens."""
        on_work = self._on_work
        if on_work is None:
            return None
        return lambda epoch: on_work(Work(what=what, done=epoch.number, total=math.ceil(epoch.epochs), unit="epochs"))

    def _channels(self, pruned: Pruned) -> ChannelMap | None:
        """Which of the dense network's channels are left; None where maxout units stand between the two."""
        if inserted(pruned.model):
            return None
        kept = pruned.candidate.kept
        return channel_map(self.workload.model, self.graph, kept, self.workload.example_input())

    def _phase(self, regularizer: Regularizer) -> TrainSpec:
        phase = self._spec.finalists.train.decided(epochs=regularizer.epochs, lr=regularizer.lr)
        return phase.model_copy(update={"distillation": 0.0})

    @cached_property
    def _network(self) -> dict[str, Any]:
        data = self.workload.data.fingerprint
        return {"weights": self.workload.weights_hash, "architecture": self.graph.architecture, "data": data}

    @property
    def _calibration_content(self) -> list[int]:
        return [len(self._calibration), self._search.eval_batch_size, self._spec.seed]

    def _batches(self) -> Iterable[tuple[Tensor, Tensor]]:
        # Two at least: batch statistics of one image are none (methods/method.py).
        return self._calibration.batches(max(2, min(self._search.eval_batch_size, 256)))

    def _first(self, count: int) -> Iterable[tuple[Tensor, Tensor]]:
        """The first of the calibration images, `count` of them, as one batch."""
        return islice(self._calibration.batches(count), 1)

    def _evaluate(self, model: nn.Module) -> Evaluation:
        return evaluate(model, self.workload.validation, batch_size=self._search.eval_batch_size)

    def _trial(
        self, proposal: Proposal, pruned: Pruned, result: Evaluation, started: float, *, after_repair: float
    ) -> Trial:
        flops, params = self._costs(pruned)
        latency_ms = self._latency_ms(pruned)
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
                zeros=sum(int((parameter == 0).sum()) for parameter in pruned.model.parameters()),
                latency_ms=latency_ms,
                latency_fraction=None if latency_ms is None else latency_ms / self.cost.dense_latency_ms,
            ),
            accuracy_after_cut=pruned.after_cut,
            accuracy_after_repair=after_repair,
            epochs=pruned.epochs,
            seconds=seconds,
            gpu_seconds=seconds if self.workload.device.type == "cuda" else 0.0,
            started_at=started,
            worker=f"{socket.gethostname()}:{os.getpid()}",
        )

    def _costs(self, pruned: Pruned) -> tuple[int, int]:
        """FLOPs and parameters. The closed form knows no maximum over channels: with one they are counted."""
        if inserted(pruned.model):
            return measured(pruned.model, self.workload.example_input())
        widths = self.cost.vector(pruned.candidate.widths)
        return int(self.cost.flops(widths)), int(self.cost.params(widths))

    def _latency_ms(self, pruned: Pruned) -> float | None:
        """As the run's table predicts; None without one, or with a maximum over channels, which no table knows."""
        if self.cost.table is None or inserted(pruned.model):
            return None
        return float(self.cost.latency_ms(self.cost.vector(pruned.candidate.widths)))


def method_of(proposal: Proposal) -> Method:
    """The proposal's method with its hyper-parameters."""
    return method_named(proposal.method)(**proposal.settings)


def _named(method: Method) -> str:
    return type(method).__name__.lower()


def is_trained(proposal: Proposal) -> bool:
    """True if the proposal's network is trained after it was cut: too expensive to be made again, it is stored."""
    return proposal.stage is Stage.FINETUNE or proposal.rung > 0 or method_of(proposal).has_path()


def check_not_trained(trial: Trial) -> None:
    """Refuse to make the network of a trial again that was trained.

    Raises:
        ModelError: if it was.
    """
    if is_trained(trial.proposal):
        raise ModelError(
            f"The weights of {trial.network} (trial {trial.trial_id}), which was trained, are not in the run.",
            hint="Restore the run's folder `models` from a backup, or take another network.",
        )


def keep_zeros(model: nn.Module) -> Callable[[nn.Module], None] | None:
    """Return a function that keeps zero weights at zero in training, by their gradients; None if there are none."""
    masks = {name: p.detach() != 0 for name, p in model.named_parameters() if p.ndim > 1}
    masks = {name: mask for name, mask in masks.items() if not bool(mask.all())}
    if not masks:
        return None

    def mask_gradients(model: nn.Module) -> None:
        for name, parameter in model.named_parameters():
            if name in masks and parameter.grad is not None:
                parameter.grad *= masks[name]

    return mask_gradients
