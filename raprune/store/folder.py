"""A run's folder: every trial as a row of Parquet, on any pyarrow filesystem.

    RUN/run.json                          what was asked, and what the dense network is
    RUN/progress.json                     its stages, while a driver works on it
    RUN/trials/part-*, compact-*          one row a trial: Parquet files as `raprune.store.parts` names them
    RUN/writers/                          the process that writes the trials
    RUN/models/<candidate>/               networks
    RUN/report/                           figures

`pandas.read_parquet("RUN/trials")` and DuckDB's `from 'RUN/trials/*.parquet'` work at any time, without raprune; while
parts of a run under way are being compacted they may see a trial twice (`trial_id` tells).

A file appears whole or not at all (`raprune.store.files`). Readers need no lock: what a compaction removes while they
read they look for again.

One process writes the trials. It claims the run by a file in `RUN/writers`, removing those of earlier writers, and
looks after each part that its file is still there, before it says that the part is recorded. So a writer that was
replaced, perhaps on a cluster that was believed dead, learns of it with its next part; that part has a name of its own
and overwrites nothing. A part is written without asking the filesystem first: one fsync of the file and one of its
folder on a disk, one PUT on S3.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import socket
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import ValidationError

from raprune.errors import StoreError
from raprune.records import Trial
from raprune.store.files import Files, MissingFileError, T
from raprune.store.parts import (
    SMALL_PARTS,
    TrialFile,
    compact_name,
    counting,
    has_gap,
    overlap,
    part_name,
    parts_of,
    replaced,
    to_be_compacted,
)
from raprune.store.record import RecordedJob, RunRecord
from raprune.store.retry import AT_ONCE, Patience
from raprune.store.rows import OUTLINE, SCHEMA, Row, from_rows, to_row

RUN_FILE = "run.json"
TRIALS = "trials"
WRITERS = "writers"
LOCK = ".lock"

READERS = 8
"""Parts that are read at once."""
ROWS = 4096
"""Trials in a row group of a file, which are unpacked at once."""


class Store(Files):
    """The folder of one run. `uri` is a path, or the URI of a pyarrow filesystem (`s3://bucket/run`, `gs://...`).

    Opening does not touch the folder. Each process that gets it opens the filesystem for itself; one of them writes.

    Raises:
        StoreError: if the URI names no filesystem; from every method, if the folder cannot be read or written.
    """

    def __init__(
        self,
        uri: str | os.PathLike[str],
        *,
        patience: Patience = AT_ONCE,
        on_wait: Callable[[str | None], None] | None = None,
    ) -> None:
        super().__init__(uri, patience=patience, on_wait=on_wait)
        self.small_parts = 0
        """Parts of this writer's run that are not compacted."""
        self._writer: str | None = None
        self._is_replaced = False
        self._next_part = 0
        self._ids: set[str] | None = None

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder for this process during the block; the system unlocks it when the process dies.

        Folders of a disk, or of a network filesystem with locks, are locked; object stores have no locks.

        Raises:
            StoreError: if another process has it.
        """
        if "://" in self.uri:
            yield
            return
        with self._try("write", LOCK, lambda: open(os.path.join(self.uri, LOCK), "a+")) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                raise StoreError(
                    f"{self.name}: another process works on this run ({file.read().strip() or 'unknown'}).",
                    hint=f"See how far it is: raprune status {self.name}   End it before you resume the run.",
                ) from None
            except OSError:
                # A filesystem without locks.
                pass
            else:
                file.truncate(0)
                file.write(f"{socket.gethostname()}, process {os.getpid()}")
                file.flush()
            yield

    def create(self, run: RunRecord) -> None:
        """Make the folder and write `run.json`.

        Raises:
            StoreError: if a run is there already.
        """
        if self.is_run():
            raise StoreError(
                f"{self.name}: holds a run already.",
                hint=f"Resume it: raprune resume {self.name}   Or give the new run another --output.",
            )
        self.write_json(RUN_FILE, run.to_json())

    def is_run(self) -> bool:
        """True if the folder holds a run."""
        return self.exists(RUN_FILE)

    # A JSON edge: the content as it was written. `record` is what others read.
    def run(self) -> dict[str, Any]:
        """Return the content that `create` wrote.

        Raises:
            StoreError: if the folder holds no run.
        """
        if not self.is_run():
            raise StoreError(
                f"{self.name}: not the folder of a run (it has no {RUN_FILE}).",
                hint="Give the --output of a `raprune search`; its last line names it.",
            )
        run = self.read_json(RUN_FILE)
        if not isinstance(run, dict):
            raise StoreError(f"{self.name}/{RUN_FILE}: damaged: not a JSON object.", hint="Restore it from a backup.")
        return run

    def record(self) -> RunRecord:
        """The run as `run.json` describes it, typed.

        Raises:
            StoreError: if the folder holds no run, or its description cannot be read.
        """
        content, part = self.run(), "spec"
        try:
            RecordedJob.model_validate(content.get("spec", {}))
            part = ""
            return RunRecord.model_validate(content)
        except ValidationError as error:
            (first, *_) = error.errors()
            where = ".".join(str(name) for name in (part, *first["loc"]) if name != "")
            raise StoreError(
                f"{self.name}/{RUN_FILE} is not understood: {where}: {first['msg']}.",
                hint="Restore it from a backup, or read it by the version of raprune that wrote it.",
            ) from None

    def note(self, changes: Mapping[str, object]) -> None:
        """Write these fields of `run.json`, each plain data; the other fields stay.

        Raises:
            StoreError: if the folder holds no run.
        """
        self.write_json(RUN_FILE, self.run() | dict(changes))

    def claim(self, *, channels: bool = True) -> list[Trial]:
        """Become the run's only writer, and return the recorded trials, with the channels that stay or without.

        From now on an earlier writer is refused. `append` claims the run by itself; a process that wants to know the
        trials as well calls this first.
        """
        self._claim_run()
        trials = self.trials(channels=channels)
        self._ids = {trial.trial_id for trial in trials}
        # A writer lives as long as its run; Arrow would keep what it read the files into, half a gigabyte of 100,000.
        pa.default_memory_pool().release_unused()
        return trials

    def append(self, trials: Sequence[Trial]) -> None:
        """Add the trials as one new part, which is durable when this returns.

        Raises:
            StoreError: if a trial of that id is recorded already, or if another process writes the run by now.
        """
        if self._writer is None:
            self._claim_run()
        if self._is_replaced:
            self._check_claim()
        if self._ids is None:
            self._ids = {row["trial_id"] for row in self.rows(["trial_id"])}
        ids = [trial.trial_id for trial in trials]
        repeated = sorted({trial_id for i, trial_id in enumerate(ids) if trial_id in self._ids or trial_id in ids[:i]})
        if repeated:
            raise StoreError(
                f"{self.name}: trial {', '.join(repeated)} is recorded already.",
                hint="Two processes may be writing this run; a run has one writer.",
            )
        if not trials:
            return
        assert self._writer is not None, "claimed above"
        table = pa.Table.from_pylist([to_row(trial) for trial in trials], schema=SCHEMA)
        self._write_table(f"{TRIALS}/{part_name(self._next_part, self._writer)}", table)
        self._check_claim()
        self._next_part += 1
        self.small_parts += 1
        self._ids.update(ids)

    def compact(self, above: int = SMALL_PARTS) -> int:
        """Put the parts together if there are more than `above`; return the number of files that became one.

        Only the writer of the run compacts it; it may do so while it appends. A process that ends at any point of this
        leaves every trial readable once; the next compaction removes what it left.

        Raises:
            StoreError: if a part cannot be read, or if another process writes the run by now; the parts stay.
        """
        assert self._writer is not None, "the run is claimed first"
        found = parts_of(self.names(TRIALS))
        self._delete(replaced(found))
        known = counting(found)
        batch = to_be_compacted(known, above)
        self.small_parts = sum(not part.is_compact for part in known if part not in batch)
        if batch:
            self._write_table(f"{TRIALS}/{compact_name(batch, self._writer)}", self._read_parts(batch, SCHEMA))
            self._check_claim()
            self._delete(batch)
        return len(batch)

    def trials(self, only: Collection[str] | None = None, *, channels: bool = True) -> list[Trial]:
        """The recorded trials in the order of their records: all, or those of the ids in `only`.

        Without `channels` the channels that stay are left in the store, which is nine tenths of the bytes.
        """
        wanted = SCHEMA if channels else pa.schema([SCHEMA.field(name) for name in OUTLINE])
        ids = None if only is None else pa.array(sorted(only), pa.string())

        def read(parts: Sequence[TrialFile]) -> list[Trial]:
            found: list[Trial] = []
            for table in self._tables(parts, wanted):
                if ids is not None:
                    table = table.filter(pc.is_in(table["trial_id"], value_set=ids))
                found += from_rows(_rows(table))
            return found

        return self._read_listed(read)

    def rows(self, columns: Sequence[str] | None = None, parts: Sequence[TrialFile] | None = None) -> list[Row]:
        """The recorded trials as rows of `SCHEMA`, or of some columns of it, in the order of their records."""
        return list(_rows(self.table(columns, parts)))

    def table(self, columns: Sequence[str] | None = None, parts: Sequence[TrialFile] | None = None) -> pa.Table:
        """The recorded trials, or those of some of the `parts`, as one table of `SCHEMA` or of some columns of it.

        Raises:
            MissingFileError: if one of the `parts` is not there any more: it was compacted since they were listed.
        """
        wanted = SCHEMA if columns is None else pa.schema([SCHEMA.field(name) for name in columns])
        if parts is not None:
            return self._read_parts(parts, wanted)
        return self._read_listed(lambda listed: self._read_parts(listed, wanted))

    def parts(self) -> list[TrialFile]:
        """The files that hold each recorded trial once, in the order of their records; none is ever changed."""
        found = parts_of(self.names(TRIALS))
        while has_gap(found):
            before, found = found, parts_of(self.names(TRIALS))
            if before == found:
                # Somebody has taken a part away, such as a damaged one.
                break
        return counting(found)

    def _claim_run(self) -> None:
        writer = uuid.uuid4().hex[:8]
        self.write_json(f"{WRITERS}/{writer}", {"host": socket.gethostname(), "process": os.getpid()})
        for name in self.names(WRITERS):
            if name != writer:
                self.remove(f"{WRITERS}/{name}")
        # Listed once no other writer can add a part that it calls recorded.
        parts = self.parts()
        self._writer = writer
        self._next_part = 1 + max((part.last for part in parts), default=-1)
        self.small_parts = sum(not part.is_compact for part in parts)

    def _check_claim(self) -> None:
        """Raise if another process has claimed the run. Written parts stay: the other process may know them."""
        self._is_replaced = self._is_replaced or not self.exists(f"{WRITERS}/{self._writer}")
        if self._is_replaced:
            raise StoreError(
                f"{self.name}: another process writes this run.",
                hint=f"See how far it is: raprune status {self.name}   What it records stays; this process ends.",
            )

    def _read_listed(self, read: Callable[[Sequence[TrialFile]], T]) -> T:
        """Result of `read` for the files that count; it is called again if one of them was compacted meanwhile."""
        listed = self.parts()
        while True:
            try:
                return read(listed)
            except MissingFileError:
                before, listed = listed, self.parts()
                if before == listed:
                    raise

    def _tables(self, parts: Sequence[TrialFile], wanted: pa.Schema) -> Iterator[pa.Table]:
        """The trials of these files, some thousands at a time: as one table they take more memory than their trials."""
        if overlap(parts):
            yield self._read_parts(parts, wanted)
            return
        for is_compact, some in groupby(parts, key=lambda part: part.is_compact):
            files = list(some)
            if is_compact:
                for part in files:
                    yield from self._row_groups(part, wanted)
            else:
                for start in range(0, len(files), READERS):
                    yield self._read_parts(files[start : start + READERS], wanted)

    def _row_groups(self, part: TrialFile, wanted: pa.Schema) -> Iterator[pa.Table]:
        """The trials of a compact file, `ROWS` at a time."""
        content = self._try("read", TRIALS, lambda: self._content(f"{TRIALS}/{part.name}"))

        def opened() -> pq.ParquetFile:
            return _parquet(part.name, lambda: pq.ParquetFile(pa.BufferReader(content)))

        file = self._try("read", TRIALS, opened)
        names = [name for name in wanted.names if name in file.schema_arrow.names]
        for number in range(file.num_row_groups):

            def group(number: int = number) -> pa.Table:
                return _parquet(part.name, lambda: file.read_row_group(number, columns=names))

            table = self._try("read", TRIALS, group)
            yield pa.concat_tables([wanted.empty_table(), table], promote_options="default").select(wanted.names)

    def _read_parts(self, parts: Sequence[TrialFile], wanted: pa.Schema) -> pa.Table:
        """The trials of these files as one table, each once."""
        twice = overlap(parts)
        names = [*wanted.names, *(["trial_id"] if twice and "trial_id" not in wanted.names else [])]

        def part(name: str) -> pa.Table:
            content = self._content(f"{TRIALS}/{name}")
            return _parquet(name, lambda: pq.ParquetFile(pa.BufferReader(content)).read(columns=names))

        def read() -> pa.Table:
            # Not by pyarrow.dataset, which loads pandas: half a second of every command that reads a run.
            with ThreadPoolExecutor(READERS) as readers:
                found = [wanted.empty_table(), *readers.map(part, [each.name for each in parts])]
            # Columns that a part lacks, as it is older than they are, come out null.
            table = pa.concat_tables(found, promote_options="default")
            if twice:
                ids = table["trial_id"].to_pylist()
                table = table.take(sorted({trial_id: at for at, trial_id in reversed(list(enumerate(ids)))}.values()))
            return table.select(wanted.names)

        return self._try("read", TRIALS, read)

    def _write_table(self, rel: str, table: pa.Table) -> None:
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd", row_group_size=ROWS)
        self.write_bytes(rel, buffer.getvalue())

    def _delete(self, parts: Sequence[TrialFile]) -> None:
        """Remove files of trials that were seen in a listing."""

        def delete(part: TrialFile) -> None:
            def act() -> None:
                # The call before this one may have been cut off after it had removed the file.
                with contextlib.suppress(FileNotFoundError):
                    self._filesystem.delete_file(f"{self._path}/{TRIALS}/{part.name}")

            self._try("remove", f"{TRIALS}/{part.name}", act)

        with ThreadPoolExecutor(READERS) as readers:
            list(readers.map(delete, parts))


def _parquet(name: str, read: Callable[[], T]) -> T:
    """Result of reading the content of the file `name`."""
    try:
        return read()
    except (OSError, ValueError, pa.ArrowException) as error:
        # Not the filesystem's failure, whatever pyarrow calls it: the content is here.
        raise pa.ArrowInvalid(f"{name}: {error}") from error


def _rows(table: pa.Table) -> Iterator[Row]:
    """The rows of a table, some thousands at a time: all of them as Python's objects would fill the memory."""
    for batch in table.to_batches(max_chunksize=ROWS):
        yield from batch.to_pylist()
