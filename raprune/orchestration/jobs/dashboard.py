"""A Ray dashboard as seen from outside: its URL, its token, and who answers there. Ray is not imported."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from raprune.errors import UsageError

ADDRESS = "http://127.0.0.1:8265"
"""Default URL of a dashboard, where neither --address nor the environment names one: Ray's own, on this machine."""

API_ADDRESS = "RAY_API_SERVER_ADDRESS"

_ANSWER_S = 15.0
"""Time for a dashboard to say who it is."""


def dashboard_url(address: str | None) -> str:
    """The URL of a dashboard, without a slash at its end.

    Raises:
        UsageError: if `address` names none.
    """
    given = address or os.environ.get(API_ADDRESS) or ADDRESS
    text = given if "://" in given else f"http://{given}"
    try:
        parts = urlsplit(text)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        valid = False
    if not valid:
        raise UsageError(
            f"--address {given}: not the address of a Ray dashboard.",
            hint="Give its URL: http://HEAD:8265. `ray start` prints it, and `ray status` runs beside it.",
        )
    if parts.username or parts.password:
        raise UsageError(
            "--address: it holds a user or a password.",
            hint="Ray's token is taken from RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token.",
        )
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"


def find_token() -> str | None:
    """The cluster's token, where Ray looks for it: RAY_AUTH_TOKEN, the file RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token.

    Raises:
        UsageError: if the file that RAY_AUTH_TOKEN_PATH names cannot be read, or is empty.
    """
    token = os.environ.get("RAY_AUTH_TOKEN", "").strip()
    if token:
        return token
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(named).expanduser() if named else Path.home() / ".ray" / "auth_token"
    try:
        token = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        if named:
            raise UsageError(
                f"RAY_AUTH_TOKEN_PATH={named}: not readable: {reason_of(error)}",
                hint="It must name the file that holds the cluster's token.",
            ) from None
        return None
    if named and not token:
        raise UsageError(f"RAY_AUTH_TOKEN_PATH={named}: the file is empty.", hint="It must hold the cluster's token.")
    return token or None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A token goes to where the user said, and nowhere else."""

    def redirect_request(self, *_: Any) -> None:
        return None


def probe(url: str, headers: Mapping[str, str]) -> None:
    """Find out who answers at `url`: Ray's client would wait without end, and say less.

    Raises:
        UsageError: if that is no dashboard that lets us in.
    """
    request = urllib.request.Request(f"{url}/api/version", headers=dict(headers))
    try:
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=_ANSWER_S) as response:
            if "ray_version" in json.loads(response.read(10_000)):
                return
        answer = "something that is no Ray dashboard"
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in (401, 403):
            raise not_let_in(url, bool(headers)) from None
        answer = f"something that is no Ray dashboard (HTTP {error.code})"
    except (HTTPException, ConnectionResetError):
        answer = "something that does not speak HTTP"
    except ValueError:
        answer = "something that is no Ray dashboard"
    except (urllib.error.URLError, OSError) as error:
        cause = error.reason if isinstance(error, urllib.error.URLError) else error
        raise UsageError(
            f"--address {url}: nobody answers there: {reason_of(cause)}",
            hint="The dashboard listens on its head node's loopback unless it was started with --dashboard-host. "
            "Forward its port: ssh -L 8265:127.0.0.1:8265 HEAD, or kubectl port-forward service/HEAD-SERVICE 8265",
        ) from None
    raise UsageError(
        f"--address {url}: {answer} answers there.",
        hint="The dashboard's port is 8265 unless it was started with another; 6379 is where nodes join, 10001 is for "
        "Ray Client, and 8000 for Serve.",
    )


def not_let_in(url: str, with_token: bool) -> UsageError:
    """The error for a dashboard that refuses the token, or that asks for one where none was found."""
    what = "does not know this token" if with_token else "asks for a token, and none was found"
    return UsageError(
        f"--address {url}: the cluster {what}.",
        hint="It must be the cluster's own, in RAY_AUTH_TOKEN, in the file that RAY_AUTH_TOKEN_PATH names, or in "
        "~/.ray/auth_token; they are looked at in this order. On the head: ray get-auth-token",
    )


@contextmanager
def only_address(url: str) -> Iterator[None]:
    """Inside, the environment names `url` too: Ray's client prefers the environment to the address it is given."""
    before = os.environ.get(API_ADDRESS)
    os.environ[API_ADDRESS] = url
    try:
        yield
    finally:
        if before is None:
            del os.environ[API_ADDRESS]
        else:
            os.environ[API_ADDRESS] = before


def reason_of(error: object) -> str:
    """The first line of an error's message."""
    strerror = getattr(error, "strerror", None)
    text = (strerror if isinstance(strerror, str) else str(error)).strip()
    return text.splitlines()[0] if text else type(error).__name__
