"""Tests of the graph cache: a cached graph equals the traced graph, and a cache that fails is no failure."""

from __future__ import annotations

from pathlib import Path

import pytest

from raprune.channels.cache import FOLDER, cache_folder, cached_trace
from raprune.channels.proof import prove
from raprune.channels.trace import trace
from tests.channels.networks import build, image


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(FOLDER, str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_cached_trace_second_call_returns_an_equal_graph(folder: Path) -> None:
    model = build("DenseBlock")
    traced = cached_trace(model, image())
    (file,) = folder.iterdir()
    written = file.stat().st_mtime_ns
    cached = cached_trace(model, image())
    assert file.stat().st_mtime_ns == written
    assert cached.to_json() == traced.to_json() == trace(model, image()).to_json()
    assert prove(model, cached, image()).frozen == {}


def test_cached_trace_other_architecture_or_image_size_is_traced(folder: Path) -> None:
    cached_trace(build("Residual"), image())
    cached_trace(build("Grouped"), image())
    cached_trace(build("Residual"), image((1, 3, 16, 16)))
    assert len(list(folder.iterdir())) == 3


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"architecture": 1}'])
def test_cached_trace_damaged_file_is_traced_again(folder: Path, damage: str) -> None:
    model = build("Residual")
    graph = cached_trace(model, image())
    (file,) = folder.iterdir()
    file.write_text(damage)
    assert cached_trace(model, image()).to_json() == graph.to_json()
    assert file.read_text() != damage


def test_cached_trace_folder_that_cannot_be_written_is_no_failure(folder: Path) -> None:
    folder.write_text("a file stands in the way")
    assert cached_trace(build("Residual"), image()).groups


def test_cache_folder_follows_the_environment_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(FOLDER, "")
    assert cache_folder() is None
    assert cached_trace(build("Residual"), image()).groups
    monkeypatch.delenv(FOLDER)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "raprune"
