"""Plan a job for a cluster: its command, its fields as the cluster sees them, its metadata. Sends nothing.

A cluster sees two things of the machine that a job is submitted from: the working folder, and the package. So paths
inside the working folder become relative to it, relative paths outside of it are refused, and all other paths must name
the same file on the cluster.
"""

from __future__ import annotations

import glob
import os
import re
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from raprune.errors import UsageError
from raprune.orchestration.jobs.metadata import BUDGET, RUN
from raprune.plugins import is_user_function
from raprune.spec.job import PATHS, SearchSpec
from raprune.spec.toml import dump_spec, load_spec
from raprune.store.address import last_part, public_address
from raprune.store.record import ACCURACY

JOB_FILE = "raprune-job.toml"
"""The job's fields, in the working folder on the cluster."""

ENTRYPOINT = f"python -m raprune search {JOB_FILE} --resume"

STOP_WAIT_S = 60
"""Time between asking a job to end and killing it; Ray's default of 3 s is too short to end the workers."""

_SECRET = re.compile(r"secret|password|passwd|token|signature|access_?key|account_?key|api_?key|^sig$", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Submission:
    """A job as a cluster gets it."""

    name: str
    spec: SearchSpec
    """The job, with paths as the cluster sees them."""
    always: tuple[str, ...] = ()
    """Files of the working folder that the job names, relative to it: they are sent even if git ignores them."""
    notes: tuple[str, ...] = ()
    """Notes for the user, a line each."""

    @property
    def toml(self) -> str:
        """The content of `JOB_FILE`."""
        return dump_spec(self.spec)

    @property
    def metadata(self) -> dict[str, str]:
        """Metadata for the Jobs tab. No secrets: everybody who sees the dashboard reads it."""
        return {"job_name": self.name, RUN: public_address(self.spec.output), BUDGET: budget(self.spec)}


def plan(job: Path | None, overrides: Mapping[str, Any], *, folder: Path | None, name: str | None = None) -> Submission:
    """The job of the TOML file `job` with `overrides`, for a cluster that gets `folder`; None: it gets no files.

    Raises:
        UsageError: if a field is wrong, names a file that the cluster will not have, or holds a secret.
    """
    spec = load_spec(job, dict(overrides))
    _refuse_secrets(spec.model_dump(mode="json"))
    given = _given(job, overrides)
    values = spec.model_dump(mode="json", exclude_none=True)
    values["resources"].pop("address", None)
    always: list[str] = []
    notes: list[str] = []
    for field in PATHS:
        _place(values, field, given.get(field), folder, always, notes)
    for field in ("output", "statistics"):
        _place_output(values, field, notes)
    notes += _modules(spec, folder)
    final = SearchSpec.model_validate(values)
    return Submission(
        name=name or last_part(final.output) or "raprune", spec=final, always=tuple(always), notes=tuple(notes)
    )


def runtime_env(*, working_dir: str, install: str | None, package: str) -> dict[str, Any]:
    """Ray's runtime environment of the job as JSON: a zip of its files, and raprune (`package` or a requirement)."""
    environment: dict[str, Any] = {
        "working_dir": working_dir,
        "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)},
    }
    if install is None:
        environment |= {"py_modules": [package], "excludes": ["__pycache__/", "*.pyc"]}
    else:
        environment["pip"] = [requirement(install)]
    return environment


def requirement(install: str) -> str:
    """`install`, a pip requirement: raprune==0.1.0, or the URL or path of a wheel that the cluster reaches.

    Raises:
        UsageError: if it is none, or holds a secret.
    """
    if not re.match(r"raprune\b|[\w+.-]+://|/", install.strip()):
        raise UsageError(
            f"--install {install}: not a requirement of raprune.",
            hint="For example --install raprune==0.1.0, or the URL or path of a wheel that every node reaches.",
        )
    _refuse_secrets({"--install": install})
    return install.strip()


def budget(spec: SearchSpec) -> str:
    """The budget of the job, in a few words."""
    asked = [
        f"{name} {value:.0%}"
        for name, value in (
            ("FLOPs", spec.budget.flops),
            ("parameters", spec.budget.params),
            ("latency", spec.budget.latency),
            ("memory", spec.budget.memory),
        )
        if value is not None
    ]
    if spec.budget.latency_ms is not None:
        asked.append(f"latency {spec.budget.latency_ms:g}ms")
    if spec.budget.memory_bytes is not None:
        asked.append(f"memory {spec.budget.memory_bytes:,} bytes")
    if spec.min_accuracy is not None:
        asked.append(f"{_metric(spec)} at least {spec.min_accuracy:.1%}")
    if spec.max_drop is not None:
        asked.append(f"at most {100 * spec.max_drop:g} points less {_metric(spec)}")
    return ", ".join(asked)


def _metric(spec: SearchSpec) -> str:
    """Return words for the task's metric. Its name is in the task's module, which may be on the cluster alone."""
    return ACCURACY if spec.task == "classification" else f"metric of {spec.task}"


def _given(job: Path | None, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Field of `PATHS` -> its value in the TOML job or the overrides, before it was resolved."""
    written: dict[str, Any] = {} if job is None else tomllib.loads(job.read_text())
    found = {}
    for field in PATHS:
        *tables, key = field.split(".")
        part = written.get(tables[0], {}) if tables else written
        found[field] = overrides.get(field, part.get(key))
    return found


def _place(
    values: dict[str, Any], field: str, given: Any, folder: Path | None, always: list[str], notes: list[str]
) -> None:
    """Replace the paths of a field of the job, as JSON in `values`, by those that the cluster sees."""
    *tables, key = field.split(".")
    part = values[tables[0]] if tables else values
    if not part.get(key):
        return
    paths = [part[key]] if isinstance(part[key], str) else list(part[key])
    originals = [given] if isinstance(given, str) else list(given or paths)
    placed = [
        path if "://" in path else _placed(field, path, original, folder, always, notes)
        for path, original in zip(paths, originals, strict=True)
    ]
    part[key] = placed[0] if isinstance(part[key], str) else placed


def _placed(field: str, path: str, original: str, folder: Path | None, always: list[str], notes: list[str]) -> str:
    here = Path(os.path.normpath(path))
    if folder is not None and here.is_relative_to(folder.absolute()):
        inside = here.relative_to(folder.absolute()).as_posix()
        found = [Path(one).relative_to(folder.absolute()).as_posix() for one in glob.glob(str(here))]
        if not found and not here.exists():
            raise UsageError(
                f"{field} {original!r}: no such file in the working folder {folder}.",
                hint="Give a file that is there, or one that every node sees: an absolute path, or s3://...",
            )
        always += found or [inside]
        return inside
    if not Path(original).is_absolute() and not original.startswith("$"):
        where = "the cluster gets no files of this machine" if folder is None else f"it is outside of {folder}"
        raise UsageError(
            f"{field} {original!r}: {where}, so the cluster will not have it.",
            hint="Put it into the working folder (--working-dir), or where every node sees it: an absolute path on "
            "shared storage, or s3://...",
        )
    notes.append(f"{field}: {path} is not sent; every node that reads it must see it there.")
    return path


def _place_output(values: dict[str, Any], field: str, notes: list[str]) -> None:
    """Move a relative folder to the home folder on the cluster: the job's own folder is deleted by Ray."""
    path = values[field]
    if not path or "://" in path:
        return
    if not path.startswith(("/", "~")):
        values[field] = path = f"~/{os.path.normpath(path)}"
    if field == "output":
        home = " in the home folder of Ray's user" if path.startswith("~") else ""
        notes.append(
            f"--output: the run will be {path}{home} on the head's disk, and other nodes must see the same folder. "
            "s3://bucket/run, or a path on shared storage, outlives the cluster."
        )


def _modules(spec: SearchSpec, folder: Path | None) -> list[str]:
    """Modules of the user's own that do not go with the job."""
    names = [name for name in (spec.model.name, spec.data.name, *spec.methods) if is_user_function(name)]
    tops = dict.fromkeys(name.partition(":")[0].partition(".")[0] for name in names)
    return [
        f"{top} is not in the working folder: it must be installed on the cluster."
        for top in tops
        if folder is None or not ((folder / top).is_dir() or (folder / f"{top}.py").is_file())
    ]


def _refuse_secrets(values: Any, field: str = "") -> None:
    """Refuse a URI with a key or a password in it: the dashboard shows the fields of a job."""
    if isinstance(values, Mapping):
        for key, value in values.items():
            _refuse_secrets(value, f"{field}.{key}" if field else str(key))
    elif isinstance(values, Sequence) and not isinstance(values, str):
        for value in values:
            _refuse_secrets(value, field)
    elif isinstance(values, str) and _holds_secret(values):
        flag = " (--output)" if field == "output" else ""
        raise UsageError(
            f"{field}{flag}: its URI holds a key or a password, which everybody who sees the dashboard could read.",
            hint="Credentials belong into the environment of the cluster's nodes: AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, an instance's role, or a Kubernetes secret.",
        )


def _holds_secret(text: str) -> bool:
    if "://" not in text:
        return False
    try:
        parts = urlsplit(text)
    except ValueError:
        return "@" in text
    user, at, _ = parts.netloc.rpartition("@")
    return bool(at and ":" in user) or any(_SECRET.search(key) for key, _ in parse_qsl(parts.query))


def package_folder() -> str:
    """The folder of this raprune, which goes with the job."""
    return str(Path(sys.modules["raprune"].__path__[0]))
