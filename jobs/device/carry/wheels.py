"""Wheels of raprune and of its dependencies that the machine lacks, for CPython 3.12 on Linux, x86-64."""

from __future__ import annotations

import re
import subprocess
import zipfile
from collections.abc import Iterable
from pathlib import Path

PYTHON = "3.12"
GLIBC = range(39, 16, -1)
"""Minor versions of the C library 2.x that wheels may ask for; pip takes no wheel of a version that is not named."""
PRESENT = Path(__file__).parents[1] / "present.txt"
"""Names of the packages that the machine has, one a line, as `pip list` there names them."""
EXTRAS = "ray[train,tune]"
"""Parts of Ray that the acceptance run uses: no dashboard and no page."""


def fetch_wheels(root: Path, folder: Path, *, torch: str, ray: str) -> None:
    """Put the wheel of raprune, built from `root`, and all wheels that the machine lacks into `folder`.

    `torch` and `ray` are the versions there. Ray itself travels as an archive.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.whl"):
        # pip refuses to install two versions of one package.
        old.unlink()
    _run("uv", "build", "--wheel", "--quiet", "--out-dir", str(folder), str(root))
    (folder / ".gitignore").unlink(missing_ok=True)
    (own,) = folder.glob("raprune-*.whl")
    asked = [EXTRAS if name_of(line) == "ray" else line for line in requirements(own)]
    missing = lacking(_resolved(asked, [f"torch=={torch}", f"ray=={ray}"]), present(PRESENT.read_text()))
    download(missing, folder)


def requirements(wheel: Path) -> list[str]:
    """Return the requirements of a wheel, without those of its extras."""
    with zipfile.ZipFile(wheel) as content:
        (name,) = [name for name in content.namelist() if name.endswith(".dist-info/METADATA")]
        lines = content.read(name).decode().splitlines()
    found = [line.removeprefix("Requires-Dist: ") for line in lines if line.startswith("Requires-Dist: ")]
    return [line for line in found if "extra ==" not in line]


def present(text: str) -> set[str]:
    """Return the normalised names of a list with one package a line; comments and versions are ignored."""
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return {name_of(line) for line in lines if line}


def lacking(pinned: Iterable[str], there: set[str]) -> list[str]:
    """Return those of the `pinned` requirements, `name==version`, that are not `there`; Ray is never among them."""
    return sorted(line for line in pinned if name_of(line) not in {*there, "ray"})


def name_of(requirement: str) -> str:
    """Return the normalised name of the package that a requirement asks for."""
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match is not None, f"{requirement!r} is no requirement"
    return re.sub(r"[-_.]+", "-", match[0]).lower()


def download(pinned: Iterable[str], folder: Path) -> None:
    """Download the wheels of requirements `name==version`, and of nothing else, into `folder`."""
    platforms = [f"manylinux_2_{minor}_x86_64" for minor in GLIBC]
    platforms += ["manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64"]
    _run(
        *("uv", "tool", "run", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"),
        *("--python-version", PYTHON, "--implementation", "cp"),
        *(word for platform in platforms for word in ("--platform", platform)),
        *("--dest", str(folder), *pinned),
    )


def _resolved(asked: list[str], versions: list[str]) -> list[str]:
    """Return `name==version` of all packages that the requirements come to, with these `versions` among them."""
    text = _run(
        *("uv", "pip", "compile", "--quiet", "--no-header", "--no-annotate", "--python-version", PYTHON),
        *("--python-platform", "x86_64-manylinux_2_28", "-"),
        text="\n".join([*asked, *versions]),
    )
    # Markers of the platform hold for all of them, as the platform is given.
    return [line.partition(";")[0].strip() for line in text.splitlines() if "==" in line]


def _run(*command: str, text: str = "") -> str:
    try:
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise SystemExit(f"{command[0]}: no such program; pip install {command[0]}") from None
    if done.returncode:
        raise SystemExit(f"{' '.join(command[:5])} ... failed:\n{done.stderr[-2000:]}")
    return done.stdout
