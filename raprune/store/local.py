"""Files on a disk that are written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path


def write_local(root: Path, rel: str, content: bytes) -> None:
    """Writes beside the data and renames; the content and the new name are on the disk before this returns."""
    final = root / rel
    temporary = root / temporary_name(rel)
    final.parent.mkdir(parents=True, exist_ok=True)
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(final)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(final.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def temporary_name(rel: str) -> str:
    """Return the temporary name of a file: never in RUN/trials, where every file is data."""
    return f".{rel.replace('/', '-')}.{os.getpid()}.tmp"
