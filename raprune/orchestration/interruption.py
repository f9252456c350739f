"""Have Ctrl-C and SIGTERM end a process in the same way at any time, also in the middle of an import.

An exception that is raised inside an import is turned into another one (extension modules raise an ImportError or a
SystemError instead), or swallowed (`try: import x; except ImportError`), and leaves half of a module behind. So an
interruption waits until no import is running; a second interruption does not wait.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from raprune.errors import Terminated

_SIGNALS = (signal.SIGINT, signal.SIGTERM)

_LOOK_S = 0.02
"""Seconds between two checks of whether the import is over."""

_IMPORTING = "<frozen importlib._bootstrap>"
"""File of the frames that are on the stack while a module is imported."""

_came: int | None = None
"""The first signal that came inside the outermost `heard`."""


@contextmanager
def heard() -> Iterator[None]:
    """Inside, SIGINT raises KeyboardInterrupt and SIGTERM raises `Terminated`, after the import that is running.

    Outside of the main thread, which alone gets signals, nothing is done. A signal that the process ignores stays
    ignored (`nohup`, a shell's background job).
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    global _came
    is_outermost = not any(signal.getsignal(number) is _stop for number in _SIGNALS)
    ours = (*_SIGNALS, signal.SIGALRM) if is_outermost else _SIGNALS
    before: dict[int, Any] = {number: signal.getsignal(number) for number in ours}
    hear()
    try:
        yield
    except KeyboardInterrupt:
        # Where Ray waits, it makes an interruption of its own of whatever a handler raises.
        if _came == signal.SIGTERM:
            raise Terminated from None
        raise
    finally:
        if is_outermost:
            _wait_no_more()
            _came = None
        for number, handler in before.items():
            # None: a handler that was not Python's and cannot be put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def hear() -> None:
    """Take the signals back from a library that has installed handlers of its own inside `heard`."""
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _stop)


def let_go() -> None:
    """Let a further signal end the process at once and in silence: its work is over, and its message is told."""
    _wait_no_more()
    for number in _SIGNALS:
        if signal.getsignal(number) is _stop:
            signal.signal(number, signal.SIG_DFL)


def behind(error: BaseException) -> type[KeyboardInterrupt] | None:
    """The interruption that `error` is, or the one that came before it inside `heard`, whose consequence it is."""
    if isinstance(error, KeyboardInterrupt):
        return type(error)
    if _came is None:
        return None
    return _kind(_came)


def _stop(number: int, frame: FrameType | None) -> None:
    global _came
    is_first, _came = _came is None, _came or number
    if is_first and _is_importing(frame):
        signal.signal(signal.SIGALRM, _look_again)
        signal.setitimer(signal.ITIMER_REAL, _LOOK_S, _LOOK_S)
        return
    _raise()


def _look_again(_: int, frame: FrameType | None) -> None:
    if not _is_importing(frame):
        _raise()


def _raise() -> None:
    _wait_no_more()
    assert _came is not None
    raise _kind(_came)


def _wait_no_more() -> None:
    if signal.getsignal(signal.SIGALRM) is _look_again:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _kind(number: int) -> type[KeyboardInterrupt]:
    return Terminated if number == signal.SIGTERM else KeyboardInterrupt


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == _IMPORTING:
            return True
        frame = frame.f_back
    return False
