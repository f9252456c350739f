"""The bundled digits as files that can be streamed."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq


def digits(split: str = "train") -> pa.Table:
    """Columns `image` (struct of bytes and path) and `label`."""
    with resources.as_file(resources.files("raprune.data") / "digits.parquet") as file:
        table = pq.read_table(file)
    return table.filter(pc.equal(table["split"], split)).select(["image", "label"])


def write_parts(folder: Path, table: pa.Table, *, parts: int = 3, row_group: int = 70) -> str:
    """The rows of `table` in so many Parquet files; the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    size = -(-len(table) // parts)
    for part in range(parts):
        rows = table.slice(part * size, size)
        pq.write_table(rows, folder / f"part-{part}.parquet", row_group_size=row_group)
    return str(folder)


def write_images(folder: Path, table: pa.Table) -> str:
    """A folder for each class, with a file for each row; the folder."""
    rows: list[dict[str, Any]] = table.to_pylist()
    for number, row in enumerate(rows):
        where = folder / str(row["label"])
        where.mkdir(parents=True, exist_ok=True)
        (where / f"{number:05d}.png").write_bytes(row["image"]["bytes"])
    return str(folder)
