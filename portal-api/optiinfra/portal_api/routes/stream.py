"""The live stream: a WebSocket, and its twin as server-sent events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Annotated

from fastapi import APIRouter, Header, Query, WebSocket
from fastapi.responses import StreamingResponse

from optiinfra.portal_api.auth import Ports, Reader
from optiinfra.portal_api.live.frames import Sent
from optiinfra.portal_api.live.hub import Restarting
from optiinfra.portal_api.live.reading import PING_S, Reading
from optiinfra.portal_api.ports import ApiPorts
from optiinfra.portal_api.routes.socket import Socket
from optiinfra.portal_api.views import TicketView
from optiinfra.schemas.errors import Rejected, Unavailable
from optiinfra.storage.postgres.access import Principal, Purpose

TICKET_S = 30.0

router = APIRouter(tags=["stream"])


@router.post("/stream/ticket", status_code=201)
async def ticket(who: Reader, ports: Ports) -> TicketView:
    """A ticket that opens one socket within 30 s: a token never stands in an address."""
    drawn = await ports.access.issue(
        who.tenant,
        who.name,
        who.role,
        lasts_s=TICKET_S,
        purpose=Purpose.TICKET,
        of=who.token_id,
    )
    return TicketView(ticket=drawn, expires_in_s=TICKET_S)


@router.websocket("/stream")
async def stream(socket: WebSocket, ports: Ports) -> None:
    """`?after=SEQ` resumes after that sequence; without it, from now on."""
    await Socket(socket, ports).serve()


@router.get(
    "/sse",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/event-stream": {}}}},
)
async def sse(
    who: Reader,
    ports: Ports,
    after: Annotated[int | None, Query(ge=0, lt=1 << 63)] = None,
    last_event_id: Annotated[str | None, Header(alias="Last-Event-ID")] = None,
) -> StreamingResponse:
    """The same frames; a client that comes back says `Last-Event-ID` and misses nothing."""
    if last_event_id is not None:
        if not last_event_id.isdigit():
            raise Rejected(f"Last-Event-ID {last_event_id!r} is not a sequence")
        after = int(last_event_id)
    await ports.hub.state()
    return StreamingResponse(
        _server_sent(ports, who, after),
        media_type="text/event-stream",
        headers={"X-Accel-Buffering": "no"},
    )


async def _server_sent(ports: ApiPorts, who: Principal, after: int | None) -> AsyncIterator[str]:
    """Ends when the client has to connect again, which an EventSource does by itself, or when
    it is not signed in any more."""
    clock = asyncio.get_running_loop().time
    checked_at = clock()
    async with aclosing(Reading(ports.hub, who.tenant, after).frames()) as sending:
        try:
            async for together in sending:
                yield "".join(_server_sent_event(sent) for sent in together.sent)
                if clock() - checked_at > PING_S:
                    if not await ports.access.still_valid(who.token_id):
                        return
                    checked_at = clock()
        except (Restarting, Unavailable):
            return


def _server_sent_event(sent: Sent) -> str:
    named = f"id: {sent.sequence}\n" if sent.sequence is not None else ""
    return f"{named}data: {sent.text}\n\n"
