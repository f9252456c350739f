"""A run's folder: every trial as a row of Parquet, on any pyarrow filesystem.

    RUN/run.json                          what was asked, and what the dense network is
    RUN/progress.json                     its stages, while a driver works on it
    RUN/trials/part-000000.parquet, ...   one row a trial; parts are only ever added
    RUN/models/<candidate>/               networks
    RUN/report/                           figures

`pandas.read_parquet("RUN/trials")` and DuckDB's `from 'RUN/trials/*.parquet'` work at any time, without raprune.
One process writes. A file appears whole or not at all: on a disk it is written under a hidden name in RUN and
renamed, on S3 and GCS an object is visible once it is complete. Whoever reads needs no lock.
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from pydantic import ValidationError

from raprune.errors import StoreError
from raprune.records import Trial
from raprune.store.address import public_address
from raprune.store.local import temporary_name, write_local
from raprune.store.record import RecordedJob, RunRecord
from raprune.store.retry import AT_ONCE, Patience, hint_of, passes
from raprune.store.rows import SCHEMA, Row, from_row, to_row

RUN_FILE = "run.json"
TRIALS = "trials"
LOCK = ".lock"

READERS = 8
"""Parts that are read at once."""

T = TypeVar("T")


class Store:
    """The folder of one run. `uri` is a path, or the URI of a pyarrow filesystem (`s3://bucket/run`, `gs://...`).

    Opening does not touch the folder. It pickles: each process opens the filesystem anew.

    With `patience`, that of a run under way, a filesystem that is away is waited for, and the folder has to be there:
    one on a disk that is no longer mounted must not be begun anew beside it. `on_wait` is told why it waits, and None
    once it goes on; it does not pickle.

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
        """The URI without what may hold a secret: fit for messages."""
        self._patience = patience
        self._on_wait = on_wait

    def __reduce__(self) -> tuple[Callable[[str, Patience], Store], tuple[str, Patience]]:
        return _reopen, (self.uri, self._patience)

    def __repr__(self) -> str:
        return f"Store({self.name!r})"

    def patient(self, patience: Patience, on_wait: Callable[[str | None], None] | None = None) -> Store:
        """The same folder for a run under way."""
        return Store(self.uri, patience=patience, on_wait=on_wait)

    def told(self, on_wait: Callable[[str | None], None]) -> Store:
        """The same folder with the same patience, which tells of its waiting."""
        return Store(self.uri, patience=self._patience, on_wait=on_wait)

    def make(self) -> None:
        """Makes the folder, if it is not there."""
        if "://" not in self.uri:
            Store(self.uri)._try("write", "", lambda: Path(self.uri).mkdir(parents=True, exist_ok=True))

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """The folder for this process alone, for the time of the block; the system lets go when the process dies.

        Only folders of a disk, or of a network's filesystem that has locks; object stores have none.

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
                    f"{self.name}: another process works on this run ({file.read().strip() or 'it did not say who'}).",
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
        """Makes the folder and writes `run.json`.

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
        """Writes these fields of `run.json`, each plain data; the others stay.

        Raises:
            StoreError: if the folder holds no run.
        """
        self.write_json(RUN_FILE, self.run() | dict(changes))

    def append(self, trials: Sequence[Trial]) -> None:
        """Adds the trials as one new part, on the disk before this returns.

        Raises:
            StoreError: if a trial of that id is there already: each is recorded once.
        """
        ids = [trial.trial_id for trial in trials]
        repeated = sorted({trial_id for i, trial_id in enumerate(ids) if trial_id in self._ids or trial_id in ids[:i]})
        if repeated:
            raise StoreError(
                f"{self.name}: trial {', '.join(repeated)} is recorded already.",
                hint="Two processes may be writing this run; a run has one writer.",
            )
        if not trials:
            return
        table = pa.Table.from_pylist([to_row(trial) for trial in trials], schema=SCHEMA)
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd")
        path = f"{TRIALS}/part-{self._next_part:06d}.parquet"
        if self.exists(path):
            raise StoreError(f"{self.name}/{path}: another process writes this run.", hint="Stop one of the two.")
        self.write_bytes(path, buffer.getvalue())
        self._next_part += 1
        self._ids.update(ids)

    def trials(self) -> list[Trial]:
        """All recorded trials, in the order in which they were appended."""
        return [from_row(row) for row in self.rows()]

    def rows(self, columns: Sequence[str] | None = None, parts: Sequence[str] | None = None) -> list[Row]:
        """The recorded trials as rows of `SCHEMA`, or of some columns of it, in the order of their records."""
        return list(self.table(columns, parts).to_pylist())

    def table(self, columns: Sequence[str] | None = None, parts: Sequence[str] | None = None) -> pa.Table:
        """The recorded trials, or those of some of the `parts`, as one table of `SCHEMA` or of some columns of it."""
        names = self.parts() if parts is None else parts
        wanted = SCHEMA if columns is None else pa.schema([SCHEMA.field(name) for name in columns])

        def part(name: str) -> pa.Table:
            content = self._content(f"{TRIALS}/{name}")
            try:
                return pq.ParquetFile(pa.BufferReader(content)).read(columns=wanted.names)
            except (OSError, ValueError, pa.ArrowException) as error:
                # Not the filesystem's failure, whatever pyarrow calls it: the content is here.
                raise pa.ArrowInvalid(f"{name}: {error}") from error

        def read() -> pa.Table:
            # Not by pyarrow.dataset, which loads pandas: half a second of every command that reads a run.
            with ThreadPoolExecutor(READERS) as readers:
                found = [wanted.empty_table(), *readers.map(part, names)]
            # Columns that a part lacks, as it is older than they are, come out null.
            return pa.concat_tables(found, promote_options="default").select(wanted.names)

        return self._try("read", TRIALS, read)

    def exists(self, rel: str) -> bool:
        """True if the folder holds the file `rel`."""

        def is_file() -> bool:
            return bool(self._filesystem.get_file_info(f"{self._path}/{rel}").type == pafs.FileType.File)

        return self._try("read", rel, is_file)

    def parts(self) -> list[str]:
        """The names of the files of trials, in the order in which they were added; none is ever changed."""
        return [name for name in self.names(TRIALS) if re.fullmatch(r"part-\d+\.parquet", name)]

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
        """The names of files and folders in the folder `rel`, sorted; none if it is not there."""

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
        """Bytes of the file `rel`; None if it is not there."""

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
        """Writes the file `rel`, whole or not at all; a file of that name is replaced."""

        def write() -> None:
            if isinstance(self._filesystem, pafs.LocalFileSystem):
                write_local(Path(self._path), rel, content)
            else:
                self._write_remote(rel, content)

        self._try("write", rel, write)

    def remove(self, rel: str) -> None:
        """Deletes the file `rel`, if it is there."""

        def remove() -> None:
            if self._filesystem.get_file_info(f"{self._path}/{rel}").type == pafs.FileType.File:
                self._filesystem.delete_file(f"{self._path}/{rel}")

        self._try("remove", rel, remove)

    def remove_folder(self, rel: str) -> None:
        """Deletes the folder `rel` with all that is in it, if it is there."""

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
        """Writes plain data as the JSON file `rel`."""
        self.write_bytes(rel, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())

    @property
    def location(self) -> tuple[pafs.FileSystem, str]:
        """The filesystem, and the folder's path on it: for others that write there."""
        return self._opened

    @cached_property
    def _opened(self) -> tuple[pafs.FileSystem, str]:
        if "://" not in self.uri:
            return pafs.LocalFileSystem(), self.uri
        try:
            filesystem, path = pafs.FileSystem.from_uri(self.uri)
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

    @cached_property
    def _ids(self) -> set[str]:
        return {row["trial_id"] for row in self.rows(["trial_id"])}

    @cached_property
    def _next_part(self) -> int:
        return 1 + max((int(re.sub(r"\D", "", name)) for name in self.parts()), default=-1)

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
                    raise StoreError(f"{where}: cannot {verb}{waited}: {reason}.", hint=hint_of(error, verb)) from error
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


def _reopen(uri: str, patience: Patience) -> Store:
    return Store(uri, patience=patience)
