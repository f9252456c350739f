from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from raprune.data import load_data
from raprune.errors import DataError, UsageError
from raprune.spec.job import DataSpec

MODULE = """
import numpy as np
from raprune.data import Dataset, Split

def arrays(count=20, channels_last=False):
    shape = (count, 6, 6, 3) if channels_last else (count, 3, 6, 6)
    images = np.arange(np.prod(shape)).reshape(shape).astype(np.uint8)
    return {"train": (images, np.arange(count) % 2), "test": (images, np.arange(count) % 2), "label_names": ["a", "b"]}

def grey():
    return {"train": (np.zeros((10, 5, 5), np.uint8), [0, 1] * 5)}

def steered():
    validation = np.ones((4, 5, 5), np.uint8), [0, 1, 0, 1]
    return {"train": (np.zeros((10, 5, 5), np.uint8), [0, 1] * 5), "validation": validation}

def own():
    split = Split(np.zeros((4, 1, 5, 5), np.uint8), np.zeros(4, np.int64))
    return Dataset(name="own", train=split, validation=split, test=None, num_classes=1, label_names=("x",),
                   mean=(0.5,), std=(0.5,))

def fails():
    raise KeyError("disk")

def lengths():
    return {"train": (np.zeros((10, 1, 5, 5), np.uint8), [0] * 9)}

def channels():
    return {"train": (np.zeros((10, 4, 5, 5), np.uint8), [0] * 10)}

def single():
    return {"train": np.zeros((10, 1, 5, 5), np.uint8)}

def nothing():
    return None
"""


@pytest.fixture(autouse=True)
def _module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_data_module.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))


def test_arrays_are_split_and_named() -> None:
    data = load_data(DataSpec(name="my_data_module:arrays", arguments={"count": 40}), seed=0)
    assert data.test is not None
    assert (len(data.train), len(data.validation), len(data.test)) == (32, 8, 40)
    assert data.label_names == ("a", "b")
    assert data.image_shape == (3, 6, 6)


def test_channels_may_come_last_or_be_left_out() -> None:
    data = load_data(DataSpec(name="my_data_module:arrays", arguments={"channels_last": True}), seed=0)
    assert data.image_shape == (3, 6, 6)
    assert data.test is not None
    assert data.test.images[0, :, 0, 0].tolist() == [0, 1, 2]
    grey = load_data(DataSpec(name="my_data_module:grey"), seed=0)
    assert grey.image_shape == (1, 5, 5)
    assert grey.test is None


def test_a_validation_split_that_is_returned_leaves_the_training_split_whole() -> None:
    data = load_data(DataSpec(name="my_data_module:steered"), seed=0)
    assert (len(data.train), len(data.validation), data.held_out) == (10, 4, False)
    assert data.validation.images.min() == 1


def test_arrays_are_resized_when_asked() -> None:
    data = load_data(DataSpec(name="my_data_module:arrays", image_size=12), seed=0)
    assert data.image_shape == (3, 12, 12)


def test_a_data_set_of_the_users_is_taken_as_it_is() -> None:
    data = load_data(DataSpec(name="my_data_module:own"), seed=0)
    assert data.name == "own"
    assert np.shares_memory(data.train.images, data.validation.images)
    other = load_data(DataSpec(name="my_data_module:own", mean=(0.1,), std=(0.2,)), seed=0)
    assert (other.mean, other.std) == ((0.1,), (0.2,)), "figures of the job win"


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("fails", "raised KeyError: 'disk'"),
        ("lengths", "10 integers are needed"),
        ("channels", "1 or 3 channels"),
        ("single", "not a pair"),
        ("nothing", "returned NoneType"),
    ],
)
def test_user_data_with_a_wrong_result_names_the_fault(function: str, words: str) -> None:
    with pytest.raises(DataError) as caught:
        load_data(DataSpec(name=f"my_data_module:{function}"), seed=0)
    assert words in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no_such_module:f", "importing no_such_module raised ModuleNotFoundError"),
        ("my_data_module:missing", "has no function missing"),
        ("my_data_module:", "package.module:function"),
        ("my-data:f", "package.module:function"),
    ],
)
def test_user_data_missing_function_is_refused(name: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        load_data(DataSpec(name=name), seed=0)
