"""Pack what the acceptance run needs on a machine without a network: `python jobs/device/build.py --data FOLDER`.

The folder `.device/`, which git ignores, then holds Ray as an archive, the wheels that the machine lacks (that of
raprune among them), the images and weights, and the commit. With the tracked files it has to fit into 64 MiB.
`README.md` beside this file says how it is used.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from carry.ray_archive import write_archive
from carry.wheels import download, fetch_wheels

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".device"
DATA = (
    "cifar10-train.parquet",
    "cifar10-test.parquet",
    "resnet56-cifar10-jpeg.safetensors",
    "resnet20-cifar10.safetensors",
)
"""Files of the folder with the data that the sections read."""
LIMIT = 64 * 2**20
"""Maximum number of bytes of all that travels."""
RAY = "ray-lean.tar.xz"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data",
        type=Path,
        default=os.environ.get("RAPRUNE_DATA"),
        help=f"folder with {', '.join(DATA)} (default: the environment variable RAPRUNE_DATA)",
    )
    parser.add_argument("--folder", type=Path, default=FOLDER, help="folder to fill (default .device)")
    parser.add_argument("--torch", default="2.11.0", help="version of PyTorch on the machine (default 2.11.0)")
    parser.add_argument("--ray", default="2.60.0", help="version of Ray to carry (default 2.60.0)")
    options = parser.parse_args()
    began = time.monotonic()
    options.folder.mkdir(parents=True, exist_ok=True)
    copy_data(options.data, options.folder / "data")
    fetch_wheels(ROOT, options.folder / "whl", torch=options.torch, ray=options.ray)
    pack_ray(options.ray, options.folder)
    write_commit(options.folder / "commit.json")
    check_size(options.folder)
    print(f"packed in {time.monotonic() - began:.0f} s")


def copy_data(source: Path | None, folder: Path) -> None:
    """Copy `DATA` from the folder `source`.

    Raises:
        SystemExit: if the folder or one of the files is missing.
    """
    if source is None:
        raise SystemExit("--data: no folder. Name the folder with the images and weights, or set RAPRUNE_DATA to it.")
    missing = [name for name in DATA if not (source / name).is_file()]
    if missing:
        raise SystemExit(f"--data {source}: lacks {', '.join(missing)}. It must hold {', '.join(DATA)}.")
    folder.mkdir(parents=True, exist_ok=True)
    for name in DATA:
        shutil.copy(source / name, folder / name)


def pack_ray(version: str, folder: Path) -> None:
    """Write the archive of Ray, unless `folder` has that of this version: it takes minutes."""
    archive, made = folder / RAY, folder / "ray-version.txt"
    if archive.is_file() and made.is_file() and made.read_text() == version:
        return
    with tempfile.TemporaryDirectory() as place:
        download([f"ray=={version}"], Path(place))
        (wheel,) = Path(place).glob("*.whl")
        write_archive(wheel, archive)
    made.write_text(version)


def write_commit(path: Path) -> None:
    """Note the commit, as the machine has the files without their history."""
    path.write_text(json.dumps({"commit": _git("rev-parse", "HEAD"), "changed": bool(_git("status", "--porcelain"))}))


def check_size(folder: Path) -> None:
    """Print what travels, and refuse what is too much.

    Raises:
        SystemExit: if the files are more than `LIMIT` together.
    """
    tracked = [ROOT / name for name in _git("ls-files", "--cached", "--others", "--exclude-standard").splitlines()]
    parts = {
        "files of the repository": [path for path in tracked if path.is_file()],
        f"{folder.name}/{RAY}": [folder / RAY],
        f"{folder.name}/whl": list((folder / "whl").glob("*.whl")),
        f"{folder.name}/data": list((folder / "data").iterdir()),
        f"{folder.name}, other": [path for path in folder.iterdir() if path.is_file() and path.name != RAY],
    }
    sizes = {name: sum(path.stat().st_size for path in paths) for name, paths in parts.items()}
    for name, size in [*sizes.items(), ("together", sum(sizes.values()))]:
        print(f"{size / 2**20:6.1f} MiB  {name}")
    if sum(sizes.values()) > LIMIT:
        raise SystemExit(f"{folder}: with the repository more than {LIMIT / 2**20:.0f} MiB. Carry less of the above.")


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main()
