"""A run's folder: every trial as a row of Parquet, on any pyarrow filesystem.

    RUN/run.json                          what was asked, and what the dense network is
    RUN/progress.json                     its stages, while a driver works on it
    RUN/trials/part-*, compact-*          one row a trial: Parquet files as `raprune.store.parts` names them
    RUN/writers/                          the process that writes the trials
    RUN/models/<candidate>/               networks
    RUN/report/                           figures

`pandas.read_parquet("RUN/trials")` and DuckDB's `from 'RUN/trials/*.parquet'` work at any time, without raprune; while
parts of a run under way are being compacted they may see a trial twice (`trial_id` tells).

A file appears whole or not at all: on a disk it is written under a hidden name in RUN and renamed, on S3 and GCS an
object is visible once it is complete. Readers need no lock: what a compaction removes while they read they look for
again.

One process writes the trials. It claims the run by a file in `RUN/writers`, removing those of earlier writers, and
looks after each part that its file is still there, before it says that the part is recorded. So a writer that was
replaced, perhaps on a cluster that was believed dead, learns of it with its next part; that part has a name of its own
and overwrites nothing. A part is written without asking the filesystem first: one fsync of the file and one of its
folder on a disk, one PUT on S3.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import json
import os
import re
import socket
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from pydantic import ValidationError

from raprune.errors import StoreError
from raprune.records import Trial
from raprune.store.address import public_address
from raprune.store.local import temporary_name, write_local
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
from raprune.store.retry import AT_ONCE, Patience, hint_of, passes
from raprune.store.rows import OUTLINE, SCHEMA, Row, from_rows, to_row

RUN_FILE = "run.json"
TRIALS = "trials"
WRITERS = "writers"
LOCK = ".lock"

READERS = 8
"""Parts that are read at once."""
ROWS = 4096
"""Trials in a row group of a file, which are unpacked at once."""

T = TypeVar("T")


class MissingFileError(StoreError):
    """A file that is to be read is not there."""


class UnreachableStoreError(StoreError):
    """A filesystem that did not answer for as long as there was patience; another machine may reach it."""


class Store:
    """The folder of one run. `uri` is a path, or the URI of a pyarrow filesystem (`s3://bucket/run`, `gs://...`).

    Opening does not touch the folder. It pickles: each process opens the filesystem for itself.

    With the `patience` of a run under way, calls wait for a filesystem that is unavailable, and the folder must exist:
    where its disk is no longer mounted, no new folder may be made below it. `on_wait` is called with the reason of a
    wait, and with None when the wait ends; it does not pickle.

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
        text = os.fspath(uri)
        # A worker on this node may have another working folder.
        self.uri = text if "://" in text else os.path.abspath(os.path.expanduser(text))
        self.name = public_address(self.uri)
        """The URI without credentials, for messages."""
        self.small_parts = 0
        """Parts of this writer's run that are not compacted."""
        self._patience = patience
        self._on_wait = on_wait
        self._writer: str | None = None
        self._is_replaced = False
        self._next_part = 0
        self._ids: set[str] | None = None

    def __reduce__(self) -> tuple[Callable[[str, Patience], Store], tuple[str, Patience]]:
        return _reopen, (self.uri, self._patience)

    def __repr__(self) -> str:
        return f"Store({self.name!r})"

    def patient(self, patience: Patience, on_wait: Callable[[str | None], None] | None = None) -> Store:
        """The same folder for a run under way, with this patience."""
        return Store(self.uri, patience=patience, on_wait=on_wait)

    def told(self, on_wait: Callable[[str | None], None]) -> Store:
        """The same folder with the same patience, which reports its waits to `on_wait`."""
        return Store(self.uri, patience=self._patience, on_wait=on_wait)

    def make(self) -> None:
        """Make the folder, if it does not exist."""
        if "://" not in self.uri:
            Store(self.uri)._try("write", "", lambda: Path(self.uri).mkdir(parents=True, exist_ok=True))

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

    def exists(self, rel: str) -> bool:
        """True if the folder holds the file `rel`."""

        def is_file() -> bool:
            return bool(self._filesystem.get_file_info(f"{self._path}/{rel}").type == pafs.FileType.File)

        return self._try("read", rel, is_file)

    def inside(self, name: str) -> Store:
        """The folder `name` in this folder, on the filesystem that this one has opened."""
        # A URI may end in a query: the options of its filesystem.
        place, mark, query = self.uri.partition("?") if "://" in self.uri else (self.uri, "", "")
        found = Store(f"{place.rstrip('/')}/{name}{mark}{query}", patience=self._patience)
        filesystem, path = self._try("read", "", lambda: self._opened)
        found.__dict__["_opened"] = (filesystem, f"{path}/{name}")
        return found

    def folders(self) -> list[str] | None:
        """The names of the folders in this folder, sorted; None if this folder does not exist."""

        def read() -> list[str] | None:
            if self._filesystem.get_file_info(self._path).type != pafs.FileType.Directory:
                return None
            found = self._filesystem.get_file_info(pafs.FileSelector(self._path, allow_not_found=True))
            return sorted(info.base_name for info in found if info.type == pafs.FileType.Directory)

        return self._try("read", "", read)

    def names(self, rel: str) -> list[str]:
        """The names of files and folders in the folder `rel`, sorted; none if it does not exist."""

        def read() -> list[str]:
            selector = pafs.FileSelector(f"{self._path}/{rel}", allow_not_found=True)
            try:
                return sorted(info.base_name for info in self._filesystem.get_file_info(selector))
            except FileNotFoundError:
                # Taken away while it was listed: pyarrow looks first whether it is there.
                return []

        return self._try("read", rel, read)

    def read_bytes(self, rel: str) -> bytes:
        """The content of the file `rel`."""
        return self._try("read", rel, lambda: self._content(rel))

    def size(self, rel: str) -> int | None:
        """Bytes of the file `rel`; None if it does not exist."""

        def read() -> int | None:
            found = self._filesystem.get_file_info(f"{self._path}/{rel}")
            return int(found.size) if found.type == pafs.FileType.File else None

        return self._try("read", rel, read)

    def chunks(self, rel: str, size: int = 2**20) -> Iterator[bytes]:
        """The content of the file `rel`, in pieces of so many bytes: for files that are larger than memory."""
        file = self._try("read", rel, lambda: self._filesystem.open_input_stream(f"{self._path}/{rel}"))
        with file:
            while piece := self._try("read", rel, lambda: bytes(file.read(size))):
                yield piece

    def write_bytes(self, rel: str, content: bytes) -> None:
        """Write the file `rel`, whole or not at all; a file of that name is replaced."""

        def write() -> None:
            if isinstance(self._filesystem, pafs.LocalFileSystem):
                write_local(Path(self._path), rel, content)
            else:
                self._write_remote(rel, content)

        self._try("write", rel, write)

    def remove(self, rel: str) -> None:
        """Delete the file `rel`, if it exists."""

        def remove() -> None:
            if self._filesystem.get_file_info(f"{self._path}/{rel}").type == pafs.FileType.File:
                self._filesystem.delete_file(f"{self._path}/{rel}")

        self._try("remove", rel, remove)

    def remove_folder(self, rel: str) -> None:
        """Delete the folder `rel` with its content, if it exists."""

        def remove() -> None:
            path = f"{self._path}/{rel}"
            if self._filesystem.get_file_info(path).type == pafs.FileType.Directory:
                self._filesystem.delete_dir(path)

        self._try("remove", rel, remove)

    def read_json(self, rel: str) -> Any:
        """The content of the JSON file `rel`."""
        try:
            return json.loads(self.read_bytes(rel))
        except ValueError as error:
            raise StoreError(f"{self.name}/{rel}: damaged: {error}", hint="Restore it from a backup.") from None

    def write_json(self, rel: str, content: Any) -> None:
        """Write plain data as the JSON file `rel`."""
        self.write_bytes(rel, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())

    @property
    def location(self) -> tuple[pafs.FileSystem, str]:
        """The filesystem, and the folder's path on it."""
        return self._opened

    @cached_property
    def _opened(self) -> tuple[pafs.FileSystem, str]:
        if "://" not in self.uri:
            return pafs.LocalFileSystem(), self.uri
        try:
            filesystem, path = pafs.FileSystem.from_uri(_with_one_put(self.uri))
        except (pa.ArrowException, OSError, ValueError) as error:
            if passes(error):
                # S3 is asked for the bucket's region.
                raise
            raise StoreError(
                f"{self.name}: no filesystem opens this: {self._without_secrets(str(error))}",
                hint="Give a path, or a URI that pyarrow reads: s3://bucket/run, gs://bucket/run, file:///folder.",
            ) from None
        return filesystem, path.rstrip("/")

    @property
    def _filesystem(self) -> pafs.FileSystem:
        return self._opened[0]

    @property
    def _path(self) -> str:
        return self._opened[1]

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

    def _write_remote(self, rel: str, content: bytes) -> None:
        final = f"{self._path}/{rel}"
        if self._filesystem.type_name in ("s3", "gcs", "abfs"):
            # An object appears when its upload is completed, which closing the stream does.
            with self._filesystem.open_output_stream(final) as file:
                file.write(content)
            return
        temporary = f"{self._path}/{temporary_name(rel)}"
        self._filesystem.create_dir(final.rpartition("/")[0], recursive=True)
        with self._filesystem.open_output_stream(temporary) as file:
            file.write(content)
        self._filesystem.move(temporary, final)

    def _content(self, rel: str) -> bytes:
        with self._filesystem.open_input_file(f"{self._path}/{rel}") as file:
            return bytes(file.read())

    def _try(self, verb: str, rel: str, act: Callable[[], T]) -> T:
        """Return the result of `act`, tried as long as there is patience. `act` must allow repetition."""
        began, failures = time.monotonic(), 0
        while True:
            try:
                if self._is_gone():
                    raise OSError(errno.ENOENT, "the folder is gone; was it moved, or its disk unmounted?")
                result = act()
                break
            except (OSError, pa.ArrowException) as error:
                began = began if failures else time.monotonic()
                failures += 1
                wait_s = (
                    self._patience.wait_s(failures, time.monotonic() - began)
                    if passes(error) or self._is_gone()
                    else None
                )
                reason = self._reason(error)
                if wait_s is None:
                    waited = f" (tried {failures} times)" if failures > 1 else ""
                    where = f"{self.name}/{rel}".rstrip("/")
                    kind = MissingFileError if isinstance(error, FileNotFoundError) else StoreError
                    if passes(error) or self._is_gone():
                        kind = UnreachableStoreError
                    raise kind(f"{where}: cannot {verb}{waited}: {reason}.", hint=hint_of(error, verb)) from error
                if failures == 1 and self._on_wait is not None:
                    self._on_wait(
                        f"{self.name} does not answer: {reason}. Waiting up to {self._patience.total_s:.0f} s."
                    )
            time.sleep(wait_s)
        if failures and self._on_wait is not None:
            self._on_wait(None)
        return result

    def _is_gone(self) -> bool:
        """True if the folder is missing although a run is under way in it."""
        return self._patience.total_s > 0 and "://" not in self.uri and not os.path.isdir(self.uri)

    def _reason(self, error: BaseException) -> str:
        text = error.strerror if isinstance(error, OSError) and error.strerror else str(error).strip().splitlines()[0]
        # The message names the file already.
        text = re.sub(r"^When .*?: (?=AWS Error)", "", text)
        return self._without_secrets(text).rstrip(".")

    def _without_secrets(self, text: str) -> str:
        secrets = re.findall(r"//([^/@]*)@", self.uri) + re.findall(r"(?:key|secret|token|password)=([^&]+)", self.uri)
        text = text.replace(self.uri, self.name)
        for secret in sorted({part for found in secrets for part in (found, *found.split(":")) if part}, key=len)[::-1]:
            text = text.replace(secret, "***")
        return text


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


def _with_one_put(uri: str) -> str:
    """The URI with the option by which a small object is one request on S3, instead of three."""
    if not uri.startswith("s3://") or "allow_delayed_open=" in uri:
        return uri
    return f"{uri}{'&' if '?' in uri else '?'}allow_delayed_open=true"


def _reopen(uri: str, patience: Patience) -> Store:
    return Store(uri, patience=patience)
