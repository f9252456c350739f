"""torch-pruning 1.6.1 and torch-kirigami 0.2.1 in the benchmark of one-shot pruning.

Both prune by a ratio of channels. The ratio is sought that comes closest to the FLOPs budget from below, and the batch
norms are re-estimated, which neither library does by itself.

In a vision transformer torch-pruning removes heads or widths of heads by the same ratio, as its examples do. The
numbers that timm's attention keeps are set as those examples set them, and its scale keeps the dense value.
"""

from __future__ import annotations

import copy
import signal
import time
import warnings
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any

import torch
import torch_kirigami
import torch_kirigami.pruning
import torch_pruning
from one_shot_terms import (
    HEADS,
    NEITHER,
    PRUNED,
    SEED,
    WHOLE,
    WIDTHS,
    Attempt,
    Ground,
    NotPossible,
    attentions,
    flops,
    projections,
)
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from raprune.methods import reestimate_batch_norm

PROBES = 8
"""Maximum number of ratios that are tried for a budget."""
CLOSE = 0.002
"""A network whose FLOPs are less than this fraction below the budget is near enough."""
Batches = Callable[[], Iterable[tuple[Tensor, Tensor]]]


class Peer(ABC):
    """A library that prunes a network by a ratio of channels, one ranking at a time."""

    names: list[str]
    settings: Sequence[tuple[str, ...]] = [(r, stream) for r in ("local", "global") for stream in (WHOLE, PRUNED)]

    def __init__(self, ground: Ground) -> None:
        self._limit_s = ground.contest.peers_limit_s
        self._output_layers = ground.output_layers
        self._workload = ground.workload
        self._calibration = ground.calibration
        self._dense = ground.contest.peers_model(ground.workload.model).to(ground.workload.device).eval()
        self._image = ground.workload.example_input()
        self._dense_flops = flops(self._dense, self._image)
        self._stream_layers = ground.stream_layers | set(projections(self._dense))
        with torch.no_grad():
            ours, theirs = (model(self._image) for model in (ground.workload.model, self._dense))
        assert torch.allclose(ours, theirs, atol=1e-3), "the other libraries' network is another function"
        self._fractions: dict[tuple[str, ...], dict[float, float]] = {}
        """Setting of a criterion -> pruning ratio -> fraction of the FLOPs that is left."""
        self._given_up: set[tuple[str, ...]] = set()
        """Settings of a criterion that took too long."""
        self._pruned_once = False
        self._first_given_up: str | None = None
        """Name of the criterion that took too long before the library had pruned the network once."""

    @abstractmethod
    def pruned(self, name: str, ratio: float, ranking: str, stream: str, part: str = NEITHER) -> nn.Module:
        """Return a copy of the dense network without `ratio` of its channels."""

    def attempt(self, name: str, budget: float, *setting: str) -> Attempt:
        started = time.process_time()
        too_long = f"not within {self._limit_s} CPU seconds"
        if (name, *setting) in self._given_up:
            raise NotPossible(too_long)
        if self._first_given_up is not None:
            raise NotPossible(f"not tried, as {self._first_given_up} was not done within {self._limit_s} CPU seconds")
        try:
            with time_limit(self._limit_s), warnings.catch_warnings():
                # Both libraries warn about their own deprecations.
                warnings.simplefilter("ignore")
                model, fraction = self._within(budget, name, *setting)
        except TimeoutError:
            self._given_up.add((name, *setting))
            if not self._pruned_once:
                self._first_given_up = name
            raise NotPossible(too_long) from None
        except NotPossible:
            raise
        # A peer may fail in any way on a network that it does not know.
        except Exception as error:
            raise NotPossible(f"{type(error).__name__}: {str(error).splitlines()[0][:120]}") from error
        self._pruned_once = True
        reestimate_batch_norm(model, self.batches)
        return Attempt(", ".join(setting), model, fraction, time.process_time() - started)

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the calibration images."""
        yield from self._calibration.batches(256)

    def protected(self, model: nn.Module, stream: str) -> list[nn.Module]:
        """Return the layers of `model` whose outputs stay whole."""
        layers = dict(model.named_modules())
        head = [layers[name] for name in sorted(self._output_layers)]
        return head if stream == PRUNED else [*head, *(layers[name] for name in sorted(self._stream_layers))]

    def _within(self, budget: float, name: str, *setting: str) -> tuple[nn.Module, float]:
        """Return the largest network within the budget that a few interpolated ratios find, and its FLOPs.

        Raises:
            NotPossible: if none of the ratios comes down to the budget.
        """
        known = self._fractions.setdefault((name, *setting), {0.0: 1.0, 1.0: 0.0})
        for _ in range(PROBES):
            low = max(ratio for ratio, fraction in known.items() if fraction > budget)
            high = min(ratio for ratio, fraction in known.items() if fraction <= budget)
            if known[high] > budget - CLOSE:
                break
            share = (known[low] - budget + CLOSE / 2) / (known[low] - known[high])
            ratio = low + min(max(share, 0.1), 0.9) * (high - low)
            known[ratio] = flops(self.pruned(name, ratio, *setting), self._image) / self._dense_flops
        ratio = min(ratio for ratio, fraction in known.items() if fraction <= budget)
        if ratio == 1.0:
            lowest = min(fraction for at, fraction in known.items() if at < 1.0)
            raise NotPossible(f"no ratio below 1 comes down to the budget, the lowest FLOPs are {lowest:.0%}")
        return self.pruned(name, ratio, *setting), known[ratio]


class TorchPruning(Peer):
    """torch-pruning's criteria in their default settings."""

    def __init__(self, ground: Ground) -> None:
        super().__init__(ground)
        self.names = list(CRITERIA)
        if ground.contest.parts:
            self.settings = [(*setting, part) for setting in Peer.settings for part in ground.contest.parts]
        self._prepared: dict[str, tuple[nn.Module, object]] = {}

    def pruned(self, name: str, ratio: float, ranking: str, stream: str, part: str = NEITHER) -> nn.Module:
        model, importance = self._scored(name)
        heads: dict[Any, int] = {module.qkv: module.num_heads for module in attentions(model)}  # type: ignore[misc]
        pruner = torch_pruning.pruner.BasePruner(
            model,
            self._image,
            importance,
            global_pruning=ranking == "global",
            pruning_ratio=ratio,
            ignored_layers=self.protected(model, stream) + (list(heads) if part == NEITHER else []),
            num_heads=heads,
            prune_num_heads=part == HEADS,
            prune_head_dims=part == WIDTHS,
            head_pruning_ratio=ratio if part == HEADS else 0.0,
        )
        pruner.step()
        for module in attentions(model):
            fit_numbers(module, pruner.num_heads)
        model.zero_grad(set_to_none=True)
        return model

    def _scored(self, name: str) -> tuple[nn.Module, object]:
        """Return a fresh copy of the network, ready to be pruned by the criterion."""
        if name not in self._prepared:
            model = copy.deepcopy(self._dense)
            self._prepared[name] = (model, CRITERIA[name](model, self.batches))
        scored, importance = self._prepared[name]
        model = with_gradients(scored)
        torch.manual_seed(SEED)
        return model, importance


class TorchKirigami(Peer):
    """torch-kirigami's metrics: those of the package, not those of its examples.

    The choice is that of its strategy `Greedy`, which verifies the whole network again after each channel; `AtOnce`
    verifies it once.
    """

    settings: Sequence[tuple[str, ...]] = [(ranking, WHOLE) for ranking in ("local", "global")]
    metrics: dict[str, Callable[[], Any]] = {
        "Magnitude L1": partial(torch_kirigami.pruning.Magnitude, p=1),
        "Magnitude L2": partial(torch_kirigami.pruning.Magnitude, p=2),
        "GroupMagnitude L2": partial(torch_kirigami.pruning.GroupMagnitude, p=2),
        "WeightTaylor": torch_kirigami.pruning.WeightTaylor,
    }

    def __init__(self, ground: Ground) -> None:
        super().__init__(ground)
        self.names = list(self.metrics)
        self._with_gradient: nn.Module | None = None
        self._strategies: dict[tuple[str, str], AtOnce] = {}

    def pruned(self, name: str, ratio: float, ranking: str, stream: str, part: str = NEITHER) -> nn.Module:
        model = with_gradients(self._differentiated()) if name == "WeightTaylor" else copy.deepcopy(self._dense)
        graph = torch_kirigami.DependencyGraph.build(model, args=(self._image,))
        pruner = torch_kirigami.pruning.Pruner(model, graph=graph)
        space = pruner.discover_candidates(targets=self._targets(model, stream))
        if (name, stream) not in self._strategies:
            self._strategies[name, stream] = AtOnce(self.metrics[name]())
        model, _ = pruner.prune(
            space,
            budget=torch_kirigami.pruning.ChannelRatio(ratio, scope=ranking),
            strategy=self._strategies[name, stream],
        )
        model.zero_grad(set_to_none=True)
        return model

    def _targets(self, model: nn.Module, stream: str) -> list[str]:
        """Return the names of the layers whose outputs may shrink."""
        protected = self.protected(model, stream)
        return [
            name
            for name, module in model.named_modules()
            if isinstance(module, (nn.Conv2d, nn.Linear)) and not any(module is layer for layer in protected)
        ]

    def _differentiated(self) -> nn.Module:
        if self._with_gradient is None:
            self._with_gradient = copy.deepcopy(self._dense)
            mean_gradient(self._with_gradient, self.batches)
        return self._with_gradient


class AtOnce:
    """A strategy of torch-kirigami: in the order of the scores, as its `Greedy`, without a verification a channel.

    Scores, and what goes with each candidate, are those of the dense network: they are computed once, for all ratios.
    The library itself verifies the network that is chosen.
    """

    def __init__(self, metric: Any) -> None:
        self._metric = metric
        self._order: list[str] = []
        """Keys of the candidates, those that cost least first."""
        self._gone: dict[str, set[tuple[int, int]]] = {}
        """Candidate's key -> what goes with it: number of the axis, position on it."""

    def select(self, context: Any) -> Any:
        """Return the keys of the candidates to remove."""
        if not self._order:
            self._rank(context)
        axes = list(context.widths)
        shared = len(context.targets) < len(axes)
        left = [sum(axes)] if shared else axes
        removed: set[tuple[int, int]] = set()
        chosen = []
        for key in self._order:
            new = self._gone[key] - removed
            fewer = Counter(axis for axis, _ in new)
            # A layer keeps a channel, and a candidate has to bring the budget nearer.
            if any(axes[axis] <= count for axis, count in fewer.items()):
                continue
            if not any(left[0 if shared else axis] > context.targets[0 if shared else axis] for axis in fewer):
                continue
            for axis, count in fewer.items():
                axes[axis] -= count
                left[0] -= count if shared else 0
            removed |= new
            chosen.append(key)
        return torch_kirigami.pruning.StrategyResult(keys=tuple(chosen))

    def _rank(self, context: Any) -> None:
        scores = context.score(self._metric, context.candidates)
        ranked = sorted(zip(scores, (candidate.key for candidate in context.candidates), strict=True))
        self._order = [key for _, key in ranked]
        for candidate in context.candidates:
            impact = context.impact(candidate.remove)
            self._gone[candidate.key] = {
                (number, position)
                for number, axis in enumerate(context.channel_axes)
                for position in impact.selection(axis.tensor).fully_selected_indices(axis.dim)
            }


def fit_numbers(attention: Any, num_heads: dict[Any, int]) -> None:
    """Set the numbers that timm's attention keeps to those of its pruned layers; the scale stays."""
    attention.num_heads = num_heads[attention.qkv]
    attention.attn_dim = attention.qkv.out_features // 3
    attention.head_dim = attention.attn_dim // attention.num_heads


def with_gradients(model: nn.Module) -> nn.Module:
    """Return a copy of the network that has its gradients too; `copy.deepcopy` leaves them out."""
    copied = copy.deepcopy(model)
    for parameter, original in zip(copied.parameters(), model.parameters(), strict=True):
        parameter.grad = None if original.grad is None else original.grad.clone()
    return copied


def mean_gradient(model: nn.Module, batches: Batches) -> None:
    """Set the gradients of `model` to that of the mean loss."""
    total = 0
    for images, labels in batches():
        # All at once take 20 GB at 224 pixels.
        for part, its_labels in zip(images.split(32), labels.split(32), strict=True):
            functional.cross_entropy(model(part), its_labels, reduction="sum").backward()
        total += len(labels)
    for parameter in model.parameters():
        assert parameter.grad is not None
        parameter.grad /= total


Criterion = Callable[[nn.Module, Batches], object]
"""`(model, batches)` -> torch-pruning's importance, with the gradients that it reads in place."""


def data_free(build: Callable[[], object]) -> Criterion:
    """Return the criterion of an importance that reads weights only."""
    return lambda model, batches: build()


def taylor(model: nn.Module, batches: Batches) -> object:
    """Return the importance by the gradient of the mean loss."""
    mean_gradient(model, batches)
    return torch_pruning.importance.TaylorImportance()


def hessian(model: nn.Module, batches: Batches) -> object:
    """Return the importance by the mean square of each image's gradient.

    It is handed over as the gradient itself: 1.6.1's own `accumulate_grad` keeps the last image's only.
    """
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    buffers = dict(model.named_buffers())

    def loss(parameters: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        logits = functional_call(model, (parameters, buffers), (image[None],))
        return functional.cross_entropy(logits, label[None])

    squares = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    total = 0
    for images, labels in batches():
        for part, its_labels in zip(images.split(32), labels.split(32), strict=True):
            for name, gradients in vmap(grad(loss), in_dims=(None, 0, 0))(parameters, part, its_labels).items():
                squares[name] += gradients.pow(2).sum(dim=0)
        total += len(labels)
    for name, parameter in model.named_parameters():
        parameter.grad = squares[name] / total
    return torch_pruning.importance.HessianImportance()


CRITERIA: dict[str, Criterion] = {
    "Random": data_free(torch_pruning.importance.RandomImportance),
    "Magnitude L1": data_free(lambda: torch_pruning.importance.MagnitudeImportance(p=1)),
    "Magnitude L2": data_free(lambda: torch_pruning.importance.MagnitudeImportance(p=2)),
    "BNScale": data_free(torch_pruning.importance.BNScaleImportance),
    "LAMP": data_free(torch_pruning.importance.LAMPImportance),
    "FPGM": data_free(torch_pruning.importance.FPGMImportance),
    "Taylor": taylor,
    "Hessian": hessian,
}


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Raise `TimeoutError` in the block after `seconds` of CPU time, which no other load stretches.

    Only in the main thread.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
