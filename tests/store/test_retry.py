from __future__ import annotations

import errno

import pytest

from raprune.store.retry import AT_ONCE, Patience, passes


def test_waits_of_a_filesystem_that_is_away_grow_to_their_limit_and_end_in_time() -> None:
    patience = Patience(total_s=300.0, first_s=0.5, longest_s=15.0)
    waits: list[float] = []
    passed = 0.0
    while (wait := patience.wait_s(len(waits) + 1, passed)) is not None:
        waits.append(wait)
        passed += wait
    assert waits[:6] == [0.5, 1.0, 2.0, 4.0, 8.0, 15.0] and max(waits) == 15.0
    assert passed == pytest.approx(300.0), "the last wait ends when patience does"
    assert patience.wait_s(10**6, 0.0) == 15.0, "no overflow"
    assert AT_ONCE.wait_s(1, 0.0) is None


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EIO, "Input/output error"),
        OSError(errno.ESTALE, "Stale file handle"),
        TimeoutError(errno.ETIMEDOUT, "Connection timed out"),
        OSError("When reading key 'a': AWS Error NETWORK_CONNECTION during HeadObject operation: curlCode: 7"),
        OSError("When listing: AWS Error SLOW_DOWN during ListObjectsV2 operation: Please reduce"),
        OSError("AWS Error UNKNOWN (HTTP status 503) during HeadObject operation: No response body."),
        OSError("google::cloud::Status(UNAVAILABLE: Retry policy exhausted)"),
    ],
)
def test_error_of_a_server_that_is_away_passes(error: OSError) -> None:
    assert passes(error)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        PermissionError(errno.EACCES, "Permission denied"),
        OSError(errno.EROFS, "Read-only file system"),
        FileNotFoundError(errno.ENOENT, "No such file or directory"),
        OSError("AWS Error ACCESS_DENIED during PutObject operation: No response body."),
        OSError("AWS Error NO_SUCH_BUCKET during CreateMultipartUpload operation: The bucket does not exist"),
        ValueError("not a filesystem"),
    ],
)
def test_error_that_needs_a_person_does_not_pass(error: Exception) -> None:
    assert not passes(error)
