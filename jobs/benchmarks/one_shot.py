"""One-shot pruning without any fine-tuning, against torch-pruning 1.6.1.

    uv run --group dev python jobs/benchmarks/one_shot.py

ResNet-56 on CIFAR-10 (JPEG), from the checkpoint and the data in the folder that RAPRUNE_DATA names. Both sides get the
same network, the same 2,048 training images for scores, repair and batch-norm re-estimation, and the same FLOPs budgets
by the same counter; neither trains. Each method or criterion runs in every setting that it has, the best of them by
validation accuracy is kept, and only that one meets the test images. A setting that falls far behind at one budget is
not tried at the smaller ones.

* raprune's settings: the allocations that need no search, the residual stream pruned or left alone; each method's own
  repair.
* torch-pruning's settings: local or global ranking, the residual stream pruned or left alone; the ratio is sought
  that comes closest to the budget from below, and the batch norms are re-estimated. It cannot take the zero-padding
  shortcuts, so it gets the same function with 1x1 convolutions there, whose FLOPs are not held against it.

A line a result goes to `--results`, and what stands there is not measured again; the table is written to `one_shot.md`
beside this file when all is there.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch_pruning
from bar import show
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode
from versus_torch_pruning import ProjectedBlock, projected_resnet56

from raprune.channels.graph import Group
from raprune.data.batches import DeviceSplit
from raprune.data.host import ImageSplit
from raprune.methods import METHODS, Method, reestimate_batch_norm
from raprune.pruning.allocate import ALLOCATIONS
from raprune.pruning.preparation import prepare
from raprune.pruning.prune import Pruner
from raprune.pruning.workload import Workload, build_workload
from raprune.records import Proposal
from raprune.spec.budget import Budget
from raprune.spec.toml import load_spec
from raprune.training.evaluate import evaluate

JOB = Path(__file__).parents[1] / "resnet56_cifar10.toml"
TABLE = Path(__file__).with_name("one_shot.md")
BARS = {0.5: 0.86, 0.4: 0.815, 0.3: 0.75}
"""FLOPs budget -> the test accuracy that `reconstruction` has to reach."""
SEED = 0
BEHIND = 0.1
"""Validation accuracy by which a setting may lie behind the best and still be tried at the next smaller budget."""
PROBES = 8
"""Ratios that torch-pruning tries at most for a budget."""
CLOSE = 0.002
"""So close below the budget is near enough."""

PRUNED, WHOLE = "stream pruned", "stream whole"
# Ratios are what a search proposes.
OURS = [(allocation, stream) for allocation in ALLOCATIONS if allocation != "ratios" for stream in (WHOLE, PRUNED)]
THEIRS = [(ranking, stream) for ranking in ("local", "global") for stream in (WHOLE, PRUNED)]


@dataclass(frozen=True)
class Result:
    """A method or criterion at one budget, in its best setting."""

    side: str
    name: str
    budget: float
    setting: str
    flops_fraction: float
    validation: float
    test: float
    test_images: int
    seconds: float
    """From the dense network to the cut and repaired one; raprune's scores are shared by all budgets and settings."""


@dataclass(frozen=True)
class Attempt:
    """One setting of it."""

    setting: str
    model: nn.Module
    flops_fraction: float
    validation: float
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="*", default=one_shot_methods(), help="raprune's; default all one-shot ones")
    parser.add_argument("--criteria", nargs="*", default=list(CRITERIA), help="torch-pruning's; default all")
    parser.add_argument("--budgets", nargs="*", type=float, default=list(BARS), help="FLOPs fractions")
    parser.add_argument("--test", type=int, default=10_000, help="test images (default all 10,000)")
    parser.add_argument("--validation", type=int, default=2_000, help="validation images (default 2,000)")
    parser.add_argument("--calibration", type=int, default=2_048, help="training images (default 2,048)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--results", type=Path, default=Path("runs/one_shot.jsonl"), help="a line a result")
    parser.add_argument("--table-only", action="store_true", help="measure nothing, write the table")
    arguments = parser.parse_args()
    # The same rounding for both sides: shortcuts that are 1x1 convolutions would go through TF32.
    torch.backends.cudnn.allow_tf32 = False
    # torch-pruning warns about its own deprecations.
    warnings.filterwarnings("ignore", module="torch_pruning")
    results = Results(arguments.results)
    budgets = sorted(arguments.budgets, reverse=True)
    wanted = [("raprune", name, budget) for name in arguments.methods for budget in budgets]
    wanted += [("torch-pruning", name, budget) for name in arguments.criteria for budget in budgets]
    missing = [] if arguments.table_only else [key for key in wanted if key not in results]
    if missing:
        arena = Arena(arguments)
        for side, name, budget in missing:
            results.add(arena.best(side, name, budget))
    TABLE.write_text(table(results.rows.values()))
    print(f"wrote {TABLE.name}")
    for budget, bar in BARS.items():
        if ("raprune", "reconstruction", budget) in results:
            figure = 100 * results.rows["raprune", "reconstruction", budget].test
            show(f"reconstruction at {budget:.0%} FLOPs", figure=figure, bar=100 * bar, unit="%", more_is_better=True)


def one_shot_methods() -> list[str]:
    """Those that neither train the network before a cut nor while they cut."""
    return [name for name, kind in METHODS.items() if not kind.has_path() and kind.regularize is Method.regularize]


class Results:
    """What was measured: `(side, name, budget)` -> result, kept in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text().splitlines() if path.exists() else []
        found = [Result(**json.loads(line)) for line in lines]
        self.rows = {(row.side, row.name, row.budget): row for row in found}

    def __contains__(self, key: tuple[str, str, float]) -> bool:
        return key in self.rows

    def add(self, row: Result) -> None:
        self.rows[row.side, row.name, row.budget] = row
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(asdict(row)) + "\n")
        print(
            f"{row.side} {row.name} at {row.budget:.0%} FLOPs ({row.flops_fraction:.2%}): {row.test:.2%} of "
            f"{row.test_images:,} test images, {row.validation:.2%} of validation; {row.setting}, {row.seconds:.1f} s",
            flush=True,
        )


class Arena:
    """The dense network, its data, and both sides' way from a budget to a smaller network."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        spec = load_spec(JOB, {"search.calibration_images": arguments.calibration, "seed": SEED})
        prepared = prepare(spec)
        self.workload = build_workload(spec, data=prepared.data, device=arguments.device, weights=prepared.weights)
        assert self.workload.test is not None
        self.test = _taken(self.workload.test, arguments.test)
        self.workload.validation = _taken(self.workload.validation, arguments.validation)
        streams = {group.name: "residual stream" for group in prepared.graph.groups if _is_stream(group)}
        graphs = {PRUNED: prepared.graph, WHOLE: prepared.graph.without(streams)}
        self.pruners = {stream: Pruner(self.workload, graph, spec) for stream, graph in graphs.items()}
        self._settings: dict[tuple[str, str], list[tuple[str, str]]] = {}
        # Drawn as the pruner draws its own.
        self.calibration = self.workload.sample(arguments.calibration, torch.Generator().manual_seed(SEED))
        self.peer = Peer(self.workload, self.calibration)

    def best(self, side: str, name: str, budget: float) -> Result:
        """The best of all settings by validation accuracy, and its accuracy on the test images."""
        attempt = self.ours if side == "raprune" else self.peer.attempt
        settings = self._settings.get((side, name)) or (OURS if side == "raprune" else THEIRS)
        attempts = [attempt(name, budget, *setting) for setting in settings]
        best = max(attempts, key=lambda attempt: attempt.validation)
        pairs = zip(settings, attempts, strict=True)
        self._settings[side, name] = [setting for setting, a in pairs if a.validation >= best.validation - BEHIND]
        test = evaluate(best.model, self.test).accuracy
        return Result(
            side=side,
            name=name,
            budget=budget,
            setting=best.setting,
            flops_fraction=best.flops_fraction,
            validation=best.validation,
            test=test,
            test_images=len(self.test),
            seconds=best.seconds,
        )

    def ours(self, name: str, budget: float, allocation: str, stream: str) -> Attempt:
        pruner, started = self.pruners[stream], time.perf_counter()
        method = METHODS[name]()
        if not method.seeded:
            # A group's scores do not depend on the other groups.
            scores = self.pruners[PRUNED].scoring.scores(method, SEED)
            pruner.statistics.put(
                pruner.scoring.key(method), {group: scores[group] for group in pruner.cost.group_names}
            )
        proposal = Proposal(number=0, method=name, allocation=allocation, target=Budget(flops=budget), seed=SEED)
        trial, model, _ = pruner.prune(proposal)
        assert trial.metrics is not None
        seconds = time.perf_counter() - started
        setting = f"{allocation}, {stream}"
        return Attempt(setting, model, trial.metrics.flops_fraction, trial.metrics.accuracy, seconds)


def _is_stream(group: Group) -> bool:
    """Whether several layers write the group's channels."""
    written = {member.parameter for member in group.members if member.writes}
    return len([parameter for parameter in written if parameter.endswith("weight")]) > 1


Batches = Callable[[], Iterable[tuple[Tensor, Tensor]]]
Criterion = Callable[[nn.Module, Batches], object]
"""`(model, batches)` -> torch-pruning's importance, with whatever it reads from the network's gradients in place."""


class Peer:
    """torch-pruning on the same network."""

    def __init__(self, workload: Workload, calibration: DeviceSplit) -> None:
        self._workload = workload
        self._calibration = calibration
        self._dense = projected(workload.model).to(workload.device).eval()
        self._image = workload.example_input()
        self._dense_flops = flops(self._dense, self._image)
        with torch.no_grad():
            ours, theirs = (model(self._image) for model in (workload.model, self._dense))
        assert torch.allclose(ours, theirs, atol=1e-3), "torch-pruning's network is another function"
        self._fractions: dict[tuple[str, bool, bool], dict[float, float]] = {}
        """Pruning ratio -> fraction of the FLOPs that is left, for each setting of a criterion."""
        self._prepared: dict[str, tuple[nn.Module, object]] = {}

    def attempt(self, name: str, budget: float, ranking: str, stream: str) -> Attempt:
        started = time.perf_counter()
        model, fraction = self._within(name, budget, global_ranking=ranking == "global", stream=stream == PRUNED)
        reestimate_batch_norm(model, self._batches)
        seconds = time.perf_counter() - started
        accuracy = evaluate(model, self._workload.validation).accuracy
        return Attempt(f"{ranking}, {stream}", model, fraction, accuracy, seconds)

    def _within(self, name: str, budget: float, *, global_ranking: bool, stream: bool) -> tuple[nn.Module, float]:
        """The largest network within the budget that a few interpolated ratios find."""
        known = self._fractions.setdefault((name, global_ranking, stream), {0.0: 1.0, 1.0: 0.0})
        for _ in range(PROBES):
            low = max(ratio for ratio, fraction in known.items() if fraction > budget)
            high = min(ratio for ratio, fraction in known.items() if fraction <= budget)
            if known[high] > budget - CLOSE:
                break
            share = (known[low] - budget + CLOSE / 2) / (known[low] - known[high])
            ratio = low + min(max(share, 0.1), 0.9) * (high - low)
            model = self._pruned(name, ratio, global_ranking=global_ranking, stream=stream)
            known[ratio] = flops(model, self._image) / self._dense_flops
        ratio = min(ratio for ratio, fraction in known.items() if fraction <= budget)
        return self._pruned(name, ratio, global_ranking=global_ranking, stream=stream), known[ratio]

    def _pruned(self, name: str, ratio: float, *, global_ranking: bool, stream: bool) -> nn.Module:
        model, importance = self._scored(name)
        head = [module for module in model.modules() if isinstance(module, nn.Linear)]
        torch_pruning.pruner.BasePruner(
            model,
            self._image,
            importance,
            global_pruning=global_ranking,
            pruning_ratio=ratio,
            ignored_layers=head if stream else [*head, *stream_writers(model)],
        ).step()
        model.zero_grad(set_to_none=True)
        return model

    def _scored(self, name: str) -> tuple[nn.Module, object]:
        """A fresh copy of the network, ready to be pruned by the criterion."""
        if name not in self._prepared:
            model = copy.deepcopy(self._dense)
            self._prepared[name] = (model, CRITERIA[name](model, self._batches))
        scored, importance = self._prepared[name]
        model = copy.deepcopy(scored)
        for parameter, original in zip(model.parameters(), scored.parameters(), strict=True):
            # A copy of a parameter comes without its gradient.
            parameter.grad = None if original.grad is None else original.grad.clone()
        torch.manual_seed(SEED)
        return model, importance

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield from self._calibration.batches(256)


def projected(model: nn.Module) -> nn.Module:
    """The same function with 1x1 convolutions in the two shortcuts that pad with zero channels."""
    theirs = projected_resnet56()
    theirs.load_state_dict(model.state_dict(), strict=False)
    with torch.no_grad():
        for shortcut in projections(theirs).values():
            wide, narrow = shortcut.weight.shape[:2]
            first = (wide - narrow) // 2
            shortcut.weight.zero_()
            shortcut.weight[first : first + narrow, :, 0, 0] = torch.eye(narrow)
    return theirs


def projections(model: nn.Module) -> dict[str, nn.Conv2d]:
    """The convolutions that stand in for the zero-padding shortcuts, by name."""
    blocks = [(name, module) for name, module in model.named_modules() if isinstance(module, ProjectedBlock)]
    return {f"{name}.shortcut": b.shortcut for name, b in blocks if isinstance(b.shortcut, nn.Conv2d)}


def stream_writers(model: nn.Module) -> list[nn.Module]:
    """The layers that write the residual stream."""
    named = dict(model.named_modules())
    return [module for name, module in named.items() if name == "conv1" or name.endswith((".conv2", ".shortcut"))]


def flops(model: nn.Module, image: Tensor) -> int:
    """FLOPs of one forward pass, the stand-ins for zero-padding shortcuts aside."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(image)
    by_module = counter.get_flop_counts()
    aside = sum(sum(by_module[f"{type(model).__name__}.{name}"].values()) for name in projections(model))
    return int(counter.get_total_flops()) - aside


def data_free(build: Callable[[], object]) -> Criterion:
    return lambda model, batches: build()


def taylor(model: nn.Module, batches: Batches) -> object:
    """The gradient of the mean loss."""
    total = 0
    for images, labels in batches():
        functional.cross_entropy(model(images), labels, reduction="sum").backward()
        total += len(labels)
    for parameter in model.parameters():
        assert parameter.grad is not None
        parameter.grad /= total
    return torch_pruning.importance.TaylorImportance()


def hessian(model: nn.Module, batches: Batches) -> object:
    """The mean square of each image's gradient.

    Handed over as the gradient itself: 1.6.1's own `accumulate_grad` keeps the last image's only.
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
"""torch-pruning's criteria in their default settings."""


def _taken(split: ImageSplit, count: int) -> ImageSplit:
    return split.take(min(count, len(split)), torch.Generator().manual_seed(SEED))


def table(results: Iterable[Result]) -> str:
    """The Markdown file."""
    rows = list(results)
    budgets = sorted({row.budget for row in rows}, reverse=True)
    images = sorted({row.test_images for row in rows})
    lines = [
        "# One-shot pruning without fine-tuning: ResNet-56 on CIFAR-10 (JPEG)",
        "",
        "Made by `jobs/benchmarks/one_shot.py`, whose docstring has the terms. Test accuracy in % "
        f"({' or '.join(f'{count:,}' for count in images)} images) with the FLOPs reached and the setting that did "
        "best on the validation images. Seconds are those of that network at the largest budget: scores where they "
        "were not there yet, cut and repair; for torch-pruning the search for the ratio too.",
        "",
        f"| | method or criterion | {' | '.join(f'{budget:.0%} FLOPs' for budget in budgets)} | seconds |",
        f"| --- | --- | {' | '.join('---' for _ in budgets)} | --- |",
    ]
    by_name: dict[tuple[str, str], dict[float, Result]] = {}
    for row in rows:
        by_name.setdefault((row.side, row.name), {})[row.budget] = row
    ordered = sorted(by_name.items(), key=lambda item: -max(row.test for row in item[1].values()))
    for (side, name), found in ordered:
        cells = [_cell(found[budget]) if budget in found else "" for budget in budgets]
        seconds = found[max(found)].seconds
        lines.append(f"| {side} | {name} | {' | '.join(cells)} | {seconds:.1f} |")
    return "\n".join(lines) + "\n"


def _cell(row: Result) -> str:
    return f"**{100 * row.test:.1f}** ({100 * row.flops_fraction:.1f} %, {row.setting})"


if __name__ == "__main__":
    os.environ.setdefault("RAPRUNE_DATA", str(Path(__file__).parents[3] / "shared" / "data"))
    main()
