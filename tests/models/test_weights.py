from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from raprune.errors import ModelError, UsageError
from raprune.models import build_model, load_weights
from raprune.models.digits import DigitsNet
from raprune.models.weights import DENSENET
from raprune.spec.job import ModelSpec


def trained() -> dict[str, Tensor]:
    torch.manual_seed(1)
    return DigitsNet().state_dict()


def loaded(path: Path) -> dict[str, Tensor]:
    model = DigitsNet()
    load_weights(model, str(path))
    return model.state_dict()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3, "arch": "digits"},
        lambda state: {"model": {"state_dict": state}, "optimizer": {"lr": 0.1}},
        lambda state: {f"module.{key}": value for key, value in state.items()},
        lambda state: {"model": {f"module._orig_mod.{key}": value for key, value in state.items()}},
        lambda state: {key: value.double() if value.is_floating_point() else value for key, value in state.items()},
        lambda state: {key: value for key, value in state.items() if "num_batches" not in key},
    ],
)
def test_a_state_dict_is_found_in_its_wrappings(tmp_path: Path, wrap: Any) -> None:
    state, path = trained(), tmp_path / "net.pt"
    torch.save(wrap(state), path)
    for key, value in loaded(path).items():
        assert torch.equal(value, state[key]), key


def test_load_weights_safetensors_are_read_by_path_and_by_uri(tmp_path: Path) -> None:
    state, path = trained(), tmp_path / "net.safetensors"
    safetensors.torch.save_file(state, path)
    assert torch.equal(loaded(path)["conv3.weight"], state["conv3.weight"])
    model = DigitsNet()
    load_weights(model, path.as_uri())
    assert torch.equal(model.conv3.weight, state["conv3.weight"])


def test_a_pickled_model_is_refused_with_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(DigitsNet(), path)
    with pytest.raises(ModelError, match="pickled objects") as caught:
        loaded(path)
    assert "state_dict" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.safetensors", b"", "cannot be read"),
        ("a.safetensors", b"x" * 100, "cannot be read"),
        ("a.pt", b"", "cannot be read"),
        ("a.pt", b"PK\x03\x04 cut short", "cannot be read"),
        ("a.pt", b"plain text", "the file was not written by torch.save"),
    ],
)
def test_load_weights_file_that_is_no_checkpoint_is_refused(
    tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError) as caught:
        loaded(tmp_path / name)
    assert words in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([1, 2], "the file holds a list"),
        ({"epoch": 3, "lr": 0.1}, "the file holds the keys epoch, lr"),
        ({}, "the file holds nothing"),
        (torch.zeros(3), "the file holds a Tensor"),
    ],
)
def test_load_weights_file_without_state_dict_is_refused(tmp_path: Path, content: Any, words: str) -> None:
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(ModelError, match=words):
        loaded(tmp_path / "a.pt")


@pytest.mark.parametrize("name", ["missing.safetensors", "missing.pt", "."])
def test_a_missing_file_is_a_usage_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"model\.weights .*no such file"):
        loaded(tmp_path / name)


def test_another_number_of_classes_is_named_with_both_shapes(tmp_path: Path) -> None:
    torch.save(DigitsNet(num_classes=100).state_dict(), tmp_path / "a.pt")
    with pytest.raises(ModelError, match=r"linear.weight has shape 100x32, the network needs 10x32"):
        loaded(tmp_path / "a.pt")


def test_keys_that_are_missing_or_unknown_are_named(tmp_path: Path) -> None:
    state = trained()
    state["fc.weight"] = state.pop("linear.weight")
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(ModelError, match=r"1 missing \(linear.weight\); 1 unknown \(fc.weight\)"):
        loaded(tmp_path / "a.pt")


def test_load_weights_with_values_that_are_not_finite_is_refused(tmp_path: Path) -> None:
    state = trained()
    state["conv2.weight"][0, 0, 0, 0] = torch.nan
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(ModelError, match=r"conv2.weight holds values that are not finite"):
        loaded(tmp_path / "a.pt")


def test_auxiliary_heads_are_dropped(tmp_path: Path) -> None:
    spec = ModelSpec(name="googlenet")
    model = build_model(spec, num_classes=10, image_shape=(3, 64, 64))
    state = dict(model.state_dict()) | {"aux1.fc2.weight": torch.zeros(1000, 1024), "aux2.conv.bn.bias": torch.ones(2)}
    torch.save(state, tmp_path / "a.pt")
    fresh = build_model(spec, num_classes=10, image_shape=(3, 64, 64))
    load_weights(fresh, str(tmp_path / "a.pt"))
    assert torch.equal(fresh.state_dict()["fc.weight"], state["fc.weight"])


def test_densenets_old_names_are_known(tmp_path: Path) -> None:
    class Old(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.denselayer1 = nn.Module()
            self.denselayer1.norm1 = nn.BatchNorm2d(3)

    state = Old().state_dict()
    state = {key.replace("norm1", "norm.1"): value + 1 for key, value in state.items()}
    torch.save(state, tmp_path / "a.pt")
    model = Old()
    load_weights(model, str(tmp_path / "a.pt"))
    assert model.state_dict()["denselayer1.norm1.weight"].tolist() == [2, 2, 2]
    assert DENSENET.sub(r"\1\2", "features.denseblock1.denselayer2.conv.2.weight").endswith("denselayer2.conv2.weight")
