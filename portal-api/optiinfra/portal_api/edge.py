"""The outermost layer: request ids, security headers, the body limit, and unforeseen errors."""

from __future__ import annotations

import re
from collections.abc import Callable
from http import HTTPStatus

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from optiinfra.portal_api.problems import problem

MAX_BODY_BYTES = 1_000_000
_REQUEST_ID = re.compile(r"^[A-Za-z0-9._-]{1,64}$")
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}

log = structlog.get_logger()


class Edge:
    """ASGI middleware; nothing but this may catch an unforeseen exception."""

    def __init__(self, app: ASGIApp, new_id: Callable[[], str]) -> None:
        self._app = app
        self._new_id = new_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.match(given) else self._new_id()
        scope.setdefault("state", {})["request_id"] = request_id
        answer = _Answer(send, request_id)
        if _declared(headers) > MAX_BODY_BYTES:
            await _too_large(scope)(scope, receive, answer.send)
            return
        try:
            await self._app(scope, _limited(receive), answer.send)
        except Exception as unforeseen:
            log.exception("request failed", path=scope["path"], error=repr(unforeseen))
            if answer.begun:
                raise
            failed = problem(
                scope,
                HTTPStatus.INTERNAL_SERVER_ERROR,
                "something went wrong here",
                hint="the log names the cause under this request_id",
            )
            await failed(scope, receive, answer.send)


class _Answer:
    """Adds headers to what is sent, and knows whether it has begun."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self._request_id = request_id
        self.begun = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.begun = True
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers.setdefault(name, value)
            headers["X-Request-Id"] = self._request_id
        await self._send(message)


def _declared(headers: Headers) -> int:
    length = headers.get("content-length", "")
    return int(length) if length.isdigit() else 0


def _too_large(scope: Scope) -> ASGIApp:
    return problem(
        scope,
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        f"the body is over the limit of {MAX_BODY_BYTES} bytes",
    )


def _limited(receive: Receive) -> Receive:
    """Counts what comes, for a body may be longer than it says or say nothing."""
    seen = 0

    async def counted() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > MAX_BODY_BYTES:
            raise HTTPException(413, f"the body is over the limit of {MAX_BODY_BYTES} bytes")
        return message

    return counted
