"""A teacher by name: its weights, its normalisation, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from raprune.errors import ModelError, UsageError
from raprune.models import build_model
from raprune.models.teacher import Teacher, load_teacher
from raprune.pruning.preparation import prepare
from raprune.spec.job import ModelSpec, SearchSpec, TeacherSpec
from raprune.spec.toml import load_spec

SHAPE = (1, 8, 8)
ARGUMENTS: dict[str, Any] = {"width": 4}


@pytest.fixture
def weights(tmp_path: Path) -> str:
    """File of the weights of a digits-net."""
    torch.manual_seed(0)
    model = build_model(ModelSpec(name="digits-net", arguments=ARGUMENTS), num_classes=10, image_shape=SHAPE)
    save_file(model.state_dict(), tmp_path / "teacher.safetensors")
    return str(tmp_path / "teacher.safetensors")


def loaded(weights: str, *, classes: int = 10, **fields: Any) -> Teacher:
    spec = TeacherSpec(**{"name": "digits-net", "weights": weights, "arguments": ARGUMENTS, **fields})
    return load_teacher(spec, num_classes=classes, image_shape=SHAPE, mean=(0.25,), std=(0.5,))


def images() -> Tensor:
    return torch.rand(3, *SHAPE, generator=torch.Generator().manual_seed(2))


def test_teacher_has_the_weights_of_its_file_and_evaluates(weights: str) -> None:
    teacher = loaded(weights)
    x = images()
    assert not teacher.training
    assert torch.equal(teacher(x), teacher.network(x))
    arrays = {name: value.numpy() for name, value in teacher.network.state_dict().items()}
    spec = TeacherSpec(name="digits-net", weights="nowhere.safetensors", arguments=ARGUMENTS)
    again = load_teacher(spec, num_classes=10, image_shape=SHAPE, mean=(0.25,), std=(0.5,), weights=arrays)
    assert torch.equal(again(x), teacher(x))


def test_teacher_with_another_normalisation_sees_images_as_it_needs_them(weights: str) -> None:
    teacher, pixels = loaded(weights, mean=(0.1,), std=(0.2,)), images()
    as_data, as_teacher = (pixels - 0.25) / 0.5, (pixels - 0.1) / 0.2
    assert torch.allclose(teacher(as_data), teacher.network(as_teacher), atol=1e-5)


def test_teacher_of_float_images_sees_them_as_they_are_and_has_no_figures(weights: str) -> None:
    spec = TeacherSpec(name="digits-net", weights=weights, arguments=ARGUMENTS)
    teacher = load_teacher(spec, num_classes=10, image_shape=SHAPE, mean=(0.0,), std=(1 / 255,), is_float=True)
    assert torch.equal(teacher(images()), teacher.network(images()))
    with pytest.raises(UsageError, match=r"teacher.mean and teacher.std: the images are floats"):
        load_teacher(
            spec.model_copy(update={"mean": (0.1,)}),
            num_classes=10, image_shape=SHAPE, mean=(0.0,), std=(1 / 255,), is_float=True,
        )  # fmt: skip


def test_teacher_of_other_classes_is_refused(weights: str) -> None:
    with pytest.raises(ModelError, match=r"teacher.weights .*: linear.*has shape 10.*the network needs 7"):
        loaded(weights, classes=7)


def test_teacher_of_an_unknown_name_is_refused_by_its_own_field(weights: str) -> None:
    with pytest.raises(
        UsageError, match=r"teacher.name 'digits-nets': no such network. Did you mean digits-net"
    ) as caught:
        loaded(weights, name="digits-nets")
    assert "model.name" not in caught.value.hint


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"teacher.name": "resnet152"}, "teacher.name 'resnet152' (--teacher) has no weights, and a random network"),
        ({"teacher.weights": "w.pt"}, "w.pt without a network; valid is a teacher with a name"),
    ],
)
def test_job_with_a_teacher_that_cannot_be_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_spec(None, fields)
    assert message in caught.value.message


def test_job_of_a_teacher_of_the_users_own_needs_no_file() -> None:
    assert load_spec(None, {"teacher.name": "mynets:trained"}).teacher.name == "mynets:trained"
    assert SearchSpec().teacher == TeacherSpec()


def test_job_that_compares_feature_maps_with_another_teacher_is_refused_before_any_work() -> None:
    with pytest.raises(
        UsageError, match=r"features 0.5 with teacher.name \(--teacher\) 'mynets:trained': feature maps"
    ):
        prepare(load_spec(None, {"teacher.name": "mynets:trained", "finalists.train.features": 0.5}))
