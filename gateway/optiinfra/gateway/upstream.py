"""Opens an answer at a backend, going to another one only while nothing has been answered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from optiinfra.gateway.headers import upstream_headers
from optiinfra.gateway.inbound import Inbound
from optiinfra.gateway.refusal import Problem, refuse
from optiinfra.schemas.ids import ReplicaId
from optiinfra.schemas.routing import Backend

BROKEN = (aiohttp.ClientError, OSError, TimeoutError)
"""What reading from a backend may raise."""

_WHOLE_BYTES = 1 << 19
_PIECE_BYTES = 1 << 17
_OWN_HEADERS = frozenset({"User-Agent", "Accept", "Accept-Encoding", "Content-Type"})


class Untouched(Exception):
    """The backend was not reached, or hung up before the first byte of an answer's body."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


class Suspects:
    """Backends that failed just now, to be tried last for a while; sessions come back after."""

    def __init__(self, rest_s: float, monotonic: Callable[[], float]) -> None:
        self._rest_s = rest_s
        self._monotonic = monotonic
        self._until: dict[tuple[ReplicaId, str], float] = {}

    def add(self, backend: Backend) -> None:
        self._until[(backend.replica, backend.url)] = self._monotonic() + self._rest_s

    def last(self, backends: list[Backend]) -> list[Backend]:
        """The same backends in the same order, suspects behind all others."""
        if not self._until:
            return backends
        now = self._monotonic()
        self._until = {name: until for name, until in self._until.items() if until > now}
        return sorted(backends, key=lambda backend: (backend.replica, backend.url) in self._until)


class Opened(NamedTuple):
    """An answer that has begun."""

    answer: aiohttp.ClientResponse
    first: bytes
    """What came first of its body; empty when it has none."""


class Upstream:
    """The pool of connections to all backends."""

    def __init__(self, *, connect_s: float, idle_s: float, keepalive_s: float) -> None:
        """`idle_s` bounds each wait for bytes, the first one too; the whole has no limit."""
        timeout = aiohttp.ClientTimeout(total=None, connect=connect_s, sock_read=idle_s)
        self._session = _session(
            aiohttp.TCPConnector(limit=0, keepalive_timeout=keepalive_s), timeout
        )
        self._fresh = _session(aiohttp.TCPConnector(limit=0, force_close=True), timeout)

    async def close(self) -> None:
        await self._session.close()
        await self._fresh.close()

    async def open(self, backend: Backend, inbound: Inbound) -> Opened:
        """The answer, its head and the first bytes of its body received, the rest to be read.

        `Untouched` when another backend may be asked; a refusal when the backend may have worked.
        A backend may close a connection in the moment in which it is used again: then the request
        is sent once more, on a new one.
        """
        url = URL(backend.url.rstrip("/") + inbound.target, encoded=True)
        way = _Way()
        try:
            try:
                answer = await _asked(self._session, url, inbound, way)
            except BROKEN as error:
                if not (way.was_open and _before_answer(error)):
                    raise
                answer = await _asked(self._fresh, url, inbound, way)
        except BROKEN as error:
            raise _translated(error) from error
        except ValueError as error:
            raise refuse(502, "upstream_invalid", "the backend sent no valid HTTP") from error
        try:
            return Opened(answer, await answer.content.readany())
        except BaseException as error:
            answer.close()
            if isinstance(error, BROKEN):
                raise _broken_off(error) from error
            raise


@dataclass(slots=True)
class _Way:
    """How a request got to its backend."""

    was_open: bool = False


def _session(
    connector: aiohttp.TCPConnector, timeout: aiohttp.ClientTimeout
) -> aiohttp.ClientSession:
    told = aiohttp.TraceConfig()
    told.on_connection_reuseconn.append(_note_reuse)
    return aiohttp.ClientSession(
        connector=connector,
        timeout=timeout,
        cookie_jar=aiohttp.DummyCookieJar(),
        skip_auto_headers=_OWN_HEADERS,
        auto_decompress=False,
        trust_env=False,
        trace_configs=[told],
    )


async def _note_reuse(_session: aiohttp.ClientSession, context: Any, _: object) -> None:
    context.trace_request_ctx.was_open = True


async def _asked(
    session: aiohttp.ClientSession, url: URL, inbound: Inbound, way: _Way
) -> aiohttp.ClientResponse:
    headers = upstream_headers(inbound.headers, inbound.request_id)
    return await session.request(
        inbound.method,
        url,
        headers=headers,
        data=_payload(inbound.body, headers),
        allow_redirects=False,
        trace_request_ctx=way,
    )


def _before_answer(error: Exception) -> bool:
    """Whether the connection was closed before the first byte of an answer."""
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return isinstance(error.message, str)
    return isinstance(error, aiohttp.ClientOSError | ConnectionError)


def _payload(body: bytes, headers: CIMultiDict[str]) -> bytes | AsyncIterator[bytes] | None:
    """The body to send; a large one in pieces, so that other requests get their turn."""
    if len(body) <= _WHOLE_BYTES:
        return body or None
    headers["Content-Length"] = str(len(body))
    return _pieces(body)


async def _pieces(body: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(body), _PIECE_BYTES):
        yield body[start : start + _PIECE_BYTES]


def _translated(error: Exception) -> Exception:
    """Tell "never reached or silent" (`Untouched`) from "may have begun" (a refusal)."""
    if isinstance(error, aiohttp.ServerDisconnectedError) and not isinstance(error.message, str):
        return refuse(502, "upstream_broke", "the backend hung up amid the head of its answer")
    if isinstance(error, aiohttp.ServerTimeoutError) and not isinstance(
        error, aiohttp.ConnectionTimeoutError
    ):
        return _too_late()
    if isinstance(error, aiohttp.ClientConnectionError | ConnectionError | asyncio.TimeoutError):
        return Untouched(Problem(502, "upstream_unreachable", "no backend could be reached"))
    return refuse(502, "upstream_invalid", "the backend sent no valid HTTP")


def _broken_off(error: Exception) -> Exception:
    """What it means that nothing followed the head of an answer."""
    if isinstance(error, TimeoutError):
        return _too_late()
    return Untouched(Problem(502, "upstream_broke", "the backend hung up before its answer"))


def _too_late() -> Exception:
    return refuse(504, "upstream_timeout", "the backend did not answer in time")
