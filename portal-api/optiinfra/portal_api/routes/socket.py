"""One client's WebSocket: signed in, sent to, and closed with a code that says what to do."""

from __future__ import annotations

import asyncio
from contextlib import aclosing, suppress
from enum import IntEnum

import structlog
from fastapi import WebSocket, WebSocketDisconnect

from optiinfra.portal_api.auth import Needs, Permission, principal
from optiinfra.portal_api.cookies import is_own_page
from optiinfra.portal_api.denials import note_denial
from optiinfra.portal_api.live.hub import Restarting
from optiinfra.portal_api.live.reading import PING_S, Reading
from optiinfra.portal_api.ports import ApiPorts
from optiinfra.portal_api.problems import SignInNeeded
from optiinfra.schemas.errors import Denied, Unavailable
from optiinfra.storage.postgres.access import Principal, Purpose

PROTOCOL = "optiinfra.v1"
TICKET = "ticket."
STALLED_S = 30.0
"""How long one message may wait for a client that does not read."""


log = structlog.get_logger()


class Close(IntEnum):
    """Why the server closes; 4401: sign in again, 4408 and 1012: connect again and resume."""

    RESTART = 1012
    BAD_REQUEST = 1008
    TRY_LATER = 1013
    SIGN_IN = 4401
    FORBIDDEN = 4403
    TOO_FAR_BEHIND = 4408


class _Over(Exception):
    """The socket is to be closed with this code."""

    def __init__(self, code: Close, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class Socket:
    """`serve` lasts as long as the client stays."""

    def __init__(self, socket: WebSocket, ports: ApiPorts) -> None:
        self._socket = socket
        self._ports = ports
        self._sending_since: float | None = None

    async def serve(self) -> None:
        """Accepts first, so that a browser is told the code when it is refused."""
        offered = self._socket.scope.get("subprotocols", [])
        await self._socket.accept(subprotocol=PROTOCOL if PROTOCOL in offered else None)
        try:
            self._check_origin()
            who = await self._sign_in(offered)
            await self._until_gone(who, self._after())
        except _Over as over:
            await self._close(over)
        except Unavailable as away:
            await self._close(_Over(Close.TRY_LATER, away.message))

    async def _until_gone(self, who: Principal, after: int | None) -> None:
        """Sends until the client goes away; what it says is read only to notice that."""
        sending = asyncio.ensure_future(self._send_all(who, after))
        listening = asyncio.ensure_future(self._listen())
        try:
            await self._until_one_ends({sending, listening})
        finally:
            for task in (sending, listening):
                task.cancel()
            await asyncio.wait({sending, listening})
        for task in (sending, listening):
            if not task.cancelled() and (failed := task.exception()) is not None:
                raise failed

    async def _until_one_ends(self, tasks: set[asyncio.Future[None]]) -> None:
        """Looks now and then whether a message is stuck; a timer for each one would cost more than
        to write it does."""
        clock, done = asyncio.get_running_loop().time, set[asyncio.Future[None]]()
        while not done:
            done, _ = await asyncio.wait(
                tasks, timeout=STALLED_S / 2, return_when=asyncio.FIRST_COMPLETED
            )
            since = self._sending_since
            if not done and since is not None and clock() - since > STALLED_S:
                raise _Over(Close.TOO_FAR_BEHIND, "too far behind")

    async def _listen(self) -> None:
        with suppress(WebSocketDisconnect):
            while True:
                await self._socket.receive_text()

    async def _send_all(self, who: Principal, after: int | None) -> None:
        clock = asyncio.get_running_loop().time
        checked_at = clock()
        reading = Reading(self._ports.hub, who.tenant, after)
        try:
            async with aclosing(reading.frames()) as frames:
                async for together in frames:
                    self._sending_since = clock()
                    await self._socket.send_text(together.text)
                    self._sending_since = None
                    if clock() - checked_at > PING_S:
                        await self._check_still_signed_in(who)
                        checked_at = clock()
        except Restarting as restarting:
            raise _Over(Close.RESTART, "connect again and resume") from restarting
        except (WebSocketDisconnect, RuntimeError):
            return

    async def _check_still_signed_in(self, who: Principal) -> None:
        with suppress(Unavailable):
            if not await self._ports.access.still_valid(who.token_id):
                raise _Over(Close.SIGN_IN, "sign in again")

    async def _sign_in(self, offered: list[str]) -> Principal:
        access = self._ports.access
        ticket = next((one.removeprefix(TICKET) for one in offered if one.startswith(TICKET)), None)
        if ticket is not None:
            who = await access.consume(ticket, Purpose.TICKET)
            if who is None:
                raise _Over(Close.SIGN_IN, "sign in again")
            return who
        try:
            return await Needs(Permission.READ)(self._socket, await principal(self._socket))
        except SignInNeeded as nobody:
            raise _Over(Close.SIGN_IN, "sign in again") from nobody
        except Denied as denied:
            await note_denial(self._socket, denied.message)
            raise _Over(Close.FORBIDDEN, denied.message) from denied

    def _check_origin(self) -> None:
        """Browsers always say where a page came from; other clients do not, and need a token."""
        if is_own_page(self._socket) is False:
            raise _Over(Close.FORBIDDEN, "this origin may not open the stream")

    def _after(self) -> int | None:
        given = self._socket.query_params.get("after")
        if given is None:
            return None
        if not given.isdigit() or len(given) > 18:
            raise _Over(Close.BAD_REQUEST, "after must be a sequence")
        return int(given)

    async def _close(self, over: _Over) -> None:
        """A client that does not read cannot be told either."""
        log.info("live client sent away", code=int(over.code), reason=over.reason)
        with suppress(TimeoutError, WebSocketDisconnect, RuntimeError):
            async with asyncio.timeout(1.0):
                await self._socket.close(over.code, over.reason)
