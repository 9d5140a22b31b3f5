"""The event log and the audit trail, and the proof that nothing was altered."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Path, Query, Response
from fastapi.responses import StreamingResponse
from pydantic import AwareDatetime

from optiinfra.portal_api.auth import Auditor, Ports, Reader
from optiinfra.portal_api.paging import Paged, PageOf, json_answer
from optiinfra.portal_api.routes.snapshots import Snapshot
from optiinfra.portal_api.routes.times import Time
from optiinfra.portal_api.views import (
    AuditView,
    BreakView,
    CausesView,
    EventView,
    VerificationView,
    audit_view,
)
from optiinfra.storage.postgres.causes import causes_of
from optiinfra.storage.postgres.export import Range, exported
from optiinfra.storage.postgres.reading import AuditFilter, EventFilter
from optiinfra.storage.postgres.verification import verify

LINES = "application/x-ndjson"

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


@router.get("/events/{event}/causes", response_model=CausesView, dependencies=[Snapshot])
async def event_causes(
    event: Annotated[str, Path(max_length=200)], who: Reader, ports: Ports, response: Response
) -> Response:
    """What caused an event and what it led to, nearest first within bounds; says what was cut."""
    found = await causes_of(ports.database, who.tenant, event)
    items = ",".join(one.text for one in found.found)
    cut = (
        f'"causes_cut":{json.dumps(found.causes_cut)},"effects_cut":{json.dumps(found.effects_cut)}'
    )
    return json_answer(f'{{"items":[{items}],{cut}}}', response)


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


@router.get(
    "/audit/export",
    response_class=StreamingResponse,
    responses={200: {"content": {LINES: {"schema": {"type": "string"}}}}},
)
async def audit_export(
    who: Auditor, ports: Ports, since: Time | None = None, until: Time | None = None
) -> StreamingResponse:
    """The log and the audit trail as lines of JSON that prove themselves.

    As `optiinfra audit export`; `optiinfra audit verify --file` checks it. A download that broke
    off lacks the last line, which seals the others.
    """
    lines = exported(ports.database, Range(who.tenant, since, until))
    first = await anext(lines)  # what fails at once is a problem, not a broken download
    name = f"optiinfra-{who.tenant}-audit.jsonl"
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return StreamingResponse(_after(first, lines), media_type=LINES, headers=headers)


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


async def _after(first: str, rest: AsyncIterator[str]) -> AsyncIterator[str]:
    yield first
    async for line in rest:
        yield line
