"""Passes an answer on within the callback that brings it, for as long as its client keeps up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import aiohttp
from aiohttp import web
from aiohttp.connector import Connection

from optiinfra.gateway.measure import Meter


class Client:
    """Where an answer goes once its head has been sent; knows how its body is framed."""

    def __init__(self, request: web.BaseRequest, response: web.StreamResponse) -> None:
        assert request.transport is not None
        self._transport = request.transport
        self._protocol = request.protocol
        self._chunked = response.headers.get("Transfer-Encoding") == "chunked"

    def keeps_up(self) -> bool:
        """Whether it is there, and so little waits to be sent to it that more may be added."""
        return not (self._protocol.writing_paused or self._transport.is_closing())

    def send(self, data: bytes) -> None:
        """Send more of the body; only while it keeps up."""
        self._transport.write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)


class Relay(asyncio.Protocol):
    """Stands before the HTTP client's own protocol while an answer comes.

    Engines send the tokens of a step at the same moment. A task that is woken for its token runs
    only once those of all other streams have been read; a callback passes it on right away.
    """

    def __init__(
        self,
        answer: aiohttp.ClientResponse,
        client: Client,
        meter: Meter,
        monotonic: Callable[[], float],
    ) -> None:
        """`meter` is fed with what has been passed on."""
        self._answer = answer
        self._content = answer.content
        self._client = client
        self._meter = meter
        self._monotonic = monotonic
        self._standing = False

    def at_end(self) -> bool:
        return self._content.at_eof()

    async def next(self) -> bytes:
        """Pass on what comes; then what the client has to be waited for, or the end, maybe empty.

        Raises `BROKEN`.
        """
        chunk = self._content.read_nowait()
        connection = self._answer.connection
        if chunk or connection is None or connection.closed:
            return chunk or await self._content.readany()
        self._stand_before(connection)
        try:
            await self._relieved()
        finally:
            self._step_aside()
        return self._content.read_nowait()

    async def _relieved(self) -> None:
        """Wait for the end, or for a client that is behind; `TimeoutError` after long silence."""
        while self._standing and self._content.exception() is None:
            left_s = self._heard_s + self._idle_s - self._monotonic()
            if left_s <= 0:
                raise TimeoutError
            try:
                async with asyncio.timeout(left_s) as self._patience:
                    await self._content.wait_eof()
            except TimeoutError:
                if not self._patience.expired():
                    raise

    def _stand_before(self, connection: Connection) -> None:
        """Take its protocol's place, whose limit on silence sets a timer anew for each token."""
        own, transport = connection.protocol, connection.transport
        assert own is not None
        assert own.read_timeout is not None
        assert transport is not None
        self._own, self._transport = own, transport
        self._idle_s, self._heard_s = own.read_timeout, self._monotonic()
        own.read_timeout = None
        transport.set_protocol(self)
        self._standing = True

    def _step_aside(self) -> None:
        if self._standing:
            self._standing = False
            self._transport.set_protocol(self._own)
            self._own.read_timeout = self._idle_s

    def data_received(self, data: bytes) -> None:
        self._heard_s = self._monotonic()
        self._own.data_received(data)
        content = self._content
        while not content.is_eof() and content.exception() is None:
            if not self._client.keeps_up():
                if not self._patience.expired():
                    self._patience.reschedule(0)
                break
            if not (chunk := content.read_nowait()):
                return
            self._client.send(chunk)
            self._meter.feed(chunk, self._heard_s)
        self._step_aside()  # now: an ended answer has given its connection back for the next one

    def eof_received(self) -> None:
        self._own.eof_received()

    def connection_lost(self, error: Exception | None) -> None:
        self._own.connection_lost(error)
        self._step_aside()

    def pause_writing(self) -> None:
        self._own.pause_writing()

    def resume_writing(self) -> None:
        self._own.resume_writing()
