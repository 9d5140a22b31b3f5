"""What happened of late, lane by lane."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from optiinfra.portal_api.auth import Ports, Reader
from optiinfra.portal_api.figures.lanes import SLOTS, LanesView, lanes_view
from optiinfra.portal_api.routes.recommendations import Name
from optiinfra.portal_api.routes.snapshots import Snapshot
from optiinfra.storage.postgres.lanes import LanesQuery, lanes_told

router = APIRouter(tags=["figures"], dependencies=[Snapshot])


@router.get("/lanes")
async def lanes(
    who: Reader,
    ports: Ports,
    window_s: Annotated[float, Query(ge=60, le=86_400, description="how far to look back, s")] = (
        3_600
    ),
    deployment: Name = None,
) -> LanesView:
    """Who did what when, from the event log: at most 500 marks a lane, each with its count."""
    want = LanesQuery(who.tenant, window_s, window_s / SLOTS, deployment)
    return lanes_view(await lanes_told(ports.database, want))
