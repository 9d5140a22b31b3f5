"""What is proposed, and a person's word on it."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Header, Path, Query, Response
from pydantic import BaseModel, ConfigDict, Field

from optiinfra.portal_api.auth import Approver, Ports, Reader
from optiinfra.portal_api.figures.card import METRICS, CardView, card
from optiinfra.portal_api.figures.seen import SPEND_LATEST_S, Seen, look
from optiinfra.portal_api.paging import Paged, PageOf, json_answer
from optiinfra.portal_api.ports import ApiPorts
from optiinfra.portal_api.problems import PreconditionNeeded
from optiinfra.portal_api.routes.snapshots import Snapshot
from optiinfra.portal_api.views import (
    AcceptedView,
    RecommendationDetail,
    RecommendationView,
)
from optiinfra.schemas.change import ChangeState
from optiinfra.schemas.errors import Rejected, Unavailable
from optiinfra.storage.postgres.access import Principal
from optiinfra.storage.postgres.decisions import Accepted, Decision
from optiinfra.storage.postgres.reading import ChangeFilter

router = APIRouter(tags=["recommendations"])
Id = Annotated[str, Path(pattern=r"^[0-9a-f]{32}$")]
IfMatch = Annotated[
    str | None,
    Header(alias="If-Match", description='the version that was shown, as `"<version_hash>"`'),
]
IdempotencyKey = Annotated[
    str | None,
    Header(alias="Idempotency-Key", max_length=128, description="names the request for repeats"),
]
Name = Annotated[str | None, Query(max_length=63)]
Snoozed = Annotated[bool | None, Query()]
_SORT_KEY = (datetime, str)


class DecisionBody(BaseModel):
    """Why; it is kept, and a rejection's reason is learnt from."""

    model_config = ConfigDict(extra="forbid")

    reason: str = Field(default="", max_length=2_000)


class RejectionBody(DecisionBody):
    reason: str = Field(min_length=1, max_length=2_000)


@router.get("/recommendations", response_model=PageOf[RecommendationView], dependencies=[Snapshot])
async def recommendations(
    who: Reader,
    ports: Ports,
    paging: Paged,
    response: Response,
    state: ChangeState | None = None,
    deployment: Name = None,
    kind: Name = None,
    snoozed: Snoozed = None,
) -> Response:
    """The newest first; `snoozed` keeps to those that somebody has put off, or to the others."""
    want = ChangeFilter(state, deployment, kind, snoozed)
    found = await ports.documents.recommendations(who.tenant, want, paging.page(*_SORT_KEY))
    return paging.page_of(found, response)


@router.get(
    "/recommendations/{change}", response_model=RecommendationDetail, dependencies=[Snapshot]
)
async def recommendation(
    change: Id,
    who: Reader,
    ports: Ports,
    response: Response,
) -> Response:
    """One, with its votes and decisions; the `ETag` is what a decision's `If-Match` names."""
    found = await ports.documents.recommendation(who.tenant, change)
    response.headers["ETag"] = f'"{found.version_hash}"'
    return json_answer(found.text, response)


@router.get("/recommendations/{change}/card", dependencies=[Snapshot])
async def recommendation_card(
    change: Id, who: Reader, ports: Ports, response: Response
) -> CardView:
    """All that a person decides on, in the order in which it is read, with the same `ETag`."""
    told = await ports.reports.card(who.tenant, change)
    found = card(told, await _replicas_seen(ports, who.tenant))
    response.headers["ETag"] = f'"{found.header.version_hash}"'
    return found


async def _replicas_seen(ports: ApiPorts, tenant: str) -> dict[str, Seen] | None:
    """None where telemetry cannot be read: a person can decide all the same."""
    try:
        return (await look(ports, tenant, SPEND_LATEST_S, METRICS)).seen
    except Unavailable:
        return None


@router.post("/recommendations/{change}/approve", status_code=202)
async def approve(
    change: Id,
    who: Approver,
    ports: Ports,
    body: DecisionBody,
    if_match: IfMatch = None,
    idempotency_key: IdempotencyKey = None,
) -> AcceptedView:
    """Says yes to the version that was shown. Repeating it changes nothing."""
    decision = Decision(
        change,
        granted=True,
        version_hash=version_of(if_match),
        reason=body.reason,
        key=idempotency_key,
    )
    return await _decide(ports, who, decision)


@router.post("/recommendations/{change}/reject", status_code=202)
async def reject(
    change: Id,
    who: Approver,
    ports: Ports,
    body: RejectionBody,
    if_match: IfMatch = None,
    idempotency_key: IdempotencyKey = None,
) -> AcceptedView:
    """Says no to the version that was shown. Repeating it changes nothing."""
    decision = Decision(
        change,
        granted=False,
        version_hash=version_of(if_match),
        reason=body.reason,
        key=idempotency_key,
    )
    return await _decide(ports, who, decision)


async def _decide(ports: ApiPorts, who: Principal, decision: Decision) -> AcceptedView:
    return accepted_view(await ports.decisions.decide(who, decision))


def accepted_view(accepted: Accepted) -> AcceptedView:
    return AcceptedView(event_id=accepted.event_id, at=accepted.at, repeated=accepted.repeated)


def version_of(if_match: str | None) -> str:
    """The version hash in an `If-Match`. Raises `PreconditionNeeded` when there is none."""
    if if_match is None:
        raise PreconditionNeeded(
            "a decision needs If-Match with the version that was shown",
            hint="send the ETag of GET /api/v1/recommendations/{id}",
        )
    found = re.fullmatch(r'"?([0-9a-f]{16})"?', if_match.strip())
    if found is None:
        raise Rejected(f"If-Match {if_match!r} is not a version", hint='send `"<version_hash>"`')
    return found.group(1)
