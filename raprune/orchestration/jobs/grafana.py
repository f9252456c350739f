"""raprune's Grafana dashboard, put where a Grafana looks for it. No torch, no ray.

Grafana reads dashboards from folders that *providers* name, files in its `provisioning/dashboards`. Ray writes such a
provider, and a folder for it, whenever its dashboard starts; another Grafana gets a provider of its own.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import yaml  # type: ignore[import-untyped]  # it has no types

from raprune.errors import RapruneError, UsageError

UID = "raprune"
"""Grafana's name for the dashboard: it stands at /d/raprune."""

PROVIDERS = Path("provisioning", "dashboards")
"""Subfolder of a Grafana folder with the providers."""

FILE = "raprune-grafana.json"


@dataclass(frozen=True)
class Installed:
    """Files that were written for the dashboard."""

    dashboard: Path
    provider: Path
    """Provider by which Grafana finds the dashboard."""
    is_own: bool
    """True if the provider is raprune's, false if it is Ray's."""


def source() -> Path:
    """The dashboard's file: in the installed package, or in the repository that is installed from."""
    package = Path(__file__).parents[2]
    shipped = package / "grafana" / FILE
    return shipped if shipped.exists() else package.parent / "dashboards" / FILE


def install(folder: str | None = None) -> Installed:
    """Write the dashboard where the Grafana of `folder`, or else that of Ray's latest session, finds it.

    An older version of the dashboard is replaced; no other file is changed.

    Raises:
        UsageError: if that is no folder of a Grafana.
        RapruneError: if it cannot be written.
    """
    grafana = (_ray_folder() if folder is None else _given(folder)).absolute()
    provider = _ray_provider(grafana)
    own = grafana / PROVIDERS / "raprune.yml"
    watched = grafana / "raprune" if provider is None else _folder_of(provider)
    target = _same_uid(watched) or watched / FILE
    try:
        _write(target, source().read_bytes())
        if provider is None:
            _write(own, _provider(watched).encode())
    except OSError as error:
        raise RapruneError(
            f"{error.filename or target}: cannot write: {error.strerror}.",
            hint="Ask whom the folder belongs to, or import the file by hand in Grafana: " + str(source()),
        ) from error
    return Installed(target, provider or own, is_own=provider is None)


def next_steps(installed: Installed) -> str:
    """The files that were written and the next steps of the user, in a few lines."""
    grafana = installed.provider.parents[2]
    done = f"Wrote {installed.dashboard}"
    if installed.is_own:
        return (
            f"{done}\nand {installed.provider}, which names its folder.\n"
            "Grafana reads that when it starts: restart it. The dashboard then stands at /d/raprune."
        )
    prometheus = grafana.parent / "prometheus" / "prometheus.yml"
    return (
        f"{done}\n"
        "A Grafana that runs on Ray's settings shows it in ten seconds, at /d/raprune. Where none runs yet:\n"
        f"  prometheus --config.file={prometheus}\n"
        f"  grafana server --homepath GRAFANA --config {grafana / 'grafana.ini'}\n"
        "Ray empties this folder when it starts: then install again."
    )


def _ray_folder() -> Path:
    """The folder that Ray wrote for a Grafana when its dashboard last started on this machine."""
    # As Ray looks for them, and as `ray start --temp-dir` sets them.
    root = os.environ.get("RAY_METRICS_OUTPUT_ROOT")
    temporary = Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp")
    sessions = [temporary / "ray" / "session_latest", temporary / "session_latest"]
    places = [Path(root)] if root else [session / "metrics" for session in sessions]
    for place in places:
        if (place / "grafana" / PROVIDERS).is_dir():
            return place / "grafana"
    raise UsageError(
        f"{places[0] / 'grafana'}: not there; Ray writes it on the head when its dashboard starts.",
        hint="Do this on the head, after `ray start --head`, with RAY_TMPDIR set to Ray's --temp-dir; or name the "
        f"folder of another Grafana: --folder /etc/grafana. By hand, Grafana imports {source()}",
    )


def _given(folder: str) -> Path:
    path = Path(folder)
    if not (path / PROVIDERS).is_dir():
        what = "it has no provisioning/dashboards" if path.is_dir() else "no such folder"
        raise UsageError(
            f"--folder {folder}: not a folder of Grafana's: {what}.",
            hint="/etc/grafana, or Ray's: SESSION/metrics/grafana. By hand, Grafana imports " + str(source()),
        )
    return path


def _ray_provider(grafana: Path) -> Path | None:
    """Ray's provider there; None where it is a Grafana without Ray."""
    file = grafana / PROVIDERS / "default.yml"
    return file if file.exists() and any(named == "Ray" for named, _ in _read(file)) else None


def _folder_of(provider: Path) -> Path:
    return next(folder for named, folder in _read(provider) if named == "Ray")


def _read(provider: Path) -> list[tuple[str, Path]]:
    """The names and folders in a file of providers."""
    try:
        listed = yaml.safe_load(provider.read_text())["providers"]
        return [(str(one["name"]), Path(one["options"]["path"])) for one in listed]
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise RapruneError(
            f"{provider}: not a file of dashboard providers: {type(error).__name__}.",
            hint="Restore it, or move it away; Ray writes its own again when it starts.",
        ) from None


def _same_uid(folder: Path) -> Path | None:
    """A dashboard in `folder` under our uid: an older version, or one that Ray was told to write under it.

    Grafana would refuse two.
    """
    for file in sorted(folder.glob("*.json")):
        try:
            found = json.loads(file.read_text())
        except (OSError, ValueError):
            continue
        if isinstance(found, dict) and found.get("uid") == UID:
            return file
    return None


def _provider(folder: Path) -> str:
    providers = [{"name": "raprune", "folder": "raprune", "type": "file", "options": {"path": str(folder)}}]
    return str(yaml.safe_dump({"apiVersion": 1, "providers": providers}, sort_keys=False))


def _write(path: Path, content: bytes) -> None:
    """Whole or not at all: Grafana looks every few seconds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(content)
    temporary.replace(path)
