"""Answers that the pages of a run and of a list of runs share: JSON, files of the package, and errors."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from raprune.errors import RapruneError, StoreError
from raprune.page.guard import error_answer

STATIC = Path(__file__).parent / "static"
KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".woff2": "font/woff2",
}
"""Suffix of the package's files that are sent -> their media type."""


class MissingError(RapruneError):
    """The requested run, trial, network or file does not exist."""


@dataclass(frozen=True)
class Packed:
    """An answer, ready to be sent."""

    content: bytes
    packed: bytes
    """The same content compressed by gzip; the content itself if it is short."""
    etag: str

    @classmethod
    def of(cls, content: bytes) -> Packed:
        etag = f'W/"{hashlib.sha256(content).hexdigest()[:16]}"'
        return cls(content, gzip.compress(content, 5, mtime=0) if len(content) > 512 else content, etag)


def application(routes: Sequence[BaseRoute]) -> Starlette:
    """An application of these addresses, whose errors are answers of JSON."""
    handlers: Any = {RapruneError: _refuse, HTTPException: _no_such_address, Exception: _broken}
    app = Starlette(routes=list(routes), exception_handlers=handlers)
    app.router.redirect_slashes = False
    return app


def package_routes(index: str) -> list[Route]:
    """The addresses of the package's files: `index` is the page itself."""
    files = PackageFiles(index)
    return [Route("/", files.index), Route("/static/{name}", files.static)]


class PackageFiles:
    """The files of the package that a page consists of."""

    def __init__(self, index: str) -> None:
        self._index = index
        self._packed: dict[Path, tuple[int, Packed]] = {}

    async def index(self, request: Request) -> Response:
        return await self._file(request, self._index)

    async def static(self, request: Request) -> Response:
        return await self._file(request, request.path_params["name"])

    async def _file(self, request: Request, name: str) -> Response:
        path = _package_files().get(name)
        if path is None:
            raise MissingError("The page has no such file.", hint="The page has only the files of the package.")
        changed = path.stat().st_mtime_ns
        known = self._packed.get(path)
        if known is None or known[0] != changed:
            known = (changed, await run_in_threadpool(lambda: Packed.of(path.read_bytes())))
            self._packed[path] = known
        return send(request, known[1], KINDS[path.suffix])


def json_answer(answer: Any) -> Packed:
    return Packed.of(json.dumps(answer, allow_nan=False, separators=(",", ":")).encode())


def send(request: Request, packed: Packed, kind: str = "application/json") -> Response:
    headers = {"etag": packed.etag, "cache-control": "private, no-cache", "vary": "accept-encoding, cookie"}
    if packed.etag in (tag.strip() for tag in request.headers.get("if-none-match", "").split(",")):
        return Response(status_code=304, headers=headers)
    if packed.packed is not packed.content and _takes_gzip(request):
        return Response(packed.packed, headers=headers | {"content-encoding": "gzip"}, media_type=kind)
    return Response(packed.content, headers=headers, media_type=kind)


def _takes_gzip(request: Request) -> bool:
    wanted = request.headers.get("accept-encoding", "").lower()
    return any(part.strip() in ("gzip", "*") or part.strip().startswith("gzip;q=1") for part in wanted.split(","))


def _refuse(request: Request, error: RapruneError) -> Response:
    status = 404 if isinstance(error, MissingError) else 503 if isinstance(error, StoreError) else 400
    headers = {"retry-after": "2"} if status == 503 else {}
    return error_answer(status, error.message, error.hint, headers)


def _no_such_address(request: Request, error: HTTPException) -> Response:
    return error_answer(error.status_code, "The page has no such address.", "./ is the page itself.")


def _broken(request: Request, error: Exception) -> Response:
    # The text of the error may hold a secret, so only the log has it.
    return error_answer(500, "The page failed to answer.", "The log of its server names the error.")


def _package_files() -> dict[str, Path]:
    return {path.name: path for path in STATIC.iterdir() if path.suffix in KINDS and path.is_file()}
