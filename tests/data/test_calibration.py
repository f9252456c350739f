"""Calibration images without labels: read from files and objects, looked at by methods, known to the fingerprint."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch.utils.data import DataLoader, TensorDataset

import raprune
from raprune.channels.trace import trace
from raprune.checks.job import check
from raprune.data import load_data
from raprune.data.calibration import NO_LABEL, unlabelled
from raprune.data.given import give_data
from raprune.errors import DataError, UsageError
from raprune.methods import METHODS
from raprune.pruning.answers import AGREEMENT
from raprune.pruning.preparation import prepare
from raprune.pruning.prune import Pruner
from raprune.pruning.workload import build_workload
from raprune.records import Proposal
from raprune.spec.budget import Budget
from raprune.spec.job import DataSpec
from raprune.spec.toml import load_spec
from raprune.training.tasks import TASKS
from tests.orchestration.in_process import in_process
from tests.orchestration.notebook.objects import SMALL, Stripes, arrays, flipped, trained_net
from tests.task_networks import Masks, Numbers, job

COUNT = 40
IMAGES = np.random.default_rng(3).integers(0, 256, (COUNT, 1, 8, 8)).astype(np.uint8)


def encoded(image: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image[0]).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Image files, some of them in a folder of the folder."""
    (tmp_path / "photos" / "more").mkdir(parents=True)
    for number, image in enumerate(IMAGES):
        (tmp_path / "photos" / ("more" if number % 2 else ".") / f"{number:02}.png").write_bytes(encoded(image))
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    return tmp_path / "photos"


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    pq.write_table(pa.table({"image": [encoded(image) for image in IMAGES]}), tmp_path / "photos.parquet")
    return tmp_path / "photos.parquet"


def digits(**fields: Any) -> Any:
    return load_data(DataSpec.model_validate({"name": "digits", "max_images": 100, **fields}), seed=0)


@pytest.mark.parametrize("kind", ["folder", "parquet"])
def test_images_of_files_are_read_without_labels(kind: str, request: pytest.FixtureRequest) -> None:
    data = digits(calibration=str(request.getfixturevalue(kind)))
    assert data.calibration is not None and len(data.calibration) == COUNT
    assert sorted(map(bytes, data.calibration.images)) == sorted(map(bytes, IMAGES))
    assert (data.calibration.labels == NO_LABEL).all()
    plain = digits()
    assert np.array_equal(plain.train.images, data.train.images), "the training split is the same"
    assert plain.fingerprint != data.fingerprint == digits(calibration=str(request.getfixturevalue(kind))).fingerprint


def test_number_of_images_is_limited_and_drawn_by_seed(folder: Path) -> None:
    few = digits(calibration=str(folder), resident_images=10)
    assert few.calibration is not None and len(few.calibration) == 10
    assert len(set(map(bytes, few.calibration.images)) & set(map(bytes, IMAGES))) == 10


def test_images_of_another_size_are_refused_or_resized(folder: Path) -> None:
    Image.fromarray(np.zeros((12, 9), np.uint8)).save(folder / "00.png")
    with pytest.raises(DataError, match="calibration images are 12x9, training images 8x8") as caught:
        digits(calibration=str(folder))
    assert "data.image_size" in (caught.value.hint or "")
    assert digits(calibration=str(folder), image_size=8).calibration.images.shape == (COUNT, 1, 8, 8)


def test_paths_without_images_are_refused(tmp_path: Path, parquet: Path) -> None:
    with pytest.raises(UsageError, match=r"data.calibration .*nowhere: no such file"):
        digits(calibration=str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="no column 'picture'"):
        digits(calibration=str(parquet), image_column="picture")


def test_methods_look_at_them_and_at_no_label(parquet: Path) -> None:
    fields = {"data.name": "digits", "data.max_images": 200, "data.calibration": str(parquet)}
    prepared = prepare(load_spec(None, fields | {"model.name": "digits-net"}))
    assert prepared.spec.search.calibration == COUNT
    assert "taylor" not in prepared.spec.methods and "reconstruction" in prepared.spec.methods
    workload = build_workload(prepared.spec, data=prepared.data, device="cpu")
    split = workload.calibration(COUNT, torch.Generator())
    assert sorted(map(bytes, split.images.numpy())) == sorted(map(bytes, IMAGES))
    assert len(workload.calibration(7, torch.Generator())) == 7
    assert workload.sample(10**6, torch.Generator()).images.shape[0] == len(prepared.data.train)


def test_method_that_looks_at_labels_is_refused_with_those_that_do_not(parquet: Path) -> None:
    fields: dict[str, Any] = {"model.name": "digits-net", "data.name": "digits", "data.max_images": 100}
    fields["data.calibration"] = str(parquet)
    with pytest.raises(UsageError, match="method taylor: it needs labels, and the calibration images have none") as no:
        prepare(load_spec(None, fields | {"methods": ["taylor", "l2"]}))
    assert all(name in (no.value.hint or "") for name in METHODS if name != "taylor")
    # A method that trains has the labels of the training images.
    assert prepare(load_spec(None, fields | {"methods": ["slimming"]})).data.calibration is not None


def images_alone(kind: str) -> Any:
    images = arrays(200, seed=0)[0]
    floats = torch.from_numpy(images).float() / 255
    return {
        "array": images,
        "floats": floats,
        "items": TensorDataset(floats),
        "loader": DataLoader(TensorDataset(floats), batch_size=8),
        "list": list(floats),
    }[kind]


@pytest.mark.parametrize("kind", ["array", "floats", "items", "loader", "list"])
def test_network_is_pruned_on_images_without_labels(kind: str) -> None:
    job = SMALL | {"data": {"mean": [0.0], "std": [1.0]}} if kind == "array" else SMALL
    pruned = raprune.prune(trained_net(), images_alone(kind), method="reconstruction", budget={"flops": 0.5}, job=job)
    assert pruned.dense_accuracy == 1.0 and pruned.accuracy > 0.9
    assert f"validation {AGREEMENT}" in repr(pruned)


@pytest.mark.parametrize("task", ["multi_label", "regression", "segmentation"])
@pytest.mark.parametrize("kind", ["array", "items"])
def test_network_of_another_task_is_pruned_on_images_without_targets(task: str, kind: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = (Masks if task == "segmentation" else Numbers)(4).eval()
    images = torch.rand(60, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    given: Any = images if kind == "array" else TensorDataset(images)
    pruned = raprune.prune(network, given, method="reconstruction", budget={"flops": 0.7}, job=SMALL | {"task": task})
    assert pruned.dense_accuracy == pytest.approx(1.0, abs=1e-5) and pruned.accuracy <= 1.0
    data = pruned.single.pruner.workload.data
    assert data.num_classes == 4 and data.unlabelled == {"train", "validation"}
    with torch.inference_mode():
        outputs = network(torch.from_numpy(data.train.images))
    wanted = {
        "multi_label": lambda: (outputs > 0).float(),
        "regression": lambda: outputs,
        "segmentation": lambda: outputs["out"].argmax(1),
    }[task]()
    assert np.allclose(data.train.labels, wanted.numpy(), atol=1e-5)
    with pytest.raises(UsageError, match="method taylor: it needs labels"):
        raprune.prune(network, given, method="taylor", budget={"flops": 0.7}, job=SMALL | {"task": task})


@pytest.mark.parametrize("task", TASKS)
def test_methods_without_labels_look_at_unlabelled_images_on_every_task(task: str) -> None:
    asked = job(task)
    data = load_data(asked.data, seed=0, form=TASKS[task]().targets)
    data = replace(data, calibration=unlabelled(data.train.images[:16]))
    workload = build_workload(asked, data=data, device="cpu")
    pruner = Pruner(workload, trace(workload.model, workload.example_input()), asked)
    for method in ("reconstruction", "activation", "apoz", "thinet", "lasso"):
        target = Budget(flops=0.7)
        asked_for = Proposal(number=0, method=method, settings={}, allocation="uniform", target=target, seed=0)
        trial = pruner.prune(asked_for).trial
        assert trial.metrics is not None and trial.metrics.flops_fraction <= 0.7


def test_accuracy_is_measured_where_validation_has_labels() -> None:
    wrong = arrays(60, seed=1)[0], 1 - arrays(60, seed=1)[1]
    job = SMALL | {"data": {"mean": [0.0], "std": [1.0]}}
    pruned = raprune.prune(trained_net(), images_alone("array"), validation=wrong, budget={"flops": 0.9}, job=job)
    assert pruned.dense_accuracy < 0.1 and "validation accuracy" in repr(pruned)


def test_smaller_network_learns_from_the_dense_one_alone() -> None:
    pruned = raprune.prune(
        trained_net(), images_alone("floats"), budget={"flops": 0.5}, finetune=True, epochs=1.0, job=SMALL
    )
    assert pruned.trial.epochs == 1.0 and pruned.accuracy > 0.9


@pytest.mark.parametrize("method", [name for name, kind in METHODS.items() if kind.needs_labels()])
def test_method_that_needs_labels_is_refused_without(method: str) -> None:
    with pytest.raises(UsageError, match=f"method {method}: it needs labels, and train has no labels") as caught:
        raprune.prune(trained_net(), images_alone("floats"), method=method, budget={"flops": 0.5}, job=SMALL)
    hint = caught.value.hint or ""
    assert "reconstruction" in hint and method not in hint


def test_images_without_labels_judge_no_search(tmp_path: Path) -> None:
    floats = images_alone("floats")
    with pytest.raises(UsageError, match="a search chooses by the metric on validation images, which needs") as caught:
        raprune.search(trained_net(), floats, output=tmp_path / "run")
    assert "raprune.prune(model, images" in (caught.value.hint or "") and not (tmp_path / "run").exists()
    with pytest.raises(UsageError, match="test: images without labels"):
        raprune.search(trained_net(), arrays(40, seed=0), floats, output=tmp_path / "run")


def test_search_on_images_without_labels_is_judged_by_labelled_ones(tmp_path: Path) -> None:
    shown = io.StringIO()
    with in_process():
        run = raprune.search(
            trained_net(),
            images_alone("floats"),
            Stripes(60, seed=1),
            validation=Stripes(80, seed=2),
            budget={"flops": 0.5},
            trials=4,
            finalists=1,
            epochs=0.5,
            workers=1,
            output=tmp_path / "run",
            job=SMALL,
            console=Console(file=shown, width=300),
        )
    assert "Training images have no labels" in shown.getvalue() and "taylor" not in run.candidates[0].method
    assert {row.method for row in run.candidates} <= {"reconstruction", "activation", "fpgm", "l2", "l1", "random"}
    assert run.best.val_accuracy > 0.9 and any(row.epochs == 0.5 for row in run.candidates)


def test_check_and_search_say_that_methods_look_at_images_without_labels(parquet: Path, tmp_path: Path) -> None:
    fields = {"model.name": "digits-net", "data.name": "digits", "data.max_images": 100, "output": str(tmp_path / "r")}
    shown = io.StringIO()
    check(load_spec(None, fields | {"data.calibration": str(parquet)}), console=Console(file=shown, width=200))
    assert f"10 classes; methods look at {COUNT} without labels" in shown.getvalue()


def test_images_without_labels_need_a_trained_network_of_known_outputs() -> None:
    with pytest.raises(UsageError, match="the network is to be trained first"):
        raprune.prune(trained_net(), images_alone("floats"), trained=False, budget={"flops": 0.5}, job=SMALL)
    with pytest.raises(UsageError, match="it is not known what the network's outputs say"):
        raprune.prune("cifar-resnet20", images_alone("floats"), budget={"flops": 0.5}, job=SMALL)


def test_random_items_without_labels_are_drawn_once() -> None:
    class Alone(Stripes):
        def __getitem__(self, index: int) -> Any:
            return super().__getitem__(index)[0]

    given = give_data(Alone(40, seed=0, transform=flipped), num_classes=None)
    assert given.unlabelled == {"train", "validation"}
    pruned = raprune.prune(trained_net(), Alone(40, seed=0, transform=flipped), budget={"flops": 0.9}, job=SMALL)
    assert pruned.single.pruner.workload.data.drawn is None and pruned.dense_accuracy == 1.0


def test_objects_for_calibration_are_looked_at_beside_labelled_data() -> None:
    job = SMALL | {"data": {"mean": [0.0], "std": [1.0]}}
    other = arrays(50, seed=7)[0]
    pruned = raprune.prune(
        trained_net(), arrays(200, seed=0), calibration=other, method="reconstruction", budget={"flops": 0.5}, job=job
    )
    data = pruned.single.pruner.workload.data
    assert data.calibration is not None and np.array_equal(data.calibration.images, other) and not data.unlabelled
    assert pruned.accuracy > 0.9 and "validation accuracy" in repr(pruned)
    with pytest.raises(DataError, match="images are float32, those of the training split uint8"):
        raprune.prune(trained_net(), arrays(80, seed=0), calibration=images_alone("floats"), job=SMALL)
