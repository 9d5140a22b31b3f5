"""A tiny HTTP port that says whether a role lives and is ready, for orchestrators."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Self

from optiinfra.schemas.errors import Unavailable

_LIMIT_S = 2.0


class HealthServer:
    """`/healthz` answers while the loop runs, `/readyz` when `ready` says so; None: no port."""

    def __init__(self, port: int | None, ready: Callable[[], bool], host: str = "0.0.0.0") -> None:  # noqa: S104 - probes come from outside the container
        self._port = port
        self._host = host
        self._ready = ready
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        if self._port is not None:
            try:
                self._server = await asyncio.start_server(self._answer, self._host, self._port)
            except OSError as taken:
                raise Unavailable(
                    f"cannot listen on port {self._port}: {taken.strerror}",
                    hint="choose another OPTIINFRA_HEALTH_PORT",
                ) from taken
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    @property
    def port(self) -> int | None:
        """The port that it listens on."""
        if self._server is None:
            return None
        number: int = self._server.sockets[0].getsockname()[1]
        return number

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_LIMIT_S):
                path = (await reader.readline()).split()[1:2]
                while (await reader.readline()).strip():
                    pass  # what is left unread when we close would reset the connection
                writer.write(_response(path[0] if path else b"", self._ready))
                await writer.drain()
        except (TimeoutError, OSError, ValueError):
            return
        finally:
            writer.close()


def _response(path: bytes, ready: Callable[[], bool]) -> bytes:
    if path == b"/healthz":
        status, text = b"200 OK", b"alive"
    elif path == b"/readyz":
        status, text = (b"200 OK", b"ready") if ready() else (b"503 Unavailable", b"not ready")
    else:
        status, text = b"404 Not Found", b"see /healthz or /readyz"
    length = str(len(text)).encode()
    headers = b"\r\nConnection: close\r\nContent-Length: " + length
    return b"HTTP/1.1 " + status + headers + b"\r\n\r\n" + text
