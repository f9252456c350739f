"""The table of the papers' experiments, made of runs that are made up."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from raprune.records import Setting, Stage, Trial
from raprune.store.folder import Store
from raprune.store.record import RunRecord
from tests.factories import FRONT_RUN, front_trial

BENCHMARKS = Path(__file__).parent.parent / "jobs" / "benchmarks"


def _loaded() -> Any:
    described = importlib.util.spec_from_file_location("papers", BENCHMARKS / "papers.py")
    assert described is not None and described.loader is not None
    module = importlib.util.module_from_spec(described)
    # Dataclasses look their module up.
    sys.modules["papers"] = module
    described.loader.exec_module(module)
    return module


papers = _loaded()


def make_run(
    folder: Path,
    trials: list[Trial],
    *,
    model: str = "lenet5",
    data: str = "mnist",
    methods: tuple[str, ...] = ("auto_balanced",),
    seed: int = 0,
    test: dict[str, Any] | None = None,
) -> Any:
    store = Store(folder)
    spec = {
        "model": {"name": model, "weights": None},
        "data": {"name": "parquet", "train": f"/somewhere/{data}-train.parquet", "max_images": None},
        "budget_flops": 0.2,
        "budget_params": None,
        "methods": methods,
        "settings": {"auto_balanced": {"alpha": 0.01}},
        "search": {"trials": len(trials)},
        "dense": {"epochs": 4.0},
        "finalists": {"count": 1, "train": {"epochs": 10.0, "lr": 0.02, "distillation": 0.9}},
        "seed": seed,
        "output": str(folder),
    }
    run = {
        "spec": spec,
        "state": "finished",
        "started_at": 1000.0,
        "finished_at": 1600.0,
        "machine": "2 x Somebody's processor",
        "dense": FRONT_RUN["dense"] | {"val_accuracy": 0.99, "val_images": 6000},
    }
    store.create(RunRecord.model_validate(run))
    store.append(trials)
    if test is not None:
        store.write_json("report/test.json", test)
    return papers.read(store.uri)


def trial(
    number: int,
    accuracy: float,
    *,
    flops: float = 0.04,
    method: str = "auto_balanced",
    step: int | None = None,
    settings: Mapping[str, Setting] | None = None,
    **changes: Any,
) -> Trial:
    """A trial of `front_trial` whose candidate is told by its step as well."""
    own = {**(settings or {}), "step": step or -1}
    return front_trial(number, accuracy, flops, method=method, step=step, settings=own, epochs=6.0, **changes)


def line_of(text: str, network: str, method: str, *, count: int = 1) -> list[str]:
    """The cells of the experiment's only line (or of the first of `count`)."""
    lines = [line for line in text.splitlines() if line.startswith(f"| {network} | {method}")]
    assert len(lines) == count
    cells = [cell.strip() for cell in lines[0].strip("|").split("|")]
    assert len(cells) == 12, "one for each column"
    return cells


def on_test(*trials: Trial, accuracy: float) -> dict[str, Any]:
    found = {t.candidate.id: accuracy for t in trials if t.candidate is not None}
    return {"dense": 0.9925, "candidates": found, "images": 10_000}


def test_without_runs_every_experiment_says_so_and_names_its_job() -> None:
    text = papers.table([])
    assert text.count("not run: `jobs/") == len(papers.EXPERIMENTS)
    assert line_of(text, "LeNet-5 / MNIST", "auto-balanced")[2] == "95.1 % fewer FLOPs, no obvious drop"
    widths = {line.count("|") for line in text.splitlines() if line.startswith("|")}
    assert len(widths) == 1


def test_the_line_of_a_run(tmp_path: Path) -> None:
    best, big = trial(0, 0.988), trial(1, 0.999, flops=0.15)
    run = make_run(tmp_path, [best, big, trial(2, 0.98)], test=on_test(best, big, accuracy=0.9912))
    cells = line_of(papers.table([run]), "LeNet-5 / MNIST", "auto-balanced")
    assert cells[3:6] == ["96.0 % fewer FLOPs, 80.0 % fewer parameters", "99.25 to 99.12", "-0.13 ± 0.09"]
    assert cells[6].startswith("step -1, alpha 0.01; widths by `uniform`; not fine-tuned")
    assert cells[7:] == ["dense 4, then 6", "0", "2", "600", "2 x Somebody's processor"]


def test_a_network_larger_than_the_papers_says_so_and_an_untested_one_too(tmp_path: Path) -> None:
    run = make_run(tmp_path, [trial(0, 0.988, flops=0.10), trial(1, 0.989, flops=0.3)])
    cells = line_of(papers.table([run]), "LeNet-5 / MNIST", "auto-balanced")
    assert cells[3] == "90.0 % fewer FLOPs, 80.0 % fewer parameters, **the paper's size was not reached**"
    assert cells[4:6] == ["99.00 to 98.80 (validation)", "-0.20 ± 0.14"]


def test_a_fine_tuned_network_counts_the_seconds_of_its_whole_path(tmp_path: Path) -> None:
    way = [trial(0, 0.97, step=0, seconds=100.0), trial(0, 0.96, step=1, seconds=10.0), trial(0, 0.95, seconds=1.0)]
    tuned = trial(0, 0.99, stage=Stage.FINETUNE, parent="search-00000.1", settings={"tuned": True}, seconds=0.5)
    run = make_run(tmp_path, [*way, tuned])
    cells = line_of(papers.table([run]), "LeNet-5 / MNIST", "auto-balanced")
    assert "fine-tuned for 10 epochs at 0.02, distilled" in cells[6]
    assert cells[9] == "110", "steps 0 and 1, and the fine-tuning, but not what came after"


def test_maxout_has_a_line_for_channels_and_one_for_weights(tmp_path: Path) -> None:
    neurons = trial(0, 0.99, flops=0.1, params=0.25, method="maxout", step=1)
    weights = trial(0, 0.98, flops=0.1, params=0.25, zeros=18, method="maxout")
    run = make_run(tmp_path, [neurons, weights], methods=("maxout",), test=on_test(neurons, weights, accuracy=0.991))
    lines = [line for line in papers.table([run]).splitlines() if line.startswith("| LeNet-5 / MNIST | maxout")]
    assert "75.0 % fewer parameters |" in lines[0] and "weight pruning (" not in lines[0]
    assert "93.0 % fewer with weight pruning (7 nonzero)" in lines[1]


def test_seeds_share_a_line_with_their_mean_and_its_standard_error(tmp_path: Path) -> None:
    runs = []
    for seed, accuracy in enumerate((0.990, 0.991, 0.992)):
        best = trial(0, 0.98)
        runs.append(make_run(tmp_path / str(seed), [best], seed=seed, test=on_test(best, accuracy=accuracy)))
    cells = line_of(papers.table(runs), "LeNet-5 / MNIST", "auto-balanced")
    assert cells[4:6] == ["99.25 to 99.10", "-0.15 ± 0.06"]
    assert cells[8] == "0, 1, 2"


def test_another_setting_is_another_line(tmp_path: Path) -> None:
    one = make_run(tmp_path / "a", [trial(0, 0.98)])
    two = make_run(tmp_path / "b", [trial(0, 0.98)], methods=("auto_balanced", "l1"))
    line_of(papers.table([one, two]), "LeNet-5 / MNIST", "auto-balanced", count=2)


def test_runs_of_other_models_data_and_methods_are_told_apart(tmp_path: Path) -> None:
    vgg = make_run(tmp_path / "vgg", [trial(0, 0.9)], model="cifar-vgg16-bn", data="cifar10")
    other = make_run(tmp_path / "other", [trial(0, 0.9)], data="fashion")
    control = make_run(tmp_path / "control", [trial(0, 0.9, method="l1")])
    text = papers.table([vgg, other, control])
    assert text.count("not run: `jobs/") == len(papers.EXPERIMENTS) - 1
    assert "96.0 % fewer FLOPs" in line_of(text, "VGG-16-BN / CIFAR-10 (JPEG)", "auto-balanced")[3]


def test_lines_of_runs_that_are_not_at_hand_stay(tmp_path: Path) -> None:
    earlier = papers.table(
        [
            make_run(tmp_path / "a", [trial(0, 0.98)]),
            make_run(tmp_path / "b", [trial(0, 0.9)], model="cifar-vgg16-bn", data="cifar10"),
        ]
    )
    assert papers.table([], earlier) == earlier
    again = papers.table([make_run(tmp_path / "c", [trial(0, 0.98, flops=0.03)])], earlier)
    assert "97.0 % fewer FLOPs" in line_of(again, "LeNet-5 / MNIST", "auto-balanced")[3]
    vgg = ("VGG-16-BN / CIFAR-10 (JPEG)", "auto-balanced")
    assert line_of(again, *vgg) == line_of(earlier, *vgg) != line_of(papers.table([]), *vgg)


@pytest.mark.parametrize("job", sorted({experiment.job for experiment in papers.EXPERIMENTS}))
def test_every_experiment_is_a_job(job: str) -> None:
    assert (BENCHMARKS.parent / job).is_file()


def test_the_kept_table_is_of_this_form() -> None:
    kept = (BENCHMARKS / "papers.md").read_text()
    assert kept.startswith(papers.HEAD)
    experiments = [line for line in kept.splitlines() if re.match(r"\| (LeNet|VGG|ResNet)", line)]
    assert len(experiments) >= len(papers.EXPERIMENTS)
