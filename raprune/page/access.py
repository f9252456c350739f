"""Access to the page. Pure: the facts of a request give a decision to admit, redirect or refuse it, with a reason.

If the page has a token, a request must carry the token: as `Authorization: Bearer TOKEN`, or once as `?token=TOKEN`,
which sets a cookie. A page without a token serves this machine only: the request must name a loopback address as its
host, so that no website can reach the page under its own name (DNS rebinding). Only the token's digest is stored.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qsl, quote, urlencode

MIN_TOKEN = 16
"""Minimum number of characters of a token; shorter tokens can be guessed."""

METHODS = ("GET", "HEAD")
MAX_PATH = 512
MAX_QUERY = 2048
MAX_HEADERS = 16 * 1024


@dataclass(frozen=True)
class Request:
    """The facts of a request on which the decision depends."""

    method: str
    path: str
    """Decoded path from the root of the page: "/" is the page itself, "" the page without the slash."""
    last: str
    """Last part of the whole decoded path."""
    query: str
    headers: Sequence[tuple[str, str]]
    """Names in lower case."""

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key == name]

    def one(self, name: str) -> str | None:
        """Return the value of the header; None unless the request has it exactly once."""
        found = self.all(name)
        return found[0] if len(found) == 1 else None


@dataclass(frozen=True)
class Admitted:
    """Decision to admit the request."""


@dataclass(frozen=True)
class Moved:
    """Decision to redirect to another address of the page, relative to this one; with a cookie if a token was given."""

    location: str
    cookie: str | None = None


@dataclass(frozen=True)
class Refused:
    """Decision to refuse the request."""

    status: int
    error: str
    hint: str


AccessDecision = Admitted | Moved | Refused


@dataclass(frozen=True)
class Access:
    """The rule of access of one page."""

    digest: str | None = None
    """SHA-256 of the token, hexadecimal. None if the page has no token and serves loopback names only."""
    page: str = "page"
    """Name that distinguishes this page's cookie from the cookies of other pages on the same machine."""

    @classmethod
    def of(cls, token: str | None, page: str) -> Access:
        return cls(None if token is None else digest_of(token), page)

    def decide(self, request: Request) -> AccessDecision:
        """Decide whether the request is admitted, redirected or refused."""
        refused = _malformed(request)
        if refused is not None:
            return refused
        if self.digest is None:
            return _named(request) or _foreign(request) or _at_root(request)
        return self._by_token(request)

    @property
    def cookie_name(self) -> str:
        return f"raprune-{hashlib.sha256(self.page.encode()).hexdigest()[:8]}"

    @property
    def _cookie(self) -> str:
        """Value of the cookie that opens this page; the token cannot be derived from it."""
        assert self.digest is not None
        return hmac.new(self.digest.encode(), f"cookie {self.page}".encode(), "sha256").hexdigest()

    def _by_token(self, request: Request) -> AccessDecision:
        fields = parse_qsl(request.query, keep_blank_values=True)
        brought = [value for name, value in fields if name == "token"]
        if brought:
            if not all(self._is_token(token) for token in brought):
                return _WRONG
            rest = urlencode([(name, value) for name, value in fields if name != "token"])
            return Moved(_here(request) + (f"?{rest}" if rest else ""), self._cookie)
        authorization = request.all("authorization")
        if authorization:
            match = re.fullmatch(r"[Bb]earer +(\S+)", authorization[0].strip()) if len(authorization) == 1 else None
            if match is None or not self._is_token(match[1]):
                return _WRONG
            return _at_root(request)
        if not self._has_cookie(request):
            return _WRONG if request.all("cookie") and self.cookie_name in "".join(request.all("cookie")) else _MISSING
        return _foreign(request) or _at_root(request)

    def _is_token(self, token: str) -> bool:
        assert self.digest is not None
        return hmac.compare_digest(digest_of(token), self.digest)

    def _has_cookie(self, request: Request) -> bool:
        try:
            cookies = SimpleCookie("; ".join(request.all("cookie")))
        except CookieError:
            return False
        found = cookies.get(self.cookie_name)
        return found is not None and hmac.compare_digest(found.value.encode(), self._cookie.encode())


_HOW = "Open the page once as its address with ?token=TOKEN, or send the header Authorization: Bearer TOKEN."
_MISSING = Refused(401, "This page needs its token.", _HOW)
_WRONG = Refused(401, "The token is not this page's token.", _HOW)


def digest_of(token: str) -> str:
    """Return the digest of a token, which is stored instead of the token."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def is_loopback(host: str) -> bool:
    """True if a host name or address to bind to is reachable from this machine only."""
    name = host.strip().removeprefix("[").removesuffix("]").lower()
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _malformed(request: Request) -> Refused | None:
    if request.method not in METHODS:
        return Refused(405, f"{request.method[:16]}: the page is read-only.", f"Use {' or '.join(METHODS)}.")
    if len(request.path) > MAX_PATH or len(request.query) > MAX_QUERY:
        return Refused(
            414, "The address is too long.", f"At most {MAX_PATH} characters of path and {MAX_QUERY} of query."
        )
    if sum(len(name) + len(value) for name, value in request.headers) > MAX_HEADERS:
        return Refused(431, "The request's headers are too large.", f"At most {MAX_HEADERS} bytes.")
    if request.all("transfer-encoding") or any(length.strip() != "0" for length in request.all("content-length")):
        return Refused(413, "The request has a body.", "The page is read-only: send no body.")
    parts = request.path.split("/")
    if any(part in (".", "..") for part in parts) or "" in parts[1:-1] or re.search(r"[\x00-\x1f\x7f\\]", request.path):
        return Refused(
            400, "The page has no such address.", "Its addresses have no dots, backslashes or control characters."
        )
    return None


def _named(request: Request) -> Refused | None:
    """Refuse a request whose host is not a loopback address."""
    host = request.one("host") or ""
    match = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^\[\]:/@]+)(:\d{1,5})?", host.strip())
    if match is not None and is_loopback(match[1]):
        return None
    return Refused(
        403,
        "This page serves only the machine that it runs on: open it as localhost.",
        "From elsewhere: ssh -L PORT:127.0.0.1:PORT HOST, or serve it with a token.",
    )


def _foreign(request: Request) -> Refused | None:
    """Refuse requests that another website's page makes; following a link from there is allowed."""
    if request.one("sec-fetch-site") == "cross-site" and request.one("sec-fetch-mode") != "navigate":
        return Refused(403, "Another website made this request.", "Open the page itself.")
    return None


def _at_root(request: Request) -> AccessDecision:
    """Admit the request, or redirect to the root with its slash: addresses in the page are relative to it."""
    return Admitted() if request.path else Moved(_here(request) + (f"?{request.query}" if request.query else ""))


def _here(request: Request) -> str:
    return f"./{quote(request.last)}" + ("" if request.path else "/")
