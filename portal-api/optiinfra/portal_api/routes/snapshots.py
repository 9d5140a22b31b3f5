"""How a snapshot says from which sequence on the live stream continues it."""

from __future__ import annotations

from fastapi import Depends, Response

from optiinfra.portal_api.auth import Ports

EVENT_SEQ = "X-Event-Seq"


async def mark_snapshot(ports: Ports, response: Response) -> None:
    """Sets `X-Event-Seq`, taken before anything is read; open the stream with `?after=` it."""
    response.headers[EVENT_SEQ] = str(await ports.settled.sequence())


Snapshot = Depends(mark_snapshot)
