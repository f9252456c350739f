from __future__ import annotations

import pickle
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from raprune.data import DATASETS, Normalisation, ignored, load_data
from raprune.data.normalisation import IMAGENET
from raprune.errors import DataError, UsageError
from raprune.spec.job import DataSpec


def test_load_data_bundled_digits_gives_three_splits_of_balanced_classes() -> None:
    data = load_data(DataSpec(name="digits"), seed=0)
    assert data.image_shape == (1, 8, 8)
    assert data.test is not None
    assert (len(data.train), len(data.validation), len(data.test)) == (1006, 251, 540)
    assert data.num_classes == 10
    assert data.label_names == tuple("0123456789")
    for split in (data.train, data.validation, data.test):
        assert split.images.dtype == np.uint8
        assert split.images.flags.c_contiguous
        assert split.labels.dtype == np.int64
        assert split.images.max() == 255
        shares = np.bincount(split.labels, minlength=10) / len(split)
        assert np.all(np.abs(shares - 0.1) < 0.01)


def test_bundled_mnist_sample_has_three_splits_whatever_the_seed() -> None:
    data, other = (load_data(DataSpec(name="mnist-sample"), seed=seed) for seed in (0, 1))
    assert data.image_shape == (1, 28, 28) and not data.held_out and data.test is not None
    splits = (data.train, data.validation, data.test)
    assert [len(split) for split in splits] == [8000, 2000, 2500]
    for split in splits:
        assert np.bincount(split.labels).tolist() == [len(split) // 10] * 10
    assert len({image.tobytes() for split in splits for image in split.images}) == 12_500, "no image twice"
    assert data.fingerprint == other.fingerprint


def test_the_seed_draws_the_validation_split_and_leaves_the_test_split_alone() -> None:
    first, again, other = (load_data(DataSpec(name="digits"), seed=seed) for seed in (0, 0, 1))
    assert first.fingerprint == again.fingerprint
    assert first.fingerprint != other.fingerprint
    assert first.test is not None
    assert other.test is not None
    assert np.array_equal(first.test.images, other.test.images)
    together = [np.concatenate([data.train.images, data.validation.images]) for data in (first, other)]
    one, two = (sorted(image.tobytes() for image in images) for images in together)
    assert one == two


def test_mean_and_std_are_measured_on_the_training_split() -> None:
    data = load_data(DataSpec(name="digits"), seed=0)
    pixels = data.train.images / 255
    assert data.mean == pytest.approx((pixels.mean(),), abs=1e-12)
    assert data.std == pytest.approx((pixels.std(),), abs=1e-12)
    assert data.origin == "measured on the training split"
    given = load_data(DataSpec(name="digits", mean=(0.5,), std=(0.25,)), seed=0)
    assert (given.mean, given.std, given.origin) == ((0.5,), (0.25,), "given")


def test_normalisation_by_default_is_taken_where_the_job_has_no_figures_and_the_channels_agree() -> None:
    default = Normalisation(mean=(0.1,), std=(0.3,), origin="a friend's")
    found = load_data(DataSpec(name="digits"), seed=0, default=default).normalisation
    assert found == default and str(found) == "mean (0.1), std (0.3) (a friend's)"
    given = DataSpec(name="digits", mean=(0.5,), std=(0.25,))
    assert load_data(given, seed=0, default=default).normalisation.origin == "given"
    half = load_data(DataSpec(name="digits", mean=(0.5,)), seed=0, default=default)
    assert (half.mean, half.std, half.origin) == ((0.5,), (0.3,), "mean given, std a friend's")
    assert load_data(DataSpec(name="digits"), seed=0, default=IMAGENET).origin == "measured on the training split"


def test_load_data_mean_of_another_length_is_refused() -> None:
    with pytest.raises(UsageError, match=r"data\.mean has 3 values; the images have 1 channel\."):
        load_data(DataSpec(name="digits", mean=(0.5, 0.5, 0.5)), seed=0)


def test_a_data_set_survives_pickling() -> None:
    data = load_data(DataSpec(name="digits"), seed=0)
    copy = pickle.loads(pickle.dumps(data))
    assert copy.fingerprint == data.fingerprint
    assert np.array_equal(copy.train.images, data.train.images)


def test_augment_auto_is_what_suits_the_data_set() -> None:
    assert load_data(DataSpec(name="digits"), seed=0).augment == "shift"
    assert load_data(DataSpec(name="digits", augment="none"), seed=0).augment == "none"


def test_an_unknown_name_names_its_neighbours() -> None:
    with pytest.raises(UsageError, match="Did you mean cifar10") as caught:
        load_data(DataSpec(name="cifar-10"), seed=0)
    assert all(name in caught.value.hint for name in DATASETS)


def test_a_validation_split_without_images_is_refused() -> None:
    with pytest.raises(DataError, match="leave 0 for validation"):
        load_data(DataSpec(name="digits", max_images=10, validation_fraction=0.01), seed=0)


@pytest.mark.parametrize("name", ["digits", "mnist", "tests.streams:digits"])
def test_a_validation_file_of_data_that_comes_as_a_whole_is_refused(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_data(DataSpec.model_construct(name=name, validation="v.parquet", stream=False), seed=0)
    assert caught.value.message.startswith(f"data.validation v.parquet: data.name is '{name}'")
    assert "parquet, imagefolder" in caught.value.hint


def test_a_validation_fraction_that_is_set_and_ignored_is_said() -> None:
    held_out = load_data(DataSpec(name="digits"), seed=0)
    own = replace(held_out, held_out=False)
    assert ignored(DataSpec(name="digits", validation_fraction=0.1), held_out) is None
    assert ignored(DataSpec(name="digits"), own) is None
    said = ignored(DataSpec(name="digits", validation_fraction=0.1), own)
    assert said is not None and "data.validation_fraction 0.1 is ignored" in said and "251 images" in said


def test_chance_is_the_fraction_of_the_most_frequent_class() -> None:
    data = load_data(DataSpec(name="digits"), seed=0)
    assert data.chance is not None and 0.1 <= data.chance < 0.12
    labels = np.zeros_like(data.validation.labels)
    assert replace(data, validation=replace(data.validation, labels=labels)).chance == 1.0


def test_images_are_loaded_without_torch() -> None:
    code = (
        "import sys; from raprune.data import load_data; from raprune.spec.job import DataSpec; "
        "load_data(DataSpec(name='digits'), seed=0); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
