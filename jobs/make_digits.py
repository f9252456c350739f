"""Make `raprune/data/digits.parquet` from scikit-learn's copy of the UCI digits.

    uv run --group dev python jobs/make_digits.py

1,797 grey images of 8x8 pixels, values 0..16 stretched to 0..255, each a PNG. A column `split` tells 1,257 training
images from 540 test images, drawn once by class so that both hold the ten digits in the same shares.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

TARGET = Path(__file__).parent.parent / "raprune" / "data" / "digits.parquet"
NUM_TEST = 540


def main() -> None:
    digits = load_digits()
    pixels = np.round(digits.images * 255 / 16).astype(np.uint8)
    train, test = train_test_split(
        np.arange(len(pixels)), test_size=NUM_TEST, stratify=digits.target, random_state=0, shuffle=True
    )
    order = np.concatenate([np.sort(train), np.sort(test)])
    table = pa.table(
        {
            "image": pa.array(
                [{"bytes": _png(pixels[row]), "path": None} for row in order],
                pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
            ),
            "label": pa.array(digits.target[order].astype(np.int64)),
            "split": pa.array(["train"] * len(train) + ["test"] * len(test)),
        }
    ).replace_schema_metadata({"label_names": "0,1,2,3,4,5,6,7,8,9"})
    pq.write_table(table, TARGET, compression="zstd")
    print(f"{TARGET.name}: {len(train)} training and {len(test)} test images, {TARGET.stat().st_size:,} bytes")


def _png(pixels: npt.NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG", optimize=True)
    return file.getvalue()


if __name__ == "__main__":
    main()
