"""What holds for every request before any route sees it: headers, how long a body may be, which host."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_REQUEST = 256 * 2**10  # bytes of a body
TOO_LONG = f"body: longer than {MAX_REQUEST:,} bytes"
LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:; connect-src 'self'; "
        "object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}


class Shield:
    """An ASGI middleware. only_loopback: refuse requests for another host, which a page elsewhere on the
    internet can have a browser make to this machine by a name of its own."""

    def __init__(self, app: ASGIApp, *, only_loopback: bool = False, https: bool = False) -> None:
        self._app, self._only_loopback = app, only_loopback
        headers = HEADERS | ({"Strict-Transport-Security": "max-age=31536000"} if https else {})
        self._headers = [(name.lower().encode(), value.encode()) for name, value in headers.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self._app(scope, receive, send)
        headers = dict(scope["headers"])
        if self._only_loopback and _host(headers) not in LOOPBACK:
            if scope["type"] == "websocket":
                return await send({"type": "websocket.close", "code": 1008})
            return await self._refuse(
                send, 403, "Host: access is off, so this labeler answers to localhost only"
            )
        if scope["type"] == "websocket":
            return await self._app(scope, receive, send)
        return await self._http(scope, receive, send, headers)

    async def _http(self, scope: Scope, receive: Receive, send: Send, headers: Mapping[bytes, bytes]) -> None:
        length, came = headers.get(b"content-length", b"0"), 0
        if length.isdigit() and int(length) > MAX_REQUEST:
            return await self._refuse(send, 413, TOO_LONG)

        async def receive_some() -> Message:
            nonlocal came
            message = await receive()
            came += len(message.get("body", b""))
            if came > MAX_REQUEST:
                raise HTTPException(413, TOO_LONG)
            return message

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *self._headers]
            await send(message)

        return await self._app(scope, receive_some, send_with_headers)

    async def _refuse(self, send: Send, status: int, words: str) -> None:
        body = json.dumps({"detail": words}).encode()
        own = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        close = [(b"connection", b"close")]
        await send(
            {"type": "http.response.start", "status": status, "headers": [*own, *close, *self._headers]}
        )
        await send({"type": "http.response.body", "body": body})


def _host(headers: Mapping[bytes, Any]) -> str:
    host = headers.get(b"host", b"").decode("latin-1")
    return host if host.endswith("]") else host.rpartition(":")[0] or host
