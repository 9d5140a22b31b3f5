"""The event log and the audit trail, and the proof that nothing was altered."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Query, Response
from pydantic import AwareDatetime

from optiinfra.portal_api.auth import Auditor, Ports, Reader
from optiinfra.portal_api.paging import Paged, PageOf
from optiinfra.portal_api.routes.snapshots import Snapshot
from optiinfra.portal_api.views import (
    AuditView,
    BreakView,
    EventView,
    VerificationView,
    audit_view,
)
from optiinfra.storage.postgres.reading import AuditFilter, EventFilter
from optiinfra.storage.postgres.verification import verify

router = APIRouter(tags=["events"])


@router.get("/events", response_model=PageOf[EventView], dependencies=[Snapshot])
async def events(
    who: Reader,
    ports: Ports,
    paging: Paged,
    response: Response,
    after: Annotated[int | None, Query(ge=0, lt=1 << 63, description="a position")] = None,
    change: Annotated[str | None, Query(pattern="^[0-9a-f]{32}$")] = None,
    kind: Annotated[str | None, Query(pattern="^[a-z_]+[.][a-z_]+$")] = None,
    since: AwareDatetime | None = None,
    until: AwareDatetime | None = None,
) -> Response:
    """The log in its order; `since` and `until` are times at which events were taken in."""
    if after is not None and paging.after is None:
        paging.after = [after]
    want = EventFilter(change, kind, since, until)
    found = await ports.documents.events(who.tenant, want, paging.page(int))
    return paging.page_of(found, response)


@router.get("/audit")
async def audit(
    who: Auditor,
    ports: Ports,
    paging: Paged,
    allowed: bool | None = None,  # noqa: FBT001 - a query parameter
    actor: Annotated[str | None, Query(max_length=200)] = None,
    target: Annotated[str | None, Query(max_length=200)] = None,
    since: AwareDatetime | None = None,
) -> PageOf[AuditView]:
    """Who did or tried what, the latest first; what was denied too."""
    want = AuditFilter(allowed, actor, target, since)
    rows = await ports.queries.audit(who.tenant, want, paging.page(int))
    return paging.of(rows, audit_view, ("position",))


@router.get("/audit/verify")
async def audit_verify(who: Auditor, ports: Ports) -> VerificationView:
    """Walks every chain of the tenant's log and says where one does not hold."""
    found = await verify(ports.database, who.tenant)
    return VerificationView(
        ok=found.ok,
        chains=found.chains,
        events=found.events,
        breaks=[BreakView(**asdict(one)) for one in found.breaks],
    )
