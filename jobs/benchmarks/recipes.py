"""Fine-tuning after a cut, by recipe, teacher and number of cuts: `uv run python jobs/benchmarks/recipes.py`.

CIFAR-10 (JPEG) from the folder that RAPRUNE_DATA names. Every network is cut by `reconstruction`, its budget divided by
`least_damage` with 2,048 calibration images, and fine-tuned by the product's own finalists (`Pruner.finetune`) with the
recipe that the product chooses by itself; only what an arm names is set. One cut a study and budget, three seeds of the
fine-tuning. Accuracy on all 10,000 test images.

* `short`: ResNet-56 at 50 and 40 % of the FLOPs, two epochs.
* `rate`: half of the learning rate that is chosen, for two epochs (704 steps) and for a quarter of one (88 steps).
* `maps`: ResNet-56 at 50 % without feature maps.
* `teacher`: ResNet-20 at 50 %, two epochs, taught by itself, or by ResNet-56 by logits or by correlations (DIST).
* `gradual`: ResNet-20 at 25 %, three epochs, in one cut or in three with training in between.
* `optimiser`: ViT and ConvNeXt of `jobs/`, trained by `jobs/train_dense.py`, at 50 %, two epochs, by the recipe chosen
  (AdamW) or by SGD.

`recipes.jsonl` keeps the rows; what stands there is not measured again. `recipes.md` is written from all of them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from bar import show
from kept_rows import KeptRows, origin_now

from raprune.pruning.preparation import Prepared, prepare
from raprune.pruning.prune import Pruner
from raprune.pruning.workload import Workload, build_workload
from raprune.records import Proposal, Stage
from raprune.spec.budget import Budget
from raprune.spec.toml import load_spec
from raprune.training.evaluate import evaluate

JOBS = Path(__file__).parents[1]
TABLE = Path(__file__).with_name("recipes.md")
ROWS = Path(__file__).with_name("recipes.jsonl")
CALIBRATION = 2_048


@dataclass(frozen=True)
class Arm:
    """One way to fine-tune one cut."""

    study: str
    name: str
    job: str
    flops: float
    """Fraction of the dense FLOPs that stays."""
    epochs: float
    changes: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Fields of the job that differ from what the product chooses."""


BY_RESNET56 = {
    "teacher.name": "cifar-resnet56",
    "teacher.weights": "${RAPRUNE_DATA:-../../shared/data}/resnet56-cifar10-jpeg.safetensors",
}
SGD = {"finalists.train.optimizer": "sgd", "finalists.train.weight_decay": 5e-4, "finalists.train.lr": 0.01}
SLOWER = {"finalists.train.lr": 0.01}
"""Half of the learning rate that 88 and 704 steps have by default."""
ARMS = (
    Arm("short", "50 %", "resnet56_cifar10", 0.5, 2.0),
    Arm("short", "40 %", "resnet56_cifar10", 0.4, 2.0),
    Arm("rate", "ResNet-56 at 0.01", "resnet56_cifar10", 0.5, 2.0, SLOWER),
    Arm("rate", "ResNet-20 at 0.01", "resnet20_cifar10", 0.5, 2.0, SLOWER),
    Arm("rate", "ResNet-20, a quarter of an epoch", "resnet20_cifar10", 0.5, 0.25),
    Arm("rate", "ResNet-20, a quarter at 0.01", "resnet20_cifar10", 0.5, 0.25, SLOWER),
    Arm("maps", "50 % without maps", "resnet56_cifar10", 0.5, 2.0, {"finalists.train.features": 0.0}),
    Arm("teacher", "itself", "resnet20_cifar10", 0.5, 2.0),
    Arm("teacher", "itself, no maps", "resnet20_cifar10", 0.5, 2.0, {"finalists.train.features": 0.0}),
    Arm("teacher", "ResNet-56", "resnet20_cifar10", 0.5, 2.0, BY_RESNET56),
    Arm(
        "teacher",
        "ResNet-56, DIST",
        "resnet20_cifar10",
        0.5,
        2.0,
        BY_RESNET56 | {"finalists.train.teacher_loss": "dist"},
    ),
    Arm("gradual", "one cut", "resnet20_cifar10", 0.25, 3.0),
    Arm("gradual", "three cuts", "resnet20_cifar10", 0.25, 3.0, {"finalists.steps": 3}),
    Arm("optimiser", "ViT, recipe", "vit_cifar10", 0.5, 2.0),
    Arm("optimiser", "ViT, SGD", "vit_cifar10", 0.5, 2.0, SGD),
    Arm("optimiser", "ConvNeXt, recipe", "convnext_cifar10", 0.5, 2.0),
    Arm("optimiser", "ConvNeXt, SGD", "convnext_cifar10", 0.5, 2.0, SGD),
)
BARS = {("short", "50 %"): 89.6, ("short", "40 %"): 88.6}
"""Test accuracy in % that the mean of the seeds has to reach."""


@dataclass(frozen=True)
class Row:
    """One fine-tuning; accuracies in %."""

    study: str
    arm: str
    seed: int
    flops: float
    """Fraction of the dense FLOPs that stayed."""
    dense: float
    repaired: float
    """Before the fine-tuning."""
    tuned: float
    recipe: str
    features: str
    seconds: float
    """Of the fine-tuning."""

    @property
    def key(self) -> tuple[str, str, int]:
        return self.study, self.arm, self.seed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    studies = list(dict.fromkeys(arm.study for arm in ARMS))
    parser.add_argument("--studies", nargs="+", choices=studies, default=studies, help="default all")
    parser.add_argument("--arms", nargs="+", metavar="ARM", help="names of arms, such as 'ViT, SGD'; default all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default 0 1 2")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no other row after this time")
    parser.add_argument("--table-only", action="store_true", help="measure nothing, write the table")
    arguments = parser.parse_args()
    kept = KeptRows(ROWS, Row, key=lambda row: row.key)
    started = time.perf_counter()
    arms = [arm for arm in ARMS if arm.study in arguments.studies]
    if arguments.arms is not None:
        names = {arm.name for arm in arms}
        if unknown := sorted(set(arguments.arms) - names):
            parser.error(f"--arms: no arm {unknown[0]!r} in these studies; there are {'; '.join(sorted(names))}")
        arms = [arm for arm in arms if arm.name in arguments.arms]
    wanted = [(arm, seed) for arm in arms for seed in arguments.seeds]
    for arm, seed in [] if arguments.table_only else wanted:
        if (arm.study, arm.name, seed) in kept or time.perf_counter() - started > arguments.seconds:
            continue
        row = Arena.of(arm).row(seed)
        kept.add(row, origin_now())
        print(
            f"{row.study}, {row.arm}, seed {seed}: {row.repaired:.2f} -> {row.tuned:.2f} %, {row.seconds:.0f} s",
            flush=True,
        )
        TABLE.write_text("\n".join(table(kept)) + "\n")
    TABLE.write_text("\n".join(table(kept)) + "\n")
    for (study, name), bar in BARS.items():
        tuned = [row.tuned for row in kept.rows.values() if (row.study, row.arm) == (study, name)]
        if tuned:
            show(f"{name}, mean of {len(tuned)}", figure=statistics.mean(tuned), bar=bar, unit="%", more_is_better=True)


class Arena:
    """A job's dense network and data, and the network that was cut from it."""

    def __init__(self, arm: Arm) -> None:
        fields = {"search.calibration_images": CALIBRATION, "finalists.train": {"epochs": arm.epochs}}
        spec = load_spec(JOBS / f"{arm.job}.toml", {**fields, **arm.changes, "budget.flops": arm.flops})
        self.arm = arm
        self.prepared: Prepared = prepare(spec)
        self.workload: Workload = build_workload(
            self.prepared.spec, data=self.prepared.data, device="cpu", weights=self.prepared.weights
        )
        self.pruner = Pruner(self.workload, self.prepared.graph, self.prepared.spec)
        self.parent = Proposal(
            number=0, method="reconstruction", allocation="least_damage", target=Budget(flops=arm.flops), seed=0
        )

    @classmethod
    @cache
    def of(cls, arm: Arm) -> Arena:
        return cls(arm)

    def row(self, seed: int) -> Row:
        """Fine-tune the cut by a seed, and judge it on the test split."""
        repaired = self.pruner.prune(self.parent)
        child = Proposal(
            number=1,
            method=self.parent.method,
            allocation=self.parent.allocation,
            target=self.parent.target,
            seed=seed,
            stage=Stage.FINETUNE,
            cuts=self.prepared.spec.finalists.steps[0],
        )
        train, started = self.prepared.spec.finalists.train, time.perf_counter()
        tuned = self.pruner.finetune(child, self.parent, train.decided())
        assert repaired.trial.metrics is not None
        return Row(
            study=self.arm.study,
            arm=self.arm.name,
            seed=seed,
            flops=repaired.trial.metrics.flops_fraction,
            dense=self._tested(self.workload.model),
            repaired=self._tested(repaired.model),
            tuned=self._tested(tuned.model),
            recipe=train.recipe or "",
            features=str(train.features),
            seconds=time.perf_counter() - started,
        )

    def _tested(self, model: torch.nn.Module) -> float:
        assert self.workload.test is not None
        return 100 * evaluate(model, self.workload.test, task=self.workload.task, batch_size=512).accuracy


def table(kept: KeptRows[Row]) -> Iterator[str]:
    """Yield the lines of the Markdown file."""
    yield "# Fine-tuning after a cut, by recipe, teacher and number of cuts"
    yield ""
    yield (
        "Made by `jobs/benchmarks/recipes.py`, whose docstring has the terms. Test accuracy in %: mean of the seeds, "
        "and each one; *repaired* is the network before the fine-tuning. Seconds are those of a machine that did "
        "other work as well. An arm with fewer than three seeds is not measured to its end."
    )
    yield ""
    yield "| study | arm | FLOPs | dense | repaired | fine-tuned | each seed | recipe | maps | s | commit | date |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    for arm in ARMS:
        rows = [row for row in kept.rows.values() if (row.study, row.arm) == (arm.study, arm.name)]
        if not rows:
            continue
        rows.sort(key=lambda row: row.seed)
        first, origin = rows[0], kept.origins[rows[-1].key]
        cells = [
            *(arm.study, arm.name, f"{first.flops:.1%}", f"{first.dense:.2f}", f"{first.repaired:.2f}"),
            f"**{statistics.mean(row.tuned for row in rows):.2f}**",
            ", ".join(f"{row.tuned:.2f}" for row in rows),
            *(first.recipe, first.features, f"{statistics.mean(row.seconds for row in rows):.0f}"),
            *(origin.commit, origin.date),
        ]
        yield f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    os.environ.setdefault("RAPRUNE_DATA", str(Path(__file__).parents[3] / "shared" / "data"))
    main()
