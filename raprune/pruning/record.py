"""The record of a network that was made: `Trial`, with its costs, its accuracies and its time."""

from __future__ import annotations

import os
import socket
import time
from dataclasses import dataclass

import torch
from torch import nn

from raprune.channels.maxout import inserted
from raprune.cost.flops import CostModel, measured
from raprune.errors import ModelError
from raprune.methods import Method, method_named
from raprune.pruning.workload import Workload
from raprune.records import Candidate, Metrics, Proposal, Stage, Trial, TrialState
from raprune.training.evaluate import Evaluation


@dataclass(frozen=True)
class Pruned:
    """A network that was cut and repaired, before it is evaluated."""

    model: nn.Module
    candidate: Candidate
    epochs: float = 0.0
    """Epochs of training since the dense network."""
    after_cut: float | None = None
    """Validation accuracy before the repair; None if it was not measured."""
    accuracy: float | None = None
    """Validation accuracy of `model`; None if it was not measured."""


def record(
    proposal: Proposal,
    pruned: Pruned,
    result: Evaluation,
    workload: Workload,
    cost: CostModel,
    *,
    started: float,
    after_repair: float,
) -> Trial:
    """Return the trial of `proposal`, with the `result` of its network `pruned`; it began at `started` and ends now."""
    flops, params = _costs(pruned, workload, cost)
    latency_ms, memory = _latency_ms(pruned, cost), _memory_bytes(pruned, cost)
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
            flops_fraction=flops / cost.dense_flops,
            params_fraction=params / cost.dense_params,
            zeros=_zeros(pruned.model),
            latency_ms=latency_ms,
            latency_fraction=None if latency_ms is None else latency_ms / cost.dense_latency_ms,
            memory_bytes=memory,
            memory_fraction=None if memory is None else memory / cost.dense_memory,
        ),
        accuracy_after_cut=pruned.after_cut,
        accuracy_after_repair=after_repair,
        epochs=pruned.epochs,
        seconds=seconds,
        gpu_seconds=seconds if workload.device.type == "cuda" else 0.0,
        started_at=started,
        worker=f"{socket.gethostname()}:{os.getpid()}",
    )


def _zeros(model: nn.Module) -> int:
    """Number of weights that are zero, by one transfer from the device."""
    return int(torch.stack([(parameter == 0).sum() for parameter in model.parameters()]).sum())


def _costs(pruned: Pruned, workload: Workload, cost: CostModel) -> tuple[int, int]:
    """Return FLOPs and parameters. Networks with maxout units are counted, as the closed form has no such units."""
    if inserted(pruned.model):
        return measured(pruned.model, workload.example_input())
    here = cost.closed(pruned.candidate.identity)
    widths = here.vector(pruned.candidate.widths)
    return int(here.flops(widths)), int(here.params(widths))


def _latency_ms(pruned: Pruned, cost: CostModel) -> float | None:
    """Return the latency that the run's table predicts; None without a table, and for networks with maxout units."""
    if cost.table is None or inserted(pruned.model):
        return None
    here = cost.closed(pruned.candidate.identity)
    return float(here.latency_ms(here.vector(pruned.candidate.widths)))


def _memory_bytes(pruned: Pruned, cost: CostModel) -> int | None:
    """Return the peak of the activations of one image; None where the closed form does not know it."""
    if not cost.dense_memory or inserted(pruned.model):
        return None
    here = cost.closed(pruned.candidate.identity)
    return int(here.memory_bytes(here.vector(pruned.candidate.widths)))


def method_of(proposal: Proposal) -> Method:
    """The proposal's method with its hyper-parameters."""
    return method_named(proposal.method)(**proposal.settings)


def is_trained(proposal: Proposal) -> bool:
    """True if the proposal's network is trained after the cut. It is stored, as it is expensive to make again."""
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
