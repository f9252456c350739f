"""An interruption ends a command in one line and with its exit code, whenever it comes."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import ray

from raprune.errors import Terminated
from raprune.orchestration.cluster import connect
from raprune.orchestration.interruption import behind, heard

IMPORTS = {
    "is turned into another error": "raise ImportError('numpy: multiarray failed')",
    "is swallowed": "try:\n    import time\n    time.sleep(0.1)\nexcept BaseException:\n    pass",
    "is heard in C code": "import ctypes\nctypes.pythonapi.PyErr_CheckSignals()",
}
"""End of a module that is imported while the signal comes."""


def ran(folder: Path, program: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, *words], cwd=folder, capture_output=True, text=True, check=False, timeout=120
    )


def interrupted_import(number: signal.Signals, rest: str) -> str:
    return f"import signal\nsignal.raise_signal(signal.{number.name})\n{rest}\nwhole = True\n"


COMMAND = """
import sys, time
sys.path.insert(0, "")
from raprune import cli
@cli.app.command()
def slow() -> None:
    import interrupted_module
    time.sleep(30)
from raprune.__main__ import main
sys.argv = ["raprune", "slow"]
main()
"""


@pytest.mark.parametrize(("number", "code", "told"), [("SIGINT", 130, "Interrupted."), ("SIGTERM", 143, "Terminated.")])
@pytest.mark.parametrize("rest", IMPORTS.values(), ids=IMPORTS)
def test_signal_during_an_import_ends_the_command_in_one_line(
    tmp_path: Path, rest: str, number: str, code: int, told: str
) -> None:
    (tmp_path / "interrupted_module.py").write_text(interrupted_import(signal.Signals[number], rest))
    done = ran(tmp_path, COMMAND)
    assert (done.returncode, done.stderr) == (code, f"Error: {told}\n")


def test_signal_during_the_imports_of_the_command_line_ends_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text(interrupted_import(signal.SIGINT, "raise ImportError('half a module')"))
    program = "import sys\nsys.path.insert(0, '')\nfrom raprune.__main__ import main\nmain()"
    done = ran(tmp_path, program)
    assert (done.returncode, done.stderr) == (130, "Error: Interrupted.\n")


def test_interruption_waits_for_the_import_that_is_running(tmp_path: Path) -> None:
    (tmp_path / "interrupted_module.py").write_text(interrupted_import(signal.SIGINT, IMPORTS["is swallowed"]))
    program = """
import sys, time
sys.path.insert(0, "")
from raprune.orchestration.interruption import heard
try:
    with heard():
        import interrupted_module
        time.sleep(30)
except KeyboardInterrupt:
    assert sys.modules["interrupted_module"].whole
    print("interrupted")
"""
    done = ran(tmp_path, program)
    assert done.stdout == "interrupted\n", done.stderr


def test_second_interruption_during_an_import_does_not_wait(tmp_path: Path) -> None:
    twice = "signal.raise_signal(signal.SIGINT)\nimport time\ntime.sleep(30)"
    (tmp_path / "interrupted_module.py").write_text(interrupted_import(signal.SIGINT, twice))
    done = ran(tmp_path, COMMAND)
    assert (done.returncode, done.stderr) == (130, "Error: Interrupted.\n")


def test_signal_that_is_ignored_stays_ignored(tmp_path: Path) -> None:
    program = """
import signal
signal.signal(signal.SIGINT, signal.SIG_IGN)
from raprune.orchestration.interruption import heard
with heard():
    signal.raise_signal(signal.SIGINT)
print("goes on")
"""
    assert ran(tmp_path, program).stdout == "goes on\n"


def interrupted(number: signal.Signals) -> None:
    with heard():
        try:
            signal.raise_signal(number)
        except KeyboardInterrupt:
            assert behind(ImportError()) is (Terminated if number == signal.SIGTERM else KeyboardInterrupt)
            # As Ray does where it waits.
            raise KeyboardInterrupt from None


@pytest.mark.parametrize(("number", "kind"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)])
def test_signal_outside_of_imports_is_raised_at_once(number: signal.Signals, kind: type[KeyboardInterrupt]) -> None:
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)]
    with pytest.raises(kind) as raised:
        interrupted(number)
    assert raised.type is kind
    assert behind(ImportError()) is None, "forgotten with the block"
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)] == before


def test_sigterm_while_ray_starts_is_a_termination(monkeypatch: pytest.MonkeyPatch) -> None:
    def ended_by_ray(address: str | None) -> None:
        sys.exit(signal.SIGTERM)

    monkeypatch.setattr(connect, "connect", ended_by_ray)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(Terminated), connect.cluster("auto"):
        pass
