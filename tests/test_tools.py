"""A missing tool is a skip on a developer's machine and a failure in CI."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

from tests.tools import require, require_module

TESTS = Path(__file__).parent


def test_missing_tool_on_a_developers_machine_skips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAPRUNE_CI", raising=False)
    for missing in (lambda: require("no-such-tool"), lambda: require_module("no_such_module")):
        with pytest.raises(pytest.skip.Exception, match="is not installed"):
            missing()


def test_missing_tool_in_ci_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAPRUNE_CI", "1")
    for missing in (lambda: require("no-such-tool"), lambda: require_module("no_such_module")):
        with pytest.raises(pytest.fail.Exception, match="In CI a missing tool is a failure"):
            missing()


def test_tool_named_by_a_variable_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAPRUNE_CHROMIUM", sys.executable)
    assert require("chromium") == sys.executable
    assert require_module("raprune").__name__ == "raprune"


def test_tests_ask_for_tools_only_by_require() -> None:
    own = {TESTS / "tools.py", Path(__file__)}
    asking = [p.name for p in TESTS.rglob("*.py") if p not in own and re.search(r"importorskip", p.read_text())]
    assert asking == []


def test_helpers_are_imported_from_no_test_module() -> None:
    imports = re.compile(r"^from tests\.(?:\w+\.)*test_\w+ import|^import tests\.(?:\w+\.)*test_\w+", re.MULTILINE)
    assert [p.name for p in TESTS.rglob("*.py") if imports.search(p.read_text())] == []


def test_a_test_under_xdist_belongs_to_a_group(request: pytest.FixtureRequest) -> None:
    """Without groups two workers make the fixtures of one module, and two start the session's Ray cluster."""
    is_parallel = "PYTEST_XDIST_WORKER" in os.environ
    assert request.node.nodeid.endswith("@tests/test_tools") == is_parallel
