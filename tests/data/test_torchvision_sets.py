from __future__ import annotations

import gzip
import pickle
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from raprune.data import load_data
from raprune.errors import DataError, UsageError
from raprune.spec.job import DataSpec


def save(path: Path, value: int, size: tuple[int, int] = (6, 6)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)


def folders(root: Path) -> Path:
    for label, name in enumerate(("ant", "bee")):
        for number in range(5):
            save(root / "train" / name / f"{number}.png", 100 * label + number)
            save(root / "test" / name / f"{number}.png", 100 * label + 50 + number)
    return root


@pytest.mark.parametrize("name", ["imagefolder", "imagenet"])
def test_a_folder_for_each_class(tmp_path: Path, name: str) -> None:
    data = load_data(DataSpec(name=name, train=str(folders(tmp_path)), image_size=6), seed=0)
    assert data.test is not None
    assert data.label_names == ("ant", "bee")
    assert data.test.labels.tolist() == [0] * 5 + [1] * 5
    assert data.test.images[:, 0, 0, 0].tolist() == [50, 51, 52, 53, 54, 150, 151, 152, 153, 154]
    assert data.augment == "crop-flip"


def sizes(**fields: str) -> tuple[int, int, int | None]:
    data = load_data(DataSpec.model_validate({"name": "imagefolder", **fields}), seed=0)
    return len(data.train), len(data.validation), None if data.test is None else len(data.test)


def test_the_folders_of_each_split_may_be_given(tmp_path: Path) -> None:
    root = folders(tmp_path)
    save(tmp_path / "more" / "bee" / "0.png", 7)
    train, test, more = str(root / "train"), str(root / "test"), str(tmp_path / "more")
    assert sizes(train=train, test=test) == (8, 2, 10)
    assert sizes(train=train) == (8, 2, None)
    assert sizes(train=train, validation=test) == (10, 10, None)
    assert sizes(train=train, validation=more, test=test) == (10, 1, 10)
    assert sizes(train=str(root), validation=more) == (10, 1, 10)


def test_the_folder_val_is_the_validation_split_unless_it_is_given_as_the_test_split(tmp_path: Path) -> None:
    root = folders(tmp_path)
    for name in ("ant", "bee", "bee/more"):
        save(root / "val" / name / "0.png", 7)
    assert sizes(train=str(root)) == (10, 3, 10)
    assert sizes(train=str(root), test=str(root / "val")) == (8, 2, 3)
    assert sizes(train=str(root), validation=str(root / "test")) == (10, 10, None)
    shutil.rmtree(root / "test")
    assert sizes(train=str(root)) == (10, 3, None), "no split is both"
    save(root / "test" / "0.png", 7)
    assert sizes(train=str(root)) == (10, 3, None), "ImageNet's test images have no labels"


def test_a_class_that_only_the_test_split_has_is_refused(tmp_path: Path) -> None:
    root = folders(tmp_path)
    save(root / "test" / "cow" / "0.png", 1)
    with pytest.raises(DataError, match="lacks: cow"):
        load_data(DataSpec(name="imagefolder", train=str(root)), seed=0)


def test_an_image_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    root = folders(tmp_path)
    (root / "train" / "bee" / "0.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="row 5 cannot be decoded"):
        load_data(DataSpec(name="imagefolder", train=str(root)), seed=0)


def test_imagefolder_without_images_or_root_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no images in class folders"):
        load_data(DataSpec(name="imagefolder", train=str(tmp_path)), seed=0)
    with pytest.raises(UsageError, match="no such folder"):
        load_data(DataSpec(name="imagefolder", train=str(tmp_path / "missing")), seed=0)


def test_mnist_as_torchvision_keeps_it(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for prefix, count in (("train", 20), ("t10k", 10)):
        pixels = np.arange(count * 28 * 28).astype(np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        for suffix, content in (
            ("images-idx3-ubyte", struct.pack(">iiii", 2051, count, 28, 28) + pixels.tobytes()),
            ("labels-idx1-ubyte", struct.pack(">ii", 2049, count) + labels.tobytes()),
        ):
            (raw / f"{prefix}-{suffix}").write_bytes(content)
            (raw / f"{prefix}-{suffix}.gz").write_bytes(gzip.compress(content))
    data = load_data(DataSpec(name="mnist", train=str(tmp_path), validation_fraction=0.5), seed=0)
    assert data.test is not None
    assert data.image_shape == (1, 28, 28)
    assert (len(data.train), len(data.validation), len(data.test)) == (10, 10, 10)
    assert data.test.images[0, 0, 0].tolist() == list(range(28))


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10", "cifar100"])
def test_torchvision_data_without_download_are_not_downloaded(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"data\.train .* holds no " + name) as caught:
        load_data(DataSpec(name=name, train=str(tmp_path)), seed=0)
    assert "--download" in caught.value.hint
    assert not any(tmp_path.iterdir())


def test_the_root_folder_must_be_named() -> None:
    with pytest.raises(UsageError, match=r"data\.train is not set"):
        load_data(DataSpec(name="cifar10"), seed=0)


def test_a_damaged_cifar_is_not_taken_for_data(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "data_batch_1").write_bytes(pickle.dumps({"data": b""}))
    with pytest.raises(UsageError, match="holds no cifar10"):
        load_data(DataSpec(name="cifar10", train=str(tmp_path)), seed=0)
