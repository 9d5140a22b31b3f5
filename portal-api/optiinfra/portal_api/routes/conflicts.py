"""What arbitration decided: which changes wanted the same, which one goes on, and why."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response
from pydantic import AwareDatetime

from optiinfra.portal_api.auth import Ports, Reader
from optiinfra.portal_api.paging import Paged, PageOf
from optiinfra.portal_api.routes.recommendations import Name
from optiinfra.portal_api.routes.snapshots import Snapshot
from optiinfra.portal_api.views import ConflictVerdict, ConflictView
from optiinfra.storage.postgres.reading import ConflictFilter

router = APIRouter(tags=["changes"])


@router.get("/conflicts", response_model=PageOf[ConflictView], dependencies=[Snapshot])
async def conflicts(
    who: Reader,
    ports: Ports,
    paging: Paged,
    response: Response,
    change: Annotated[
        str | None, Query(pattern="^[0-9a-f]{32}$", description="on either side")
    ] = None,
    verdict: ConflictVerdict | None = None,
    rule: Name = None,
    since: AwareDatetime | None = None,
) -> Response:
    """The latest first."""
    want = ConflictFilter(change, verdict, rule, since)
    found = await ports.documents.conflicts(who.tenant, want, paging.page(int))
    return paging.page_of(found, response)
