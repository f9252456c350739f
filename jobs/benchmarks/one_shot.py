"""One-shot pruning without any fine-tuning, against torch-pruning 1.6.1 and torch-kirigami 0.2.1.

    uv run --group dev python jobs/benchmarks/one_shot.py resnet56
    uv run --group dev python jobs/benchmarks/one_shot.py efficientnet_lite0
    uv run --group dev --extra timm python jobs/benchmarks/one_shot.py vit

`resnet56` is ResNet-56 on CIFAR-10 (JPEG), from the checkpoint and the data in the folder that RAPRUNE_DATA names:
2,048 training images for scores, repair and batch-norm re-estimation, 1,000 for the choice of a setting, the 10,000
test images for the figure. `efficientnet_lite0` is the ImageNet network at 224 pixels: 320 photographs for scores
and repair, 80 for the choice, 200 for the figure, which is set against the dense network's image by image. `vit` is
the vision transformer that `jobs/train_dense.py jobs/vit_cifar10.toml` trains, on the same data as ResNet-56: 1,024
training images for scores and repair.

All sides get the same network, the same images and the same FLOPs budgets by the same counter; none trains. Each method
or criterion runs in every setting that it has, the best of them by validation accuracy is kept, and only that one meets
the test images. A setting that falls far behind at one budget is not tried at the smaller ones.

* raprune's settings: the allocations that need no search (on the large network `global_rank` and `least_damage`), the
  residual stream pruned or left alone; each method's own repair. *Blocks matched*, which trains for minutes on the
  large network, has only the setting that did best for `reconstruction` at the same budget.
* The other libraries' settings: local or global ranking, the residual stream pruned or left alone; the ratio is sought
  that comes closest to the budget from below, and the batch norms are re-estimated. torch-pruning cannot take the
  zero-padding shortcuts of ResNet-56, so both get the same function with 1x1 convolutions there, whose FLOPs are not
  held against them. In the transformer torch-pruning removes heads, widths of heads or neither, and keeps the scale of
  the dense network; channels go by its ratio in all other layers. torch-kirigami finds the candidates of attention by
  itself, and the stream is left alone. Its channels go in the order of its metrics, as by its strategy `Greedy`, but
  the network is verified once and not after each channel, for which one cut of ResNet-56 took 330 CPU seconds. An
  attempt of either library ends after 300 CPU seconds, on EfficientNet-Lite0 after 900; if that was its first one, no
  other is made.
* The transformer has no batch norm. *reconstruction, without repair* keeps the channels of `reconstruction` and the
  dense network's weights; the methods that do not refit keep them as well.
* Controls: the dense network, the dense network with its batch norms re-estimated on the same images, and the dense
  network with the two epochs of fine-tuning that a finalist gets on all training images. `recipes.py` fine-tunes pruned
  networks so.

Results are kept in `one_shot.jsonl` beside this file, each with its commit, date and machine; what stands there is
measured again only with `--again`, so that a command that was stopped, or that `--seconds` ended, goes on where it was.
The table `one_shot.md` is written from all of them.
"""

from __future__ import annotations

import argparse
import copy
import math
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import torch
from bar import show
from kept_rows import KeptRows, Origin, origin_now
from one_shot_peers import TorchKirigami, TorchPruning
from one_shot_raprune import MATCHED, UNREPAIRED, Raprune
from one_shot_terms import CONTESTS, SEED, Attempt, Contest, Ground, NotPossible, Side
from torch import Tensor, nn

from raprune.data.host import ImageSplit
from raprune.methods import reestimate_batch_norm
from raprune.pruning.preparation import prepare
from raprune.pruning.prune import Pruner
from raprune.pruning.workload import build_workload
from raprune.records import Proposal, Stage
from raprune.spec.budget import Budget
from raprune.spec.toml import load_spec

TABLE = Path(__file__).with_name("one_shot.md")
ROWS = Path(__file__).with_name("one_shot.jsonl")
BEHIND = 0.03
"""Validation accuracy by which a setting may lie behind the best and still be tried at the next smaller budget."""
VALIDATION = 1_000
"""Maximum number of validation images."""
SIDES: dict[str, Callable[[Ground], Side]] = {
    "raprune": Raprune,
    "torch-pruning": TorchPruning,
    "torch-kirigami": TorchKirigami,
}
CONTROL = "control"
DENSE, REESTIMATED = "dense network", "dense network, batch norms re-estimated"
FINE_TUNED = "dense network, fine-tuned for two epochs"


@dataclass(frozen=True)
class Result:
    """A method or criterion at one budget, in its best setting."""

    network: str
    side: str
    name: str
    budget: float
    setting: str
    """The setting; of a network that could not be made, the reason."""
    test_images: int
    flops_fraction: float | None = None
    validation: float | None = None
    test: float | None = None
    """None: the network could not be made."""
    lost: int = 0
    """Number of test images that the dense network has right and this one wrong."""
    won: int = 0
    """Number of test images that the dense network has wrong and this one right."""
    seconds: float = 0.0
    """CPU seconds from the dense network to the cut and repaired one, of all cores together: other load on the machine
    does not change them. raprune's scores are shared by all budgets and settings."""
    near: str = ""
    """Settings that the next smaller budget tries, separated by semicolons."""
    tried: str = ""
    """Settings that were tried, separated by semicolons."""


Key = tuple[str, str, str, float]


def key_of(row: Result) -> Key:
    """Return what makes two rows the same one, measured again."""
    return (row.network, row.side, row.name, row.budget)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", choices=[[], *CONTESTS], help=f"of {', '.join(CONTESTS)}; default all")
    parser.add_argument("--sides", nargs="*", default=[CONTROL, *SIDES], help="default all")
    parser.add_argument("--names", nargs="*", help="methods or criteria; default all")
    parser.add_argument("--budgets", nargs="*", type=float, help="FLOPs fractions; default all of the network")
    parser.add_argument("--settings", nargs="*", default=[], help='such as "global_rank, stream whole"; default all')
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--again", action="store_true", help="measure also what stands in the table")
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin no further row after so long")
    parser.add_argument("--table-only", action="store_true", help="measure nothing, write the table")
    arguments = parser.parse_args()
    # The same rounding for all sides: shortcuts that are 1x1 convolutions would go through TF32.
    torch.backends.cudnn.allow_tf32 = False
    kept = KeptRows(ROWS, Result, key_of)
    arguments.until = time.monotonic() + arguments.seconds
    if not arguments.table_only:
        for name in arguments.networks or CONTESTS:
            run(CONTESTS[name], kept, arguments)
    TABLE.write_text(tables(kept))
    print(f"wrote {TABLE.name}")
    for contest in CONTESTS.values():
        for budget, bar in contest.ahead.items():
            gap = lead(contest, budget, kept)
            if gap is not None:
                name = f"{contest.name}, reconstruction ahead at {budget:.0%} FLOPs"
                show(name, figure=100 * gap, bar=100 * bar, unit="points", more_is_better=True)
        for budget, bar in contest.budgets.items():
            row = kept.rows.get((contest.name, "raprune", "reconstruction", budget))
            if row is not None and row.test is not None and bar:
                name = f"{contest.name}, reconstruction at {budget:.0%} FLOPs"
                show(name, figure=100 * row.test, bar=100 * bar, unit="%", more_is_better=True)


def lead(contest: Contest, budget: float, kept: KeptRows[Result]) -> float | None:
    """Return how far `reconstruction` is ahead of its channels without repair and of the other libraries; None if it,
    the former or all of the latter lack."""
    at_budget = [row for row in kept.rows.values() if (row.network, row.budget) == (contest.name, budget)]
    of_name = {row.name: row.test for row in at_budget if row.side == "raprune"}
    ours, unrepaired = of_name.get("reconstruction"), of_name.get(UNREPAIRED)
    theirs = [row.test for row in at_budget if row.side not in ("raprune", CONTROL) and row.test is not None]
    return None if ours is None or unrepaired is None or not theirs else ours - max(unrepaired, *theirs)


def run(contest: Contest, kept: KeptRows[Result], arguments: argparse.Namespace) -> None:
    """Measure what lacks of one network's table."""
    started = time.monotonic()
    arena = Arena(contest, arguments.device)
    budgets = [b for b in sorted(contest.budgets, reverse=True) if not arguments.budgets or b in arguments.budgets]
    origin = origin_now(arguments.device)

    def add(side: str, name: str, budget: float, measure: Callable[[], Result]) -> None:
        if arguments.names and name not in arguments.names:
            return
        if time.monotonic() > arguments.until:
            return
        if arguments.again or (contest.name, side, name, budget) not in kept:
            row = measure()
            kept.add(row, origin)
            print(line(row), flush=True)

    for side in arguments.sides:
        if side == CONTROL:
            for name in arena.controls:
                add(side, name, 1.0, partial(arena.control, name))
            continue
        for name in arena.side(side).names:
            for budget in budgets:
                above = [row for row in kept.rows.values() if (row.side, row.name) == (side, name)]
                wider = [row for row in above if row.network == contest.name and row.budget > budget]
                near = min(wider, key=lambda row: row.budget).near if wider else ""
                plain = kept.rows.get((contest.name, side, "reconstruction", budget))
                if name == MATCHED and plain is not None:
                    near = plain.setting
                tried = "; ".join(arguments.settings) or near
                add(side, name, budget, partial(arena.best, side, name, budget, tried))
    print(f"{contest.name}: {(time.monotonic() - started) / 60:.1f} minutes", flush=True)


class Arena:
    """The dense network, its data, and each side's way from a budget to a smaller network."""

    def __init__(self, contest: Contest, device: str) -> None:
        # Only a control is fine-tuned.
        spec = load_spec(contest.job, {**contest.overrides, "seed": SEED, "finalists.train.epochs": 2})
        prepared = prepare(spec)
        workload = build_workload(spec, data=prepared.data, device=device, weights=prepared.weights)
        # Drawn as the pruner draws its own.
        calibration = workload.sample(spec.search.calibration, torch.Generator().manual_seed(SEED))
        self.ground = Ground(contest, prepared, workload, calibration)
        assert workload.test is not None
        self._test = workload.test
        self._validation = taken(workload.validation, VALIDATION)
        self._sides: dict[str, Side] = {}

    def side(self, name: str) -> Side:
        """Return a library, made ready when it is first asked for."""
        if name not in self._sides:
            self._sides[name] = SIDES[name](self.ground)
        return self._sides[name]

    @property
    def controls(self) -> tuple[str, ...]:
        """Names of the controls; the transformer has no batch norm that could be re-estimated."""
        layers = self.ground.workload.model.modules()
        has_norms = any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in layers)
        return (DENSE, REESTIMATED, FINE_TUNED) if has_norms else (DENSE, FINE_TUNED)

    def control(self, name: str) -> Result:
        """Measure the dense network as it is, re-estimated on the calibration images, or fine-tuned."""
        model = self.ground.workload.model
        if name == REESTIMATED:
            model = copy.deepcopy(model)
            reestimate_batch_norm(model, lambda: self.ground.calibration.batches(256))
        if name == FINE_TUNED:
            model = self._fine_tuned()
        return self._result(CONTROL, name, 1.0, Attempt("", model, 1.0, 0.0), right(model, self._validation))

    def _fine_tuned(self) -> nn.Module:
        """Return the dense network, trained as a finalist is after a cut that takes nothing."""
        spec = self.ground.prepared.spec
        whole = Proposal(number=0, method="l2", allocation="uniform", target=Budget(flops=1.0), seed=SEED)
        pruner = Pruner(self.ground.workload, self.ground.prepared.graph, spec)
        tuned = pruner.finetune(replace(whole, stage=Stage.FINETUNE), whole, spec.finalists.train.decided())
        return tuned.model.eval()

    def best(self, side: str, name: str, budget: float, tried: str) -> Result:
        """Measure the best of the settings `tried`, or of all, by validation accuracy on the test images."""
        library = self.side(side)
        settings = [setting for setting in library.settings if not tried or ", ".join(setting) in tried.split("; ")]
        attempts: dict[tuple[str, ...], tuple[Attempt, Tensor]] = {}
        reasons: list[str] = []
        for setting in settings:
            try:
                attempt = library.attempt(name, budget, *setting)
            except NotPossible as reason:
                reasons.append(f"{', '.join(setting)}: {reason}")
                continue
            attempts[setting] = (attempt, right(attempt.model, self._validation))
        if not attempts:
            network, images = self.ground.contest.name, len(self._test)
            return Result(network, side, name, budget, f"none: {reasons[0]}", images)
        accuracies = {setting: float(found.float().mean()) for setting, (_, found) in attempts.items()}
        chosen = max(accuracies, key=accuracies.__getitem__)
        best = self._result(side, name, budget, *attempts[chosen])
        close = [setting for setting, accuracy in accuracies.items() if accuracy >= accuracies[chosen] - BEHIND]
        names = ["; ".join(", ".join(setting) for setting in some) for some in (close, settings)]
        return replace(best, near=names[0], tried=names[1])

    def _result(self, side: str, name: str, budget: float, attempt: Attempt, validation: Tensor) -> Result:
        found = right(attempt.model, self._test)
        return Result(
            network=self.ground.contest.name,
            side=side,
            name=name,
            budget=budget,
            setting=attempt.setting,
            test_images=len(self._test),
            flops_fraction=attempt.flops_fraction,
            validation=float(validation.float().mean()),
            test=float(found.float().mean()),
            lost=int((self._dense & ~found).sum()),
            won=int((~self._dense & found).sum()),
            seconds=attempt.seconds,
        )

    @cached_property
    def _dense(self) -> Tensor:
        return right(self.ground.workload.model, self._test)


def right(model: nn.Module, split: ImageSplit) -> Tensor:
    """Return for each image of `split` whether `model` has it right, shape `(N,)`."""
    # Both as a CPU likes them; most of a row's time goes here.
    model = copy.deepcopy(model).eval().to(memory_format=torch.channels_last)
    with torch.no_grad():
        found = [model(images).argmax(dim=1) == labels for images, labels in split.batches(32)]
    return torch.cat(found).cpu()


def taken(split: ImageSplit, count: int) -> ImageSplit:
    """Return `count` images of `split`, or all if it has no more."""
    return split.take(min(count, len(split)), torch.Generator().manual_seed(SEED))


def line(row: Result) -> str:
    """Return one result as a line."""
    name = f"{row.network}: {row.side} {row.name} at {row.budget:.0%} FLOPs"
    if row.test is None:
        return f"{name}: {row.setting}"
    return (
        f"{name} ({row.flops_fraction:.2%}): {row.test:.2%} of {row.test_images:,} test images, "
        f"{row.validation:.2%} of validation; {row.setting}, {row.seconds:.1f} CPU s"
    )


def tables(kept: KeptRows[Result]) -> str:
    """Return the Markdown file."""
    lines = [
        "# One-shot pruning without fine-tuning",
        "",
        "Made by `jobs/benchmarks/one_shot.py`, whose docstring has the terms. Test accuracy in % with the FLOPs "
        "reached and the setting that did best on the validation images. CPU seconds are those of that network at the "
        "largest budget, over all cores: scores where they were not there yet, cut and repair; for the other libraries "
        "the search for the ratio too.",
    ]
    for contest in CONTESTS.values():
        rows = [row for row in kept.rows.values() if row.network == contest.name]
        if rows:
            lines += ["", f"## {contest.title}", "", *table(rows, lambda row: kept.origins[key_of(row)])]
    return "\n".join(lines) + "\n"


def table(rows: list[Result], origin: Callable[[Result], Origin]) -> Iterable[str]:
    """Yield the lines of one network's table."""
    controls = [row for row in rows if row.side == CONTROL]
    sentences = [f"{row.name.capitalize()}: {100 * (row.test or 0):.2f} %." for row in controls]
    yield " ".join([f"{max(row.test_images for row in rows):,} test images.", *sentences])
    measured = [row for row in rows if row.side != CONTROL]
    budgets = sorted({row.budget for row in measured}, reverse=True)
    yield ""
    yield f"| | method or criterion | {' | '.join(f'{b:.0%} FLOPs' for b in budgets)} | CPU seconds | measured |"
    yield f"| --- | --- | {' | '.join('---' for _ in budgets)} | --- | --- |"
    by_name: dict[tuple[str, str], dict[float, Result]] = {}
    for row in measured:
        by_name.setdefault((row.side, row.name), {})[row.budget] = row
    ordered = sorted(by_name.items(), key=lambda item: -max(row.test or 0 for row in item[1].values()))
    for (side, name), found in ordered:
        cells = [cell(found[budget]) if budget in found else "" for budget in budgets]
        widest = found[max(found)]
        yield f"| {side} | {name} | {' | '.join(cells)} | {widest.seconds:.1f} | {words(map(origin, found.values()))} |"


def cell(row: Result) -> str:
    """Return one figure of the table; few images are compared with the dense network one by one."""
    if row.test is None or row.flops_fraction is None:
        return row.setting
    pairs = f", {row.lost} lost and {row.won} won" if row.test_images < 1000 else ""
    return f"**{100 * row.test:.1f}** ({100 * row.flops_fraction:.1f} %, {row.setting}{pairs})"


def words(origins: Iterable[Origin]) -> str:
    """Return the different origins of a line."""
    return "; ".join(sorted({f"{origin.date}, {origin.commit}, {origin.machine}" for origin in origins}))


if __name__ == "__main__":
    os.environ.setdefault("RAPRUNE_DATA", str(Path(__file__).parents[3] / "shared" / "data"))
    main()
