"""The folder that goes with a job, as one zip: which of its files, and whether the cluster takes so much."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from pathspec import PathSpec

from raprune.errors import UsageError

LIMIT = 100 * 2**20
"""Bytes that a dashboard takes in one request; it answers 413 to more."""

MOST_FILES = 50_000
"""Maximum number of files: a folder with more is a home folder or a data set, not a project."""

_SURELY = 10
"""Ratio of a folder's size to `LIMIT` above which it is refused without a try: no zip is so much smaller."""

LEFT_OUT = (
    *(".git/", ".hg/", ".venv/", "venv/", ".tox/", "node_modules/", "__pycache__/", "*.py[cod]", "*.egg-info/"),
    *(".mypy_cache/", ".ruff_cache/", ".pytest_cache/", ".hypothesis/", ".ipynb_checkpoints/", ".idea/", ".vscode/"),
    *("/runs/", "/statistics/"),
    # What may hold a secret.
    *(".env", ".env.*", ".netrc", ".ssh/", ".aws/", ".azure/", ".kube/", ".docker/", ".gnupg/", ".ray/"),
    *("*.pem", "*.key", "id_rsa*", "id_ed25519*"),
)
"""Patterns of files that are left out, in the format of `.gitignore`, in addition to `.gitignore` and `.rayignore`."""


@dataclass(frozen=True)
class JobPackage:
    """The package that is sent with a job."""

    path: Path
    """The zip."""
    size: int
    """Size of the zip in bytes."""
    files: int
    left_out: tuple[str, ...]
    """Files and folders that are left out, relative to the folder; the content of such a folder is not listed."""

    def __str__(self) -> str:
        files = f"{self.files:,} file{'' if self.files == 1 else 's'}"
        return f"{files}, {told_size(self.size)}"


@dataclass
class Found:
    """The files of a folder."""

    sizes: dict[PurePosixPath, int] = field(default_factory=dict)
    """File, relative to the folder -> bytes."""
    left_out: list[str] = field(default_factory=list)


def pack(
    folder: Path, target: Path, *, always: Sequence[str] = (), extra: Mapping[str, str] | None = None
) -> JobPackage:
    """Write the files of `folder` as the zip `target`, with the texts of `extra` at the names that it gives.

    `always`: files and folders, relative to `folder`, that go even where a pattern leaves them out.

    Raises:
        UsageError: if there is no such folder, or it holds more than a cluster takes; the largest files are named.
    """
    found = find(folder, always)
    if sum(found.sizes.values()) > _SURELY * LIMIT:
        raise _too_large(folder, found, f"come to more than the {told_size(LIMIT)} that a cluster takes")
    texts = {PurePosixPath(name): text for name, text in (extra or {}).items()}
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=4) as archive:
        for path in sorted(found.sizes.keys() - texts.keys()):
            _add(archive, str(path), (folder / path).read_bytes(), (folder / path).stat().st_mode)
        for path, text in sorted(texts.items()):
            _add(archive, str(path), text.encode(), 0o644)
    size = target.stat().st_size
    if size > LIMIT:
        raise _too_large(folder, found, f"come to more than the {told_size(LIMIT)} that a cluster takes")
    return JobPackage(target, size, len(found.sizes.keys() | texts.keys()), tuple(found.left_out))


def find(folder: Path, always: Sequence[str] = ()) -> Found:
    """The files of `folder` that go with a job.

    Raises:
        UsageError: if there is no such folder, or it holds too many files.
    """
    if not folder.is_dir():
        raise UsageError(f"--working-dir {folder}: no such folder.", hint="Give the folder that the job's code is in.")
    found = Found()
    for path in _walk(folder, PurePosixPath(), [(PurePosixPath(), _patterns(LEFT_OUT))], found, set()):
        _take(folder, path, found)
    for name in always:
        named = folder / name
        for file in sorted(named.rglob("*")) if named.is_dir() else [named]:
            if file.is_file():
                _take(folder, PurePosixPath(file.relative_to(folder).as_posix()), found)
    return found


def told_size(size: int) -> str:
    """A size in MiB or KiB, as text."""
    return f"{size / 2**20:.1f} MiB" if size >= 2**20 else f"{size / 2**10:.0f} KiB"


def _take(folder: Path, path: PurePosixPath, found: Found) -> None:
    found.sizes[path] = (folder / path).stat().st_size
    if len(found.sizes) > MOST_FILES:
        raise _too_large(folder, found, f"are more than {MOST_FILES:,}")


def _walk(
    folder: Path, here: PurePosixPath, rules: list[tuple[PurePosixPath, Any]], found: Found, above: set[tuple[int, int]]
) -> Iterator[PurePosixPath]:
    """The files in the folder `here` of `folder` and below, by `rules`: where patterns were read, and those."""
    entry = os.stat(folder / here)
    if (entry.st_dev, entry.st_ino) in above:
        # A link to a folder that it is in.
        return
    own = _ignore_files(folder / here)
    rules = [*rules, (here, own)] if own is not None else rules
    for name in sorted(os.listdir(folder / here)):
        path = here / name
        is_folder = (folder / path).is_dir()
        if any(_matches(patterns, path.relative_to(at), is_folder) for at, patterns in rules):
            found.left_out.append(f"{path}/" if is_folder else str(path))
        elif is_folder:
            yield from _walk(folder, path, rules, found, above | {(entry.st_dev, entry.st_ino)})
        elif (folder / path).is_file():
            yield path


def _ignore_files(folder: Path) -> Any:
    files = [folder / name for name in (".gitignore", ".rayignore") if (folder / name).is_file()]
    lines = [line for file in files for line in file.read_text(errors="replace").splitlines()]
    return _patterns(lines) if lines else None


def _patterns(lines: Sequence[str]) -> Any:
    return PathSpec.from_lines("gitignore", lines)


def _matches(patterns: Any, path: PurePosixPath, is_folder: bool) -> bool:
    return bool(patterns.match_file(f"{path}/" if is_folder else str(path)))


def _add(archive: zipfile.ZipFile, name: str, content: bytes, mode: int) -> None:
    # Always the same date: what did not change is not sent again.
    info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    info.compress_type = zipfile.ZIP_DEFLATED
    info.external_attr = (mode & 0o777) << 16
    archive.writestr(info, content)


def _too_large(folder: Path, found: Found, what: str) -> UsageError:
    largest = sorted(found.sizes, key=lambda path: -found.sizes[path])[:5]
    lines = [f"    {told_size(found.sizes[path]):>10}  {path}" for path in largest]
    total = told_size(sum(found.sizes.values()))
    return UsageError(
        f"--working-dir {folder}: its files ({len(found.sizes):,}, {total}) {what}. The largest:\n" + "\n".join(lines),
        hint="Name what is not needed in a .rayignore file there (as in .gitignore), give a smaller --working-dir, or "
        "keep data and weights where the cluster sees them: an absolute path on shared storage, or s3://...",
    )
