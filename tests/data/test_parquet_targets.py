"""Parquet with masks, boxes and numbers: read as they were written, and scaled with their images."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from raprune.checks.job import inspect_job
from raprune.data import Dataset, load_data
from raprune.errors import DataError, UsageError
from raprune.pruning.export import prune_once
from raprune.spec.job import DataSpec
from tests.task_networks import job
from tests.tools import require_module

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (10, 16, 24, 3), dtype=np.uint8)
MASKS = RNG.integers(0, 4, (10, 16, 24), dtype=np.uint8)
BOXES: list[dict[str, Any]] = [
    {"bbox": [[2.0, 4.0, 8.0, 6.0], [20.0, 0.0, 4.0, 16.0]], "category": [0, 2], "iscrowd": [0, 1]},
    *({"bbox": [[0.0, 0.0, 5.0 + n, 7.0]], "category": [n % 3], "iscrowd": [0]} for n in range(8)),
    {"bbox": [], "category": [], "iscrowd": []},
]


def png(pixels: Any, mode: str | None = None) -> bytes:
    stream = io.BytesIO()
    image = Image.fromarray(pixels)
    (image if mode is None else image.convert(mode)).save(stream, "PNG")
    return stream.getvalue()


def write(path: Path, targets: list[Any], column: str, features: dict[str, Any] | None = None) -> str:
    images = [{"bytes": png(pixels), "path": None} for pixels in PIXELS[: len(targets)]]
    table = pa.table({"image": images, column: targets})
    if features is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": {column: features}}})})
    pq.write_table(table, path)
    return str(path)


def loaded(path: str, form: str, **fields: Any) -> Dataset:
    spec = DataSpec(name="parquet", train=path, test=path, **fields)
    return load_data(spec, seed=0, form=form)


def test_masks_are_those_of_the_file_in_grey_and_in_palette(tmp_path: Path) -> None:
    masks = [{"bytes": png(mask), "path": None} for mask in MASKS]
    image = Image.fromarray(MASKS[3], mode="P")
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    stream = io.BytesIO()
    image.save(stream, "PNG")
    masks[3]["bytes"] = stream.getvalue()
    data = loaded(write(tmp_path / "masks.parquet", masks, "mask"), "masks")
    assert data.test is not None and data.num_classes == 4 and data.image_shape == (3, 16, 24)
    assert np.array_equal(data.test.labels, MASKS)
    assert np.array_equal(data.test.images, PIXELS.transpose(0, 3, 1, 2))
    assert data.augment == "none" and len(data.train) + len(data.validation) == 10


def test_masks_are_scaled_and_cut_like_their_images(tmp_path: Path) -> None:
    # Each image shows its mask, so that both must look alike afterwards.
    halves = np.zeros((4, 16, 24), np.uint8)
    halves[:, :, 12:] = 1
    images = [{"bytes": png(np.repeat(255 * half[..., None], 3, 2)), "path": None} for half in halves]
    table = pa.table({"image": images, "segmentation": [png(half) for half in halves]})
    pq.write_table(table, tmp_path / "halves.parquet")
    path = str(tmp_path / "halves.parquet")
    data = loaded(path, "masks", label_column="segmentation", image_size=8)
    assert data.test is not None and data.test.labels.shape == (4, 8, 8)
    assert np.array_equal(data.test.images[:, 0] > 127, data.test.labels == 1)


@pytest.mark.parametrize(
    ("mask", "problem"),
    [
        (PIXELS[0], "the mask in row 1 has 3 channels"),
        (MASKS[0][:8], "the mask in row 1 is 8x24, its image 16x24"),
        (MASKS[0].astype(np.uint16) * 100 + 1, "valid are 0 to 254, and 255"),
    ],
)
def test_masks_of_another_form_are_refused_with_their_row(mask: Any, problem: str, tmp_path: Path) -> None:
    path = write(tmp_path / "masks.parquet", [png(MASKS[0]), png(mask)], "mask")
    with pytest.raises(DataError, match=problem):
        loaded(path, "masks")


@pytest.mark.parametrize("layout", ["struct of lists", "list of structs"])
def test_boxes_of_coco_become_corners_with_classes_from_1(layout: str, tmp_path: Path) -> None:
    objects: list[Any] = BOXES
    category = {"names": ["disc", "square", "star"], "_type": "ClassLabel"}
    features: dict[str, Any] = {"feature": {"bbox": {}, "category": category}, "_type": "Sequence"}
    if layout == "list of structs":
        keys = ("bbox", "category", "iscrowd")
        objects = [[dict(zip(keys, one, strict=True)) for one in zip(*map(o.get, keys), strict=True)] for o in BOXES]
    data = loaded(write(tmp_path / "boxes.parquet", objects, "objects", features), "boxes")
    assert data.test is not None
    assert data.label_names == ("background", "disc", "square", "star") and data.num_classes == 4
    assert data.test.labels[0].tolist() == [[2, 4, 10, 10, 1, 0], [20, 0, 24, 16, 3, 1]]
    assert not data.test.labels[-1].any(), "an image without boxes"


def test_boxes_are_scaled_and_cut_with_their_image(tmp_path: Path) -> None:
    data = loaded(write(tmp_path / "boxes.parquet", BOXES, "objects"), "boxes", image_size=8)
    assert data.test is not None
    # 16x24 becomes 8x12, of which the 8 columns from 2 to 10 stay; the second box is outside of them.
    assert data.test.labels[0].tolist() == [[0, 2, 3, 5, 1, 0]]


def test_boxes_without_categories_are_refused_with_their_row(tmp_path: Path) -> None:
    path = write(tmp_path / "boxes.parquet", [{"bbox": [[0.0, 0.0, 1.0, 1.0]], "category": []}], "objects")
    with pytest.raises(DataError, match=r"row 0 of column 'objects' has no boxes: ValueError: 1 boxes, 0 categories"):
        loaded(path, "boxes")


def test_numbers_are_a_row_for_each_image(tmp_path: Path) -> None:
    rows = RNG.normal(size=(10, 3)).astype(np.float32)
    data = loaded(write(tmp_path / "rows.parquet", rows.tolist(), "label"), "columns")
    assert data.test is not None and np.array_equal(data.test.labels, rows)
    one = loaded(write(tmp_path / "one.parquet", rows[:, 0].tolist(), "label"), "columns")
    assert one.test is not None and one.test.labels.shape == (10, 1)


def test_missing_column_and_stream_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "masks.parquet", [png(mask) for mask in MASKS], "annotation")
    with pytest.raises(DataError, match=r"no column 'mask'. Its columns: image, annotation"):
        loaded(path, "masks")
    with pytest.raises(UsageError, match=r"data.stream is set, but images with masks are held in memory"):
        loaded(path, "masks", stream=True)


@pytest.mark.nightly
@pytest.mark.parametrize("task", ["segmentation", "detection"])
def test_network_is_trained_and_pruned_on_a_file(task: str, tmp_path: Path) -> None:
    if task == "detection":
        require_module("pycocotools")
        path = write(tmp_path / "file.parquet", BOXES, "objects")
    else:
        path = write(tmp_path / "file.parquet", [png(mask) for mask in MASKS], "mask")
    data = {"name": "parquet", "train": path, "validation_fraction": 0.3}
    spec = job(task, data=data, dense={"epochs": 1.0, "batch_size": 4, "lr": 0.01})
    assert inspect_job(spec).graph.groups
    made = prune_once(spec, method="l2", allocation="uniform")
    assert made.trial.metrics is not None and made.trial.metrics.flops_fraction <= 0.6
