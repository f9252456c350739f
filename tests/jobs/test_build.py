"""What is carried to a machine without a network."""

from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path

import build
import pytest
from carry import ray_archive, wheels

METADATA = """Metadata-Version: 2.4
Name: raprune
Requires-Dist: numpy<3,>=1.26
Requires-Dist: ray[default,serve,train,tune]<2.61,>=2.54
Requires-Dist: timm>=1; extra == 'timm'
"""


def make_wheel(path: Path, files: dict[str, bytes], *, executable: str = "") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name)
            entry.external_attr = (0o755 if name == executable else 0o644) << 16
            archive.writestr(entry, content)
    return path


def test_requirements_of_a_wheel_are_those_without_an_extra(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path / "a.whl", {"raprune-0.1.0.dist-info/METADATA": METADATA.encode()})
    assert [wheels.name_of(line) for line in wheels.requirements(wheel)] == ["numpy", "ray"]


def test_packages_that_the_machine_has_are_not_carried_however_they_are_spelled() -> None:
    there = wheels.present("Typing_Extensions  4.1\n# a comment\n\njinja2\n")
    pinned = ["typing-extensions==4.16.0", "Jinja2==3.1", "optuna==5.0.0", "ray==2.60.0"]
    assert wheels.lacking(pinned, there) == ["optuna==5.0.0"]


def test_list_of_present_packages_has_what_the_run_is_made_for() -> None:
    there = wheels.present(wheels.PRESENT.read_text())
    assert {"torch", "torchvision", "numpy", "pyarrow", "pip"} <= there
    assert {"ray", "optuna", "pydantic", "raprune"}.isdisjoint(there)


def test_archive_of_ray_leaves_folders_out_and_keeps_programs_executable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_archive, "_stripped", lambda binary: b"small")
    program = "ray/core/src/ray/raylet/raylet"
    files = {"ray/__init__.py": b"x", "ray/jars/ray_dist.jar": b"java", program: b"large", "ray/rllib/a.py": b"y"}
    wheel = make_wheel(tmp_path / "ray.whl", files, executable=program)
    ray_archive.write_archive(wheel, tmp_path / "ray.tar.xz")
    with tarfile.open(tmp_path / "ray.tar.xz") as archive:
        modes = {member.name: member.mode for member in archive}
        content = archive.extractfile(program)
        assert content is not None and content.read() == b"small"
    assert modes == {"ray/__init__.py": 0o644, program: 0o755}


def test_missing_data_is_refused_with_flag_and_files(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="--data: no folder"):
        build.copy_data(None, tmp_path / "there")
    (tmp_path / build.DATA[0]).write_bytes(b"")
    with pytest.raises(SystemExit, match=r"--data .*: lacks cifar10-test\.parquet"):
        build.copy_data(tmp_path, tmp_path / "there")


def make_folder(root: Path) -> Path:
    for name in ("whl/a.whl", "data/b.parquet", build.RAY, "commit.json"):
        path = root / ".device" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(2**20))
    return root / ".device"


def test_sizes_are_printed_and_too_much_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_folder(tmp_path)
    monkeypatch.setattr(build, "_git", lambda *words: "")
    build.check_size(folder)
    assert "4.0 MiB  together" in capsys.readouterr().out
    monkeypatch.setattr(build, "LIMIT", 4 * 2**20 - 1)
    with pytest.raises(SystemExit, match="more than 4 MiB"):
        build.check_size(folder)


def test_archive_of_a_version_that_is_there_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def download(pinned: list[str], folder: Path) -> None:
        asked.append(pinned)
        make_wheel(folder / "ray.whl", {"ray/__init__.py": b""})

    monkeypatch.setattr(build, "download", download)
    for version in ("2.60.0", "2.60.0", "2.61.0"):
        build.pack_ray(version, tmp_path)
    assert asked == [["ray==2.60.0"], ["ray==2.61.0"]]
