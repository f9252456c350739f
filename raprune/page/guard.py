"""The guard of the page: it checks each request by the rule of access, and adds security headers to each answer."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raprune.page import access
from raprune.page.access import Access, Admitted, Moved, Refused

DOOR_STYLE = """:root{color-scheme:light dark}body{font:16px/1.5 system-ui,sans-serif;max-width:40rem;margin:4rem auto;
padding:0 1rem}"""
"""Style of the page that asks for a token, which can load no other file."""

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        f"style-src 'self' 'sha256-{base64.b64encode(hashlib.sha256(DOOR_STYLE.encode()).digest()).decode()}'",
        "img-src 'self'",
        "connect-src 'self'",
        "font-src 'self'",
        "base-uri 'none'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    )
)
"""Content security policy: every script, style and image comes from the package."""

HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}


class Guarded:
    """The application behind its rule of access; every answer gets the security headers."""

    def __init__(self, app: ASGIApp, rule: Access) -> None:
        self._app = app
        self._rule = rule

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            # A browser opens WebSockets across origins; the page has none.
            await send({"type": "websocket.close", "code": 1000})
            return

        async def send_on(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        decision = self._rule.decide(_facts(scope))
        app = self._app if isinstance(decision, Admitted) else _answer_to(decision, scope, self._rule.cookie_name)
        await app(scope, receive, send_on)


def error_answer(status: int, error: str, hint: str, headers: Mapping[str, str] | None = None) -> Response:
    """An error as JSON: what is wrong, and what to do."""
    content = json.dumps({"error": error, "hint": hint}).encode()
    return Response(content, status, {"cache-control": "no-store", **(headers or {})}, media_type="application/json")


def _facts(scope: Scope) -> access.Request:
    path, root = scope["path"], scope.get("root_path", "").rstrip("/")
    return access.Request(
        method=scope["method"],
        path=path.removeprefix(root) if root else path,
        last=path.rpartition("/")[2],
        query=scope.get("query_string", b"").decode("latin-1"),
        headers=[(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in scope["headers"]],
    )


def _answer_to(decision: Moved | Refused, scope: Scope, cookie_name: str) -> Response:
    if isinstance(decision, Moved):
        response: Response = RedirectResponse(decision.location, status_code=303)
        response.headers["cache-control"] = "no-store"
        if decision.cookie is not None:
            path = (scope.get("root_path", "").rstrip("/") or "") + "/"
            secure = scope.get("scheme") == "https"
            response.set_cookie(
                cookie_name, decision.cookie, path=path, httponly=True, samesite="strict", secure=secure
            )
        return response
    headers = {401: {"www-authenticate": "Bearer"}, 405: {"allow": ", ".join(access.METHODS)}}.get(decision.status, {})
    if decision.status == 401 and "text/html" in Headers(scope=scope).get("accept", ""):
        return Response(_DOOR, status_code=401, media_type="text/html", headers=headers)
    return error_answer(decision.status, decision.error, decision.hint, headers)


_DOOR = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>raprune</title>
<style>{DOOR_STYLE}</style></head><body><h1>This page needs its token</h1>
<p>Add <code>?token=TOKEN</code> to the address once. The log of the run names the file of the token.</p>
<p>If you opened the page before: <a href="./">open it again</a>.</p></body></html>
"""
