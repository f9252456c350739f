from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from raprune.data import Dataset, load_data
from raprune.errors import DataError, UsageError
from raprune.spec.job import DataSpec

Pixels = npt.NDArray[np.uint8]
STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def pictures(count: int, *shape: int) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (count, *shape), dtype=np.uint8)


def encode(pixels: Pixels, mode: str | None = None, kind: str = "PNG") -> bytes:
    image, file = Image.fromarray(pixels), io.BytesIO()
    (image.convert(mode) if mode else image).save(file, format=kind)
    return file.getvalue()


def write(
    path: Path,
    images: Sequence[bytes | None],
    labels: Any = None,
    *,
    kind: pa.DataType = STRUCT,
    metadata: dict[str, str] | None = None,
) -> Path:
    values = [{"bytes": image, "path": None} for image in images] if pa.types.is_struct(kind) else images
    if labels is None:
        labels = pa.array([row % 2 for row in range(len(images))])
    table = pa.table({"image": pa.array(values, kind), "label": labels})
    pq.write_table(table.replace_schema_metadata(metadata), path)
    return path


def load(train: Path | str, **fields: Any) -> Dataset:
    return load_data(DataSpec(name="parquet", train=str(train), **fields), seed=0)


@pytest.mark.parametrize("kind", [STRUCT, pa.binary(), pa.large_binary()])
def test_images_and_labels_come_back_as_they_were_written(tmp_path: Path, kind: pa.DataType) -> None:
    pixels = pictures(30, 5, 7)
    train = write(tmp_path / "a.parquet", [encode(image) for image in pixels], kind=kind)
    data = load(train, test=str(train))
    assert data.test is not None
    assert np.array_equal(data.test.images[:, 0], pixels)
    assert data.test.labels.tolist() == [row % 2 for row in range(30)]
    assert data.image_shape == (1, 5, 7)
    together = np.concatenate([data.train.images, data.validation.images])
    assert sorted(image.tobytes() for image in together) == sorted(image.tobytes() for image in pixels)


def test_validation_named_as_a_file_leaves_the_training_split_whole(tmp_path: Path) -> None:
    trained, steered = pictures(30, 5, 7), 255 - pictures(8, 5, 7)
    train = write(tmp_path / "train.parquet", [encode(image) for image in trained])
    validation = write(tmp_path / "validation.parquet", [encode(image) for image in steered])
    data = load(train, validation=str(validation))
    assert np.array_equal(data.train.images[:, 0], trained)
    assert np.array_equal(data.validation.images[:, 0], steered)
    assert data.validation.labels.tolist() == [0, 1] * 4
    assert not data.held_out
    assert load(train).held_out


def test_validation_named_as_a_file_is_limited_and_checked_like_the_other_splits(tmp_path: Path) -> None:
    images = [encode(image) for image in pictures(30, 5, 7)]
    train = write(tmp_path / "train.parquet", images)
    assert len(load(train, validation=str(write(tmp_path / "b.parquet", images)), max_images=10).validation) == 10
    unknown = write(tmp_path / "c.parquet", images[:2], pa.array([0, 7]))
    with pytest.raises(DataError, match=r"c\.parquet: the label in row 1 is 7; valid are 0 to 1"):
        load(train, validation=str(unknown))
    with pytest.raises(UsageError, match=r"data\.validation .*missing\.parquet: no such file"):
        load(train, validation=str(tmp_path / "missing.parquet"))


def test_fingerprint_covers_the_validation_split(tmp_path: Path) -> None:
    images = [encode(image) for image in pictures(30, 5, 7)]
    train = write(tmp_path / "train.parquet", images)
    one, two = (write(tmp_path / f"{name}.parquet", part) for name, part in (("a", images[:8]), ("b", images[8:16])))
    known = {load(train, **fields).fingerprint for fields in ({}, {"validation": str(one)}, {"validation": str(two)})}
    assert len(known) == 3


def test_colour_is_channels_first(tmp_path: Path) -> None:
    pixels = pictures(4, 6, 5, 3)
    train = write(tmp_path / "a.parquet", [encode(image) for image in pixels])
    data = load(train, test=str(train), validation_fraction=0.5)
    assert data.test is not None
    assert np.array_equal(data.test.images, pixels.transpose(0, 3, 1, 2))
    assert data.test.images.flags.c_contiguous


def test_the_first_image_decides_between_grey_and_colour(tmp_path: Path) -> None:
    grey, colour = pictures(4, 6, 6), pictures(4, 6, 6, 3)
    mixed = [encode(grey[0]), encode(colour[1]), encode(grey[2]), encode(colour[3], "RGBA")]
    assert load(write(tmp_path / "a.parquet", mixed), validation_fraction=0.5).image_shape == (1, 6, 6)
    mixed = [encode(colour[0]), encode(grey[1]), encode(colour[2], "P"), encode(grey[3], "1")]
    assert load(write(tmp_path / "b.parquet", mixed), validation_fraction=0.5).image_shape == (3, 6, 6)


def test_a_folder_and_a_pattern_join_their_files_in_order(tmp_path: Path) -> None:
    pixels = pictures(20, 4, 4)
    write(tmp_path / "train-0.parquet", [encode(image) for image in pixels[:8]])
    write(tmp_path / "train-1.parquet", [encode(image) for image in pixels[8:]])
    for name in (str(tmp_path), str(tmp_path / "train-*.parquet"), (tmp_path / "train-*.parquet").as_uri()):
        # A URI quotes the star; a user writes it plainly.
        data = load(tmp_path, test=name.replace("%2A", "*"))
        assert data.test is not None
        assert np.array_equal(data.test.images[:, 0], pixels)


def test_image_size_scales_the_shorter_side_and_cuts_the_centre(tmp_path: Path) -> None:
    wide = np.zeros((8, 24), dtype=np.uint8)
    wide[:, 8:16] = 200
    train = write(tmp_path / "a.parquet", [encode(wide), encode(wide[:, 4:20]), encode(wide), encode(wide)])
    data = load(train, image_size=8, validation_fraction=0.5)
    assert data.image_shape == (1, 8, 8)
    assert np.all(data.train.images == 200)
    assert np.all(data.validation.images == 200)


def test_label_names_come_from_the_metadata(tmp_path: Path) -> None:
    images = [encode(image) for image in pictures(4, 4, 4)]
    plain = write(tmp_path / "a.parquet", images, metadata={"label_names": "cat,dog,owl"})
    data = load(plain, validation_fraction=0.5)
    assert (data.num_classes, data.label_names) == (3, ("cat", "dog", "owl"))
    features = '{"info": {"features": {"label": {"names": ["x", "y"], "_type": "ClassLabel"}}}}'
    hugging = write(tmp_path / "b.parquet", images, metadata={"huggingface": features})
    assert load(hugging, validation_fraction=0.5).label_names == ("x", "y")
    assert load(write(tmp_path / "c.parquet", images), validation_fraction=0.5).label_names == ("0", "1")


def test_max_images_draws_by_class(tmp_path: Path) -> None:
    images = [encode(image) for image in pictures(40, 4, 4)]
    train = write(tmp_path / "a.parquet", images)
    data = load(train, test=str(train), max_images=20)
    assert data.test is not None
    assert (len(data.train), len(data.validation), len(data.test)) == (16, 4, 20)
    assert np.bincount(data.test.labels).tolist() == [10, 10]


def broken(folder: Path, case: str) -> Path:
    path = folder / "bad.parquet"
    good = [encode(image) for image in pictures(6, 4, 4)]
    if case == "no parquet":
        path.write_bytes(b"this is no parquet file, but long enough to be asked")
    elif case == "cut short":
        write(path, good)
        path.write_bytes(path.read_bytes()[:-40])
    elif case == "corrupt pages":
        write(path, good)
        content = bytearray(path.read_bytes())
        content[8:200] = bytes(192)
        path.write_bytes(content)
    elif case == "no image":
        write(path, [*good[:3], b"not a picture", *good[3:]])
    elif case == "cut image":
        write(path, [*good[:2], good[2][:40], *good[3:]])
    elif case == "null bytes":
        write(path, [*good[:4], None, good[5]])
    elif case == "null label":
        write(path, good, pa.array([0, 1, None, 0, 1, 0]))
    elif case == "text label":
        write(path, good, pa.array(list("abcabc")))
    elif case == "negative label":
        write(path, good, pa.array([0, 1, 0, -1, 0, 1]))
    elif case == "label beyond names":
        write(path, good, pa.array([0, 1, 0, 2, 0, 1]), metadata={"label_names": "a,b"})
    elif case == "wild label":
        write(path, good, pa.array([0, 1, 0, 10**9, 0, 1]))
    elif case == "empty":
        write(path, [], pa.array([], pa.int64()))
    elif case == "sizes":
        write(path, [*good[:3], encode(pictures(1, 5, 9)[0]), *good[3:]])
    elif case == "depth":
        write(path, [encode(np.zeros((4, 4), dtype=np.uint16))] * 6)
    elif case == "list column":
        pq.write_table(pa.table({"image": [[1, 2]] * 6, "label": [0, 1] * 3}), path)
    elif case == "column":
        pq.write_table(pa.table({"picture": good, "label": [0, 1] * 3}), path)
    else:
        write(path, good[:1])
    return path


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("no parquet", "not readable as Parquet"),
        ("cut short", "not readable as Parquet"),
        ("corrupt pages", "Parquet"),
        ("no image", "row 3 cannot be decoded"),
        ("cut image", "row 2 cannot be decoded"),
        ("null bytes", "row 4 has no image bytes"),
        ("null label", "row 2 has no label"),
        ("text label", "labels must be integers"),
        ("negative label", "row 3 is -1"),
        ("label beyond names", "row 3 is 2; valid are 0 to 1"),
        ("wild label", "row 3 is 1000000000"),
        ("empty", "no images"),
        ("sizes", "row 3 is 5x9, the first is 4x4"),
        ("depth", "more than 8 bits"),
        ("list column", "images must be encoded bytes"),
        ("column", "no column 'image'. Its columns: picture, label"),
        ("single image", "leave 0 for validation"),
    ],
)
def test_load_data_broken_parquet_file_names_the_fault(tmp_path: Path, case: str, words: str) -> None:
    with pytest.raises(DataError) as caught:
        load(broken(tmp_path, case))
    assert words in caught.value.message
    assert caught.value.hint


def test_labels_of_the_test_split_are_held_against_the_training_split(tmp_path: Path) -> None:
    images = [encode(image) for image in pictures(6, 4, 4)]
    train = write(tmp_path / "a.parquet", images)
    test = write(tmp_path / "b.parquet", images, pa.array([0, 1, 2, 0, 1, 2]))
    with pytest.raises(DataError, match="row 2 is 2; valid are 0 to 1"):
        load(train, test=str(test))


@pytest.mark.parametrize("field", ["train", "test"])
@pytest.mark.parametrize("where", ["missing.parquet", "missing-*.parquet", "folder"])
def test_a_missing_file_is_a_usage_error_that_names_the_field(tmp_path: Path, field: str, where: str) -> None:
    (tmp_path / "folder").mkdir()
    good = write(tmp_path / "a.parquet", [encode(image) for image in pictures(6, 4, 4)])
    spec = DataSpec(name="parquet", train=str(good)).model_copy(update={field: str(tmp_path / where)})
    with pytest.raises(UsageError, match=rf"data\.{field} .*no such file"):
        load_data(spec, seed=0)


def test_the_training_split_must_be_named() -> None:
    with pytest.raises(UsageError, match=r"data\.train is not set"):
        load_data(DataSpec(name="parquet"), seed=0)


def test_an_unknown_filesystem_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match=r"data\.train nowhere://a"):
        load("nowhere://a/b.parquet")


def test_more_images_than_fit_into_memory_are_refused(tmp_path: Path) -> None:
    train = write(tmp_path / "a.parquet", [encode(image) for image in pictures(6, 4, 4)])
    with pytest.raises(DataError, match="GiB of memory"):
        load(train, image_size=2_000_000)
