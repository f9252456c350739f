"""Ray without the parts that the acceptance run does not use: an archive of 24 MB, from a wheel of 79 MB."""

from __future__ import annotations

import io
import stat
import subprocess
import tarfile
import tempfile
import zipfile
from pathlib import Path

LEFT_OUT = (
    "ray/jars/",
    "ray/cpp/",
    "ray/rllib/",
    "ray/llm/",
    "ray/dashboard/client/",
    "ray/train/examples/",
    "ray/tune/examples/",
    "ray/_private/runtime_env/agent/thirdparty_files/",
)
"""Folders of the wheel that stay behind: Java, C++, reinforcement learning, language models, the dashboard's page,
examples, and a copy of aiohttp, which the machine has."""

STRIPPED = ("ray/_raylet.so", "ray/core/src/ray/gcs/gcs_server", "ray/core/src/ray/raylet/raylet")
"""Binaries with symbols, which are a third of their size."""


def write_archive(wheel: Path, archive: Path) -> None:
    """Write the files of Ray's `wheel` that are needed as `archive`, a `.tar.xz` to be unpacked by Python's `tarfile`.

    Raises:
        SystemExit: if the program `strip` is missing.
    """
    with zipfile.ZipFile(wheel) as source, tarfile.open(archive, "w:xz", preset=9) as target:
        for member in source.infolist():
            if member.is_dir() or member.filename.startswith(LEFT_OUT):
                continue
            content = source.read(member)
            if member.filename in STRIPPED:
                content = _stripped(content)
            entry = tarfile.TarInfo(member.filename)
            entry.size = len(content)
            # A zip holds the permissions in the upper half of this field. Ray starts some of its files.
            entry.mode = stat.S_IMODE(member.external_attr >> 16) or 0o644
            target.addfile(entry, io.BytesIO(content))


def _stripped(binary: bytes) -> bytes:
    with tempfile.NamedTemporaryFile(suffix=".bin") as file:
        file.write(binary)
        file.flush()
        try:
            subprocess.run(["strip", "-s", file.name], check=True)
        except FileNotFoundError:
            raise SystemExit("strip: no such program. It makes Ray a third smaller; install binutils.") from None
        return Path(file.name).read_bytes()
