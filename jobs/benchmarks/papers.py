"""The papers' experiments, their figures and ours: `uv run python jobs/benchmarks/papers.py RUN [RUN ...]`.

Reads the folders of runs (`raprune search jobs/...`) and writes the table to `papers.md` beside this file. Which
experiment a run is, its model, data and methods say; runs that differ in their seed only share a row. An experiment
without a run says so.

Of a method's networks that one stands in the table that is the most accurate on the validation split among those
within the paper's figure; where none is so small, among those within the run's own budget.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raprune.records import Stage, Trial
from raprune.results.front import budget_of, within
from raprune.results.progress import progress
from raprune.results.rows import CandidateRow, candidates
from raprune.results.test_split import SplitAccuracies, read_test
from raprune.store.folder import Store
from raprune.store.record import RunRecord

TABLE = Path(__file__).with_name("papers.md")

PAPERS = {
    "binary_search": "binary search (ICONIP 2017)",
    "auto_balanced": "auto-balanced (AAAI 2018)",
    "maxout": "maxout (GCPR 2017)",
    "local_bn": "local BN (ICANN 2019)",
    "reconstruction": "reconstruction, REAP (ISVC 2019)",
    "slimming": "for comparison: slimming (ICCV 2017)",
}
NETWORKS = {"lenet5": "LeNet-5", "cifar-vgg16-bn": "VGG-16-BN", "cifar-resnet56": "ResNet-56"}
DATA = {"mnist": "MNIST", "cifar10": "CIFAR-10"}
JOBS = {"lenet5": "lenet5_mnist", "cifar-vgg16-bn": "vgg16_cifar10", "cifar-resnet56": "resnet56_cifar10"}
NO_FIGURE = "none that we could read"


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One figure of a paper. `flops`, `params`, `nonzero`: what it leaves at most, as shares of the dense network."""

    method: str
    model: str
    data: str
    paper: str = NO_FIGURE
    flops: float | None = None
    params: float | None = None
    nonzero: float | None = None
    weights: bool = False
    """Whether weights are pruned one by one as well; else only channels go."""

    @property
    def job(self) -> str:
        return f"{JOBS[self.model]}_{self.method}.toml"

    def meets(self, row: CandidateRow) -> bool:
        """Whether the network is as small as the paper's."""
        limits = (
            (self.flops, row.flops_fraction),
            (self.params, row.params_fraction),
            (self.nonzero, row.nonzero_fraction),
        )
        return all(limit is None or fraction <= limit for limit, fraction in limits)


EXPERIMENTS = (
    Experiment(
        method="auto_balanced",
        model="lenet5",
        data="mnist",
        paper="95.1 % fewer FLOPs, no obvious drop",
        flops=1 - 0.951,
    ),
    Experiment(
        method="maxout",
        model="lenet5",
        data="mnist",
        paper="up to 74 % fewer parameters by neurons, performance unaffected",
        params=1 - 0.74,
    ),
    Experiment(
        method="maxout",
        model="lenet5",
        data="mnist",
        paper="up to 92 % fewer parameters with weight pruning, performance unaffected",
        nonzero=1 - 0.92,
        weights=True,
    ),
    Experiment(method="binary_search", model="lenet5", data="mnist"),
    Experiment(
        method="local_bn",
        model="cifar-vgg16-bn",
        data="cifar10",
        paper="8.64 x fewer parameters (88.4 %), 3.79 x fewer FLOPs (73.6 %), slight loss (a VGG on CIFAR)",
        flops=1 / 3.79,
        params=1 / 8.64,
    ),
    Experiment(
        method="slimming",
        model="cifar-vgg16-bn",
        data="cifar10",
        paper="VGG-19: 8.28 x fewer parameters, 1.89 x fewer FLOPs, 93.62 to 93.56 % (public reimplementation)",
        flops=1 / 1.89,
        params=1 / 8.28,
    ),
    Experiment(
        method="auto_balanced",
        model="cifar-vgg16-bn",
        data="cifar10",
        paper="79.7 % fewer FLOPs",
        flops=1 - 0.797,
    ),
    Experiment(
        method="maxout",
        model="cifar-vgg16-bn",
        data="cifar10",
        paper="another data set (faces, LFW): up to 61 % fewer parameters by neurons, performance unaffected",
        params=1 - 0.61,
    ),
    Experiment(
        method="maxout",
        model="cifar-vgg16-bn",
        data="cifar10",
        paper="another data set (faces, LFW): up to 80 % fewer parameters with weight pruning, performance unaffected",
        nonzero=1 - 0.80,
        weights=True,
    ),
    Experiment(method="binary_search", model="cifar-vgg16-bn", data="cifar10"),
    Experiment(
        method="auto_balanced",
        model="cifar-resnet56",
        data="cifar10",
        paper="60.9 % fewer FLOPs",
        flops=1 - 0.609,
    ),
    Experiment(method="local_bn", model="cifar-resnet56", data="cifar10"),
    Experiment(method="reconstruction", model="cifar-resnet56", data="cifar10"),
)


@dataclass(frozen=True)
class Run:
    """A run's folder, read once."""

    name: str
    record: RunRecord
    trials: list[Trial]
    test: SplitAccuracies

    @property
    def spec(self) -> dict[str, Any]:
        found: dict[str, Any] = self.record.spec
        return found

    @property
    def data(self) -> str:
        """`mnist`, `cifar10` or whatever else its data is called."""
        data = self.spec["data"]
        if data["name"] != "parquet":
            return str(data["name"])
        return Path(data["train"]).name.partition("-")[0]

    @property
    def key(self) -> str:
        """The same for runs that differ in their seed only."""
        own = ("seed", "output", "statistics", "resources")
        return json.dumps({name: value for name, value in self.spec.items() if name not in own}, sort_keys=True)


@dataclass(frozen=True)
class Found:
    """The network of a run that stands in the table."""

    run: Run
    row: CandidateRow
    as_small: bool
    """Whether it is within the paper's figure; True where there is none."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", metavar="RUN", help="folders of runs")
    kept = TABLE.read_text() if TABLE.exists() else ""
    written = table([read(uri) for uri in parser.parse_args().runs], kept)
    TABLE.write_text(written)
    print(written, end="")


def read(uri: str) -> Run:
    """The run at `uri`.

    Raises:
        StoreError: if it cannot be read.
    """
    store = Store(uri)
    trials = store.trials()
    return Run(store.name, store.record(), trials, read_test(store, trials))


def table(runs: Sequence[Run], kept: str = "") -> str:
    """The whole page, as Markdown. `kept`: the page before, whose lines stay where no run takes their place."""
    lines = [_line(cells) for experiment in EXPERIMENTS for cells in rows(experiment, runs, kept)]
    return "\n".join([HEAD, *lines]) + "\n"


def rows(experiment: Experiment, runs: Sequence[Run], kept: str = "") -> list[list[str]]:
    """The lines of an experiment: one for each way in which it was run."""
    by_spec: dict[str, list[Found]] = {}
    for run in runs:
        found = choose(experiment, run)
        if found is not None:
            by_spec.setdefault(run.key, []).append(found)
    if by_spec:
        return [line(experiment, same) for same in by_spec.values()]
    # The data set may be another copy of the same images, hence its short name.
    title, method = _title(experiment, None)
    own = re.compile(rf"{re.escape(title.removesuffix(' (JPEG)'))}(?: \(JPEG\))?")
    before = [_cells(text) for text in kept.splitlines() if text.startswith("| ")]
    same_figure = [c for c in before if own.fullmatch(c[0]) and c[1:3] == [method, experiment.paper]]
    return same_figure or [nothing(experiment)]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cells(text: str) -> list[str]:
    return [cell.strip() for cell in text.strip("|").split("|")]


def choose(experiment: Experiment, run: Run) -> Found | None:
    """The run's network for the experiment; None if it is another experiment's run, or has no network of it yet."""
    if (run.spec["model"]["name"], run.data) != (experiment.model, experiment.data):
        return None
    if experiment.method not in run.spec["methods"]:
        return None
    own = candidates([t for t in run.trials if t.proposal.method == experiment.method], test=run.test)
    of_stage = [row for row in own if row.weights_pruned == experiment.weights]
    small = [row for row in of_stage if experiment.meets(row)]
    admitted = small or within(of_stage, budget_of(run.record))
    if not admitted:
        return None
    best = max(admitted, key=lambda row: (row.val_accuracy, -row.flops, -row.nonzero_fraction))
    return Found(run, best, bool(small))


def line(experiment: Experiment, same: Sequence[Found]) -> list[str]:
    """One line: the mean over runs of different seeds."""
    first = same[0]
    accuracy = "test" if all(found.row.test_accuracy is not None for found in same) else "validation"
    dense = [_dense(found, accuracy) for found in same]
    tested = [found.row.test_accuracy for found in same if found.row.test_accuracy is not None]
    pruned = tested if accuracy == "test" else [found.row.val_accuracy for found in same]
    smaller = [f"{_percent(1 - _mean(f.row.fraction(cost) or 0.0 for f in same))} fewer {name}" for cost, name in COSTS]
    if experiment.weights:
        nonzero = _percent(1 - _mean(found.row.nonzero_fraction for found in same))
        smaller.append(f"{nonzero} fewer with weight pruning ({first.row.params - first.row.zeros:,} nonzero)")
    if not all(found.as_small for found in same):
        smaller.append("**the paper's size was not reached**")
    images = first.run.test.images if accuracy == "test" else first.run.record.val_images
    return [
        *_title(experiment, first.run),
        experiment.paper,
        ", ".join(smaller),
        f"{100 * _mean(dense):.2f} to {100 * _mean(pruned):.2f}{'' if accuracy == 'test' else ' (validation)'}",
        _drop(dense, pruned, images),
        _setting(first),
        _epochs(first),
        ", ".join(str(seed) for seed in sorted(found.run.spec["seed"] for found in same)),
        f"{_mean(_seconds(found) for found in same):,.0f}",
        f"{_mean(progress(found.run.record, found.run.trials).elapsed_s for found in same):,.0f}",
        first.run.record.machine or "not recorded",
    ]


def nothing(experiment: Experiment) -> list[str]:
    """The line of an experiment that was not run."""
    return [*_title(experiment, None), experiment.paper, f"not run: `jobs/{experiment.job}`", *["-"] * 8]


def _title(experiment: Experiment, run: Run | None) -> list[str]:
    copies = (
        " (JPEG)" if experiment.data == "cifar10" and (run is None or run.spec["data"]["name"] == "parquet") else ""
    )
    return [f"{NETWORKS[experiment.model]} / {DATA[experiment.data]}{copies}", PAPERS[experiment.method]]


def _dense(found: Found, accuracy: str) -> float:
    dense = found.run.test.dense if accuracy == "test" else found.run.record.dense_accuracy
    assert dense is not None, "a finished run has measured its dense network"
    return float(dense)


def _drop(dense: Sequence[float], pruned: Sequence[float], images: int | None) -> str:
    drops = [100 * (after - before) for before, after in zip(dense, pruned, strict=True)]
    if len(drops) > 1:
        error = statistics.stdev(drops) / len(drops) ** 0.5
    elif images:
        error = 100 * (pruned[0] * (1 - pruned[0]) / images) ** 0.5
    else:
        return f"{drops[0]:+.2f}"
    return f"{_mean(drops):+.2f} ± {error:.2f}"


def _setting(found: Found) -> str:
    row, spec = found.row, found.run.spec
    settings = row.settings | spec.get("settings", {}).get(row.method, {})
    parts = [", ".join(f"{name} {_value(value)}" for name, value in settings.items()) or "defaults"]
    parts.append(f"widths by `{row.allocation}`")
    if row.stage == Stage.FINETUNE.value:
        train = spec["finalists"]["train"]
        distilled = ", distilled" if train["distillation"] else ""
        parts.append(f"fine-tuned for {train['epochs']:g} epochs at {train['lr']:g}{distilled}")
    else:
        parts.append("not fine-tuned")
    if spec["data"].get("max_images"):
        parts.append(f"**on {spec['data']['max_images']:,} images of each split**")
    return "; ".join(parts)


def _epochs(found: Found) -> str:
    dense = "given" if found.run.spec["model"].get("weights") else f"{found.run.spec['dense']['epochs']:g}"
    return f"dense {dense}, then {found.row.epochs:g}"


def _seconds(found: Found) -> float:
    """Of making the network: its trial, the one that it continues, and those on the way there."""
    known = {trial.trial_id: trial for trial in found.run.trials}
    trial = known[found.row.trial_id]
    start = known.get(trial.proposal.parent or "", trial)
    until = float("inf") if start.proposal.step is None else start.proposal.step
    on_the_way = [
        t
        for t in found.run.trials
        if (t.proposal.stage, t.proposal.number) == (start.proposal.stage, start.proposal.number)
        and t.proposal.step is not None
        and t.proposal.step < until
    ]
    return sum(t.seconds for t in {t.trial_id: t for t in (trial, start, *on_the_way)}.values())


def _mean(values: Iterable[float]) -> float:
    return statistics.fmean(values)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


COSTS = (("flops", "FLOPs"), ("params", "parameters"))

HEAD = """# The papers' experiments

Made by `uv run python jobs/benchmarks/papers.py RUN ...` from the folders of runs; do not edit. Each line is a job of
`jobs/`, `jobs/<network>_<data>_<method>.toml`. Of the papers only what could be read stands here: of all five that is
the abstract. A network stands for its method that is the most accurate on the validation split among those within the
paper's figure, and the test split was looked at once, for the drop. ± is the standard error: of the share of the test
images for one seed, of the mean over seeds for several. FLOPs count a multiply-add as 2. *Epochs* counts all training
since the dense network, what the method trains by itself among them; *s* is what making this one network took, *run s*
the whole search. CIFAR-10 (JPEG) are JPEG-compressed copies, on which all networks are some points worse than on the
original: figures compare with each other, not with those elsewhere.

| experiment | method | the paper | ours | accuracy, % | drop, points | setting | epochs | seeds | s | run s | machine |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"""


if __name__ == "__main__":
    main()
