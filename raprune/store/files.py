"""The files of a folder, on any pyarrow filesystem, each whole or not at all.

On a disk a file is written under a hidden name and renamed, on S3 and GCS an object is visible once it is complete.
Calls wait for a filesystem that is unavailable for as long as there is patience; messages name the folder without its
credentials.
"""

from __future__ import annotations

import errno
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Self, TypeVar

import pyarrow as pa
import pyarrow.fs as pafs

from raprune.errors import StoreError
from raprune.store.address import public_address
from raprune.store.local import temporary_name, write_local
from raprune.store.retry import AT_ONCE, Patience, hint_of, passes

READS, BETWEEN_READS_S = 10, 0.05
"""Times that a JSON object of an object store is read until it is whole, while another process replaces it."""

T = TypeVar("T")
F = TypeVar("F", bound="Files")


class MissingFileError(StoreError):
    """A file that is to be read is not there."""


class UnreachableStoreError(StoreError):
    """A filesystem that did not answer for as long as there was patience; another machine may reach it."""


class Files:
    """A folder of files on any pyarrow filesystem. `uri` is a path, or a URI (`s3://bucket/run`, `gs://...`).

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
        self._patience = patience
        self._on_wait = on_wait

    def __reduce__(self) -> tuple[Callable[[type[Self], str, Patience], Self], tuple[type[Self], str, Patience]]:
        return _reopen, (type(self), self.uri, self._patience)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"

    def patient(self, patience: Patience, on_wait: Callable[[str | None], None] | None = None) -> Self:
        """The same folder for a run under way, with this patience."""
        return type(self)(self.uri, patience=patience, on_wait=on_wait)

    def told(self, on_wait: Callable[[str | None], None]) -> Self:
        """The same folder with the same patience, which reports its waits to `on_wait`."""
        return type(self)(self.uri, patience=self._patience, on_wait=on_wait)

    def make(self) -> None:
        """Make the folder, if it does not exist."""
        if "://" not in self.uri:
            type(self)(self.uri)._try("write", "", lambda: Path(self.uri).mkdir(parents=True, exist_ok=True))

    def exists(self, rel: str) -> bool:
        """True if the folder holds the file `rel`."""

        def is_file() -> bool:
            return bool(self._filesystem.get_file_info(f"{self._path}/{rel}").type == pafs.FileType.File)

        return self._try("read", rel, is_file)

    def inside(self, name: str) -> Self:
        """The folder `name` in this folder, on the filesystem that this one has opened."""
        # A URI may end in a query: the options of its filesystem.
        place, mark, query = self.uri.partition("?") if "://" in self.uri else (self.uri, "", "")
        found = type(self)(f"{place.rstrip('/')}/{name}{mark}{query}", patience=self._patience)
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
        problem: ValueError | None = None
        for attempt in range(READS if "://" in self.uri else 1):
            if attempt:
                time.sleep(BETWEEN_READS_S)
            try:
                return json.loads(self.read_bytes(rel))
            except ValueError as error:
                # pyarrow asks an object store for the size first: of an object that a longer one replaces in between,
                # it gets the beginning only.
                problem = error
        raise StoreError(f"{self.name}/{rel}: damaged: {problem}", hint="Restore it from a backup.")

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


def _with_one_put(uri: str) -> str:
    """The URI with the option by which a small object is one request on S3, instead of three."""
    if not uri.startswith("s3://") or "allow_delayed_open=" in uri:
        return uri
    return f"{uri}{'&' if '?' in uri else '?'}allow_delayed_open=true"


def _reopen(kind: type[F], uri: str, patience: Patience) -> F:
    return kind(uri, patience=patience)
