"""Float images: taken as they are from every place that takes arrays, and refused where no work can be done on them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

import raprune
from raprune.checks.job import check
from raprune.data import load_data
from raprune.data.batches import DeviceSplit
from raprune.errors import DataError, UsageError
from raprune.spec.fields import FLOATS
from raprune.spec.job import DataSpec
from raprune.spec.toml import load_spec
from tests.orchestration.notebook.objects import SMALL, Stripes, arrays, flipped, trained_net

MODULE = """
import numpy as np
from tests.orchestration.notebook.objects import arrays, trained_net

def floats(kind="float32", wrong="nothing", channels_last=False):
    images, labels = arrays(60, seed=0)
    held = images.astype(kind) / 100 - 1
    if wrong == "nan":
        held[7, 0, 3, 3] = np.nan
    found = {"train": (held.transpose(0, 2, 3, 1) if channels_last else held, labels)}
    if wrong == "mixed":
        found["validation"] = (images, labels)
    if wrong == "channels":
        found["test"] = (held.repeat(3, axis=1), labels)
    return found

def whole():
    images, labels = arrays(60, seed=0)
    return {"train": (images.astype(np.int64), labels)}

def network():
    return trained_net()
"""


@pytest.fixture(autouse=True)
def _module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "float_images.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))


def loaded(function: str = "floats", *, image_size: int | None = None, **arguments: Any) -> Any:
    return load_data(DataSpec(name=f"float_images:{function}", arguments=arguments, image_size=image_size), seed=0)


@pytest.mark.parametrize("arguments", [{}, {"kind": "float64"}, {"channels_last": True}])
def test_floats_of_a_function_reach_the_network_as_they_are(arguments: dict[str, Any]) -> None:
    data = loaded(**arguments)
    assert data.origin == FLOATS and data.has_floats and data.train.images.dtype == np.float32
    x, _ = next(DeviceSplit.place(data.train, data.mean, data.std, "cpu").batches(len(data.train)))
    assert np.array_equal(x.numpy(), data.train.images)
    wanted = arrays(60, seed=0)[0].astype(arguments.get("kind", "float32")) / 100 - 1
    assert np.isin(x.numpy(), wanted.astype(np.float32)).all()


def test_floats_are_resized_without_a_loss_of_values() -> None:
    data = loaded(image_size=24)
    assert data.image_shape == (1, 24, 24) and data.train.images.dtype == np.float32
    plain = loaded().train.images
    assert data.train.images.min() >= plain.min() and data.train.images.max() <= plain.max()
    assert abs(float(data.train.images.mean() - plain.mean())) < 0.02


@pytest.mark.parametrize(
    ("function", "arguments", "words"),
    [
        ("floats", {"wrong": "nan"}, "values that are no finite numbers"),
        ("floats", {"wrong": "mixed"}, "images are uint8, those of the training split float32"),
        ("floats", {"wrong": "channels"}, "images have 3 channels and not 1|images are"),
        ("whole", {}, "images are int64"),
    ],
)
def test_images_that_are_neither_are_refused(function: str, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        loaded(function, **arguments)


def test_check_passes_on_floats_and_says_that_they_are_taken_as_they_are(tmp_path: Path) -> None:
    fields = {
        "model.name": "float_images:network",
        "data.name": "float_images:floats",
        "output": str(tmp_path / "run"),
        "dense.epochs": 0.1,
    }
    shown = io.StringIO()
    check(load_spec(None, fields), console=Console(file=shown, width=200))
    assert f"none ({FLOATS})" in shown.getvalue() and "0 classes" not in shown.getvalue()


@pytest.mark.parametrize("kind", ["float64", "float16", "bfloat16"])
def test_arrays_and_tensors_of_any_float_are_pruned(kind: str) -> None:
    images, labels = arrays(160, seed=0)
    held: Any = torch.from_numpy(images).to(getattr(torch, kind)) / 255
    given = (held.requires_grad_() if kind == "bfloat16" else held.numpy(), labels)
    pruned = raprune.prune(trained_net(), given, method="reconstruction", budget={"flops": 0.5}, job=SMALL)
    assert pruned.dense_accuracy > 0.9 and pruned.accuracy > 0.9


@pytest.mark.parametrize("fields", [{"erase": 0.5}, {"mixup": 0.2, "cutmix": 1.0}, {"crop_scale": 0.5}])
def test_floats_are_trained_on_with_changes_that_take_them(fields: dict[str, float]) -> None:
    images, labels = arrays(160, seed=0)
    job = SMALL | {"data": {"augment": "crop-flip"}, "finalists": {"train": fields | {"batch_size": 32}}}
    given = images.astype(np.float32) / 255, labels
    pruned = raprune.prune(trained_net(), given, budget={"flops": 0.5}, finetune=True, epochs=0.5, job=job)
    assert 0 <= pruned.accuracy <= 1


def test_policy_of_the_job_is_refused_for_floats_and_that_of_a_recipe_is_left_out() -> None:
    images, labels = arrays(160, seed=0)
    given = images.astype(np.float32) / 255, labels

    def pruned(train: Any, **fields: Any) -> Any:
        job = SMALL | {"finalists": {"train": fields | {"batch_size": 32}}}
        return raprune.prune(trained_net(), train, budget={"flops": 0.5}, job=job)

    with pytest.raises(UsageError, match=r"finalists.train.policy 'rand': the images are floats") as caught:
        pruned(given, policy="rand")
    assert "put the policy into the transforms" in (caught.value.hint or "")
    # Items with random transforms are left as they are.
    assert pruned(Stripes(160, seed=0, transform=flipped), policy="rand").single.spec.finalists.train.policy == "rand"
    assert pruned(given, recipe="transformer").single.spec.finalists.train.policy is None
    assert pruned((images, labels), recipe="transformer").single.spec.finalists.train.policy == "rand"
