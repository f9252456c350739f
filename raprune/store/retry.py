"""Retries of a filesystem: failures that pass without help, and the time to wait. Pure: facts in, a decision out."""

from __future__ import annotations

import errno
import re
from dataclasses import dataclass

import pyarrow as pa

PASSING = frozenset(
    {
        errno.EAGAIN,
        errno.EBUSY,
        errno.EINTR,
        errno.EIO,
        errno.EREMOTEIO,
        errno.ESTALE,
        errno.ETIMEDOUT,
        errno.ECONNABORTED,
        errno.ECONNREFUSED,
        errno.ECONNRESET,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ENETDOWN,
        errno.ENETRESET,
        errno.ENETUNREACH,
        errno.ENOTCONN,
        errno.ESHUTDOWN,
    }
)
"""Errors that a network filesystem raises while its server is away or too busy."""

_PASSING_TEXT = re.compile(
    # Amazon's names of errors, then Google's; object stores give no errno.
    r"AWS Error (NETWORK_CONNECTION|REQUEST_TIMEOUT|REQUEST_EXPIRED|INTERNAL_FAILURE|SERVICE_UNAVAILABLE|SLOW_DOWN"
    r"|THROTTLING)\b|\b(UNAVAILABLE|DEADLINE_EXCEEDED)\b|HTTP status (408|429|5\d\d)\b"
)


@dataclass(frozen=True, kw_only=True)
class Patience:
    """Times to wait for a filesystem that is unavailable: longer after each failure, up to a limit."""

    total_s: float
    """Seconds after the first failure; a failure after that is the last one. 0: the first failure is the last one."""
    first_s: float = 0.5
    """Seconds to wait after the first failure; doubled after each further failure."""
    longest_s: float = 15.0

    def wait_s(self, failures: int, passed_s: float) -> float | None:
        """Seconds to wait after N `failures`, the first of them `passed_s` ago; None to give up."""
        left_s = self.total_s - passed_s
        if left_s <= 0:
            return None
        return min(self.first_s * 2.0 ** min(failures - 1, 32), self.longest_s, left_s)


AT_ONCE = Patience(total_s=0.0)
"""No waiting: for commands that a user waits for and can repeat."""


def passes(error: BaseException) -> bool:
    """True if a filesystem's error may pass. Errors that need a person do not: disk space, permission, a name."""
    number = error.errno if isinstance(error, OSError) else None
    return number in PASSING if number is not None else _PASSING_TEXT.search(str(error)) is not None


def hint_of(error: BaseException, verb: str) -> str:
    """The remedy for a filesystem error; `verb` is what was tried: read, write or remove."""
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return "There is no room left. Free some, then `raprune resume` the run; recorded trials stay."
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "Permission is denied. Give another --output, or change the folder's permissions."
    if number in (errno.ENOTDIR, errno.EEXIST):
        return "A file stands where a folder is needed. Give another --output."
    if number == errno.ENOENT:
        return "The run's folder lacks this file; it may have been moved while it was in use."
    if verb == "read" and isinstance(error, pa.ArrowInvalid):
        return "The file is damaged. Move it out of the folder; `raprune resume` then tries its trials again."
    return "Check that the place exists, that credentials are set, and that this machine reaches it."
