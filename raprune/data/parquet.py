"""Parquet files in the layout of Hugging Face: an image column `struct<bytes, path>` (or binary) and a label column."""

from __future__ import annotations

import fnmatch
import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from raprune.data.arrays import LabelArray
from raprune.data.decode import Blob
from raprune.data.free_memory import check_memory
from raprune.data.source import EncodedRows, EncodedSource, Sources
from raprune.errors import DataError, UsageError
from raprune.spec.job import DataSpec

READ_ROWS = 256
"""Number of rows that are read and passed on together."""

READ_BYTES = 8 * 2**20
"""Number of bytes of a column that are fetched at a time; a whole row group may not fit into memory."""


def open_digits(spec: DataSpec) -> Sources:
    """Open the bundled digits: 1,257 training and 540 test images of shape `(1, 8, 8)`."""
    return _bundled("digits", ("train", "test"))


def open_mnist_sample(spec: DataSpec) -> Sources:
    """Open the bundled sample of MNIST: 8,000 training, 2,000 validation, 2,500 test images of shape `(1, 28, 28)`."""
    return _bundled("mnist-sample", ("train", "validation", "test"))


def _bundled(name: str, splits: Sequence[str]) -> Sources:
    """Read the splits of a Parquet file in the package; the column `split` names the split of each row."""
    path = resources.files("raprune.data") / f"{name}.parquet"
    with resources.as_file(path) as file:
        table = pads.dataset(str(file), format="parquet").to_table()
    sources = {
        split: _source(
            pads.dataset(table.filter(pc.equal(table["split"], split))), DataSpec(), where=f"{name} ({split})"
        )
        for split in splits
    }
    return Sources(train=sources["train"], validation=sources.get("validation"), test=sources.get("test"))


def open_parquet(spec: DataSpec) -> Sources:
    """Open the training source at `spec.train`, and the sources at `spec.validation` and `spec.test` if given.

    Each path is a file, a folder, or a pattern such as `data/train-*.parquet`, local or on any filesystem of pyarrow
    (`s3://bucket/...`).

    Raises:
        UsageError: if there is no such file.
        DataError: if the file is no Parquet file, or lacks the image or label column.
    """
    if spec.train is None:
        raise UsageError(
            "data.train is not set: the path or URI of the training images in Parquet.",
            hint="For example --train train.parquet --test test.parquet.",
        )
    return Sources(
        train=_open(spec.train, spec, field="data.train"),
        validation=None if spec.validation is None else _open(spec.validation, spec, field="data.validation"),
        test=None if spec.test is None else _open(spec.test, spec, field="data.test"),
    )


def open_dataset(uri: str, *, field: str) -> pads.Dataset:
    """Open the Parquet files at a path, a folder or a pattern.

    Raises:
        UsageError: if there is no such file.
        DataError: if it is no Parquet file.
    """
    filesystem, path = _filesystem(uri, field=field)
    with _readable(uri):
        files = _files(filesystem, path)
        if not files:
            raise UsageError(
                f"{field} {uri}: no such file.",
                hint="A Parquet file, a folder of them or a pattern (train-*.parquet), local or as a URI.",
            )
        return pads.dataset(files, format="parquet", filesystem=filesystem)


def _open(uri: str, spec: DataSpec, *, field: str) -> EncodedSource:
    dataset = open_dataset(uri, field=field)
    with _readable(uri):
        return replace(_source(dataset, spec, where=uri), files=_parquet_files(dataset, spec, where=uri))


def open_images(uri: str, spec: DataSpec, *, field: str) -> EncodedSource:
    """Open the image column of Parquet files; all labels of the source are 0.

    Raises:
        UsageError: if there is no such file.
        DataError: if it is no Parquet file, or lacks the column.
    """
    dataset = open_dataset(uri, field=field)
    _check_column(dataset, spec.image_column, "data.image_column", where=uri)
    check_image_type(dataset.schema.field(spec.image_column).type, spec.image_column, uri)

    def fetch(rows: LabelArray) -> Blob:
        return fetch_images(dataset, spec.image_column, rows, uri)

    with _readable(uri):
        count = dataset.count_rows()
    return EncodedSource(uri, np.zeros(count, np.int64), None, fetch)


@dataclass(frozen=True)
class ParquetFiles:
    """The rows of Parquet files, read a row group at a time. Rows are numbered from 0 through all files in order."""

    where: str
    """The URI that the user gave; it determines the filesystem."""
    paths: tuple[str, ...]
    groups: LabelArray
    """Shape `(G, 2)`: for each row group the index in `paths`, and the number of the row group in that file."""
    starts: LabelArray
    """Shape `(G + 1,)`: the first row of each group, then the number of all rows."""
    image_column: str
    label_column: str

    def pieces(self, generator: np.random.Generator | None) -> list[LabelArray]:
        """Return the row numbers of each row group; the groups are in random order if there is a generator."""
        order = np.arange(len(self.groups)) if generator is None else generator.permutation(len(self.groups))
        return [np.arange(self.starts[group], self.starts[group + 1]) for group in order]

    def stamp(self) -> str:
        """Return a digest of the names, sizes and times of the files, their row groups and the two columns."""
        filesystem, _ = _filesystem(self.where, field="data.train")
        with _readable(self.where):
            found = filesystem.get_file_info(list(self.paths))
        files = [(info.base_name, info.size, info.mtime_ns) for info in found]
        columns = (self.image_column, self.label_column)
        return hashlib.sha256(repr((files, self.starts.tolist(), columns)).encode()).hexdigest()

    def read(self, rows: LabelArray) -> Iterator[EncodedRows]:
        """Yield some rows of one row group; `rows` are ascending."""
        group = int(np.searchsorted(self.starts, rows[0], side="right")) - 1
        file, number = self.groups[group].tolist()
        filesystem, _ = _filesystem(self.where, field="data.train")
        columns, start = [self.image_column, self.label_column], int(self.starts[group])
        with _readable(self.where), filesystem.open_input_file(self.paths[file]) as handle:
            parquet = pq.ParquetFile(handle, buffer_size=READ_BYTES, pre_buffer=False)
            for batch in parquet.iter_batches(READ_ROWS, row_groups=[number], columns=columns):
                first, last = np.searchsorted(rows, [start, start + len(batch)])
                if last > first:
                    chosen = rows[first:last]
                    yield _encoded(batch.take(pa.array(chosen - start)), chosen, self)
                start += len(batch)


def _parquet_files(dataset: pads.Dataset, spec: DataSpec, *, where: str) -> ParquetFiles:
    fragments = list(dataset.get_fragments())
    groups = [(file, group.id) for file, fragment in enumerate(fragments) for group in fragment.row_groups]
    counts = [group.num_rows for fragment in fragments for group in fragment.row_groups]
    return ParquetFiles(
        where=where,
        paths=tuple(fragment.path for fragment in fragments),
        groups=np.array(groups, np.int64).reshape(-1, 2),
        starts=np.cumsum([0, *counts], dtype=np.int64),
        image_column=spec.image_column,
        label_column=spec.label_column,
    )


def _encoded(batch: pa.RecordBatch, rows: LabelArray, files: ParquetFiles) -> EncodedRows:
    blobs = _blobs(batch[files.image_column], rows, files.where)
    return EncodedRows(rows, blobs.to_pylist(), batch[files.label_column].to_numpy().astype(np.int64))


@contextmanager
def _readable(where: str) -> Iterator[None]:
    """Turn the errors of pyarrow into a `DataError`."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"{where}: not readable as Parquet: {_first_line(error)}",
            hint="The file may be cut short or of another format, or its filesystem unreachable; try to read it with "
            "pandas.",
        ) from error


def _filesystem(uri: str, *, field: str) -> tuple[pafs.FileSystem, str]:
    if "://" not in uri:
        return pafs.LocalFileSystem(), uri
    try:
        filesystem, path = pafs.FileSystem.from_uri(uri)
    except (OSError, pa.ArrowException) as error:
        raise UsageError(
            f"{field} {uri}: no such filesystem: {_first_line(error)}",
            hint="Valid: a path, file://, s3://, gs://, hdfs://.",
        ) from error
    return filesystem, path


def _files(filesystem: pafs.FileSystem, path: str) -> list[str]:
    """Return the Parquet files that `path` names, sorted by name; a single file may have any name."""
    info = filesystem.get_file_info(path)
    if info.type == pafs.FileType.File:
        return [path]
    if info.type == pafs.FileType.Directory:
        found = filesystem.get_file_info(pafs.FileSelector(path, recursive=True))
        return sorted(item.path for item in found if item.is_file and item.path.endswith(".parquet"))
    parent, pattern = str(PurePosixPath(path).parent), PurePosixPath(path).name
    if not set("*?[") & set(pattern):
        return []
    found = filesystem.get_file_info(pafs.FileSelector(parent, allow_not_found=True))
    return sorted(item.path for item in found if item.is_file and fnmatch.fnmatchcase(item.base_name, pattern))


def _source(dataset: pads.Dataset, spec: DataSpec, *, where: str) -> EncodedSource:
    schema = dataset.schema
    for name, field in ((spec.image_column, "data.image_column"), (spec.label_column, "data.label_column")):
        _check_column(dataset, name, field, where=where)
    check_image_type(schema.field(spec.image_column).type, spec.image_column, where)

    def fetch(rows: LabelArray) -> Blob:
        return fetch_images(dataset, spec.image_column, rows, where)

    return EncodedSource(where, _labels(dataset, spec, where), label_names_of(schema, spec.label_column), fetch)


def _check_column(dataset: pads.Dataset, name: str, field: str, *, where: str) -> None:
    if name not in dataset.schema.names:
        raise DataError(
            f"{where}: no column {name!r}. Its columns: {', '.join(dataset.schema.names)}.",
            hint=f"Name the right column with {field}.",
        )


def check_image_type(kind: pa.DataType, column: str, where: str) -> None:
    """Refuse a column of another type than encoded images.

    Raises:
        DataError: with the type.
    """
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)):
        raise DataError(
            f"{where}: column {column!r} has type {kind}; images must be encoded bytes "
            f"(struct<bytes, path> or binary).",
            hint="Data sets of Hugging Face have this layout; name the right column with data.image_column.",
        )


def _labels(dataset: pads.Dataset, spec: DataSpec, where: str) -> LabelArray:
    column = dataset.to_table(columns=[spec.label_column])[spec.label_column]
    if not pa.types.is_integer(column.type):
        raise DataError(
            f"{where}: column {spec.label_column!r} has type {column.type}; labels must be integers from 0.",
            hint="Name the right column with data.label_column, or store the class numbers.",
        )
    if column.null_count:
        row = int(np.flatnonzero(column.is_null().to_numpy())[0])
        raise DataError(f"{where}: row {row} has no label.", hint="Remove the row, or add its label.")
    labels: LabelArray = column.to_numpy().astype(np.int64)
    return labels


def fetch_images(dataset: pads.Dataset, column: str, rows: LabelArray, where: str) -> Blob:
    """Read the encoded images of `rows` and return a function that gives the bytes of each of them by position.

    Raises:
        DataError: if a row has none, or they do not fit into memory.
    """
    whole = len(rows) == dataset.count_rows() and np.array_equal(rows, np.arange(len(rows)))
    files = getattr(dataset, "files", [])
    size = sum(info.size for info in dataset.filesystem.get_file_info(files)) if files else 0
    fraction = len(rows) / max(1, dataset.count_rows())
    check_memory(int(size * fraction), what=f"{where}: {len(rows):,} encoded images")
    with _readable(where):
        table = dataset.to_table(columns=[column]) if whole else dataset.take(pa.array(rows), columns=[column])
    # 32-bit offsets would overflow at 2 GiB when the chunks are joined.
    array = _blobs(table[column], rows, where).cast(pa.large_binary()).combine_chunks()
    return lambda position: array[position].as_py()


def _blobs(column: Any, rows: LabelArray, where: str) -> Any:
    """Return the column of encoded images: the binary column itself, or the field `bytes` of a struct column."""
    blobs: Any = pc.struct_field(column, "bytes") if pa.types.is_struct(column.type) else column
    if blobs.null_count:
        position = int(np.flatnonzero(blobs.is_null().to_numpy(zero_copy_only=False))[0])
        raise DataError(
            f"{where}: row {rows[position]} has no image bytes.",
            hint="Images that are given by a path must be embedded: `embed_storage` of Hugging Face datasets does so.",
        )
    return blobs


def label_names_of(schema: pa.Schema, column: str) -> tuple[str, ...] | None:
    """Return the names of the classes of a column, as the file has them; None if it has none."""
    metadata = schema.metadata or {}
    if b"label_names" in metadata:
        return tuple(metadata[b"label_names"].decode().split(","))
    if b"huggingface" not in metadata:
        return None
    try:
        names = json.loads(metadata[b"huggingface"])["info"]["features"][column]["names"]
    except (ValueError, KeyError, TypeError):
        return None
    return tuple(str(name) for name in names)


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
