"""A zip archive that is sent while it is written: no file of its size is ever held."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from typing import Any


def zipped(parts: list[tuple[str, Iterator[bytes]]]) -> Iterator[bytes]:
    """An archive of the named files, not compressed, piece by piece."""
    sink = _Sink()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as archive:
        for name, pieces in parts:
            with archive.open(zipfile.ZipInfo(name), "w", force_zip64=True) as file:
                for piece in pieces:
                    file.write(piece)
                    yield sink.taken()
    yield sink.taken()


class _Sink(io.RawIOBase):
    """A sink from which written bytes are taken out again."""

    def __init__(self) -> None:
        self._written = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, content: Any) -> int:
        self._written += content
        return len(content)

    def taken(self) -> bytes:
        taken, self._written = bytes(self._written), bytearray()
        return taken
