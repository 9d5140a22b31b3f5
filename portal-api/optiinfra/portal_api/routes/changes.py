"""Changes under way and done, with their whole story, and an operator's wishes."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from optiinfra.portal_api.auth import Operator, Ports, Reader
from optiinfra.portal_api.paging import Paged, PageOf
from optiinfra.portal_api.routes.recommendations import Id, IdempotencyKey, Name, accepted_view
from optiinfra.portal_api.routes.snapshots import Snapshot
from optiinfra.portal_api.stages import stages_of
from optiinfra.portal_api.views import (
    AcceptedView,
    ChangeDetail,
    ChangeView,
    approval_view,
    change_view,
    event_view,
    execution_view,
    vote_of,
)
from optiinfra.schemas.change import ChangeState, ControlVerb
from optiinfra.schemas.ids import NewId
from optiinfra.schemas.recommendation import Recommendation
from optiinfra.storage.postgres.queries import ChangeFilter

_SORT_KEY = {"updated_at": datetime, "id": str}


class ControlBody(BaseModel):
    model_config = ConfigDict(extra="forbid")

    reason: str = Field(default="", max_length=2_000)


def changes_router(new_id: NewId) -> APIRouter:
    """`new_id` names requests that come without an `Idempotency-Key`."""
    router = APIRouter(tags=["changes"])
    router.add_api_route("/changes", changes, dependencies=[Snapshot])
    router.add_api_route("/changes/{change}", one_change, name="change", dependencies=[Snapshot])
    for verb in ControlVerb:
        router.add_api_route(
            f"/changes/{{change}}/{verb.value}",
            _control(verb, new_id),
            methods=["POST"],
            status_code=202,
            name=verb.value,
            description=_ABOUT[verb],
        )
    return router


async def changes(
    who: Reader,
    ports: Ports,
    paging: Paged,
    state: ChangeState | None = None,
    deployment: Name = None,
    kind: Name = None,
) -> PageOf[ChangeView]:
    """What moved last comes first."""
    want = ChangeFilter(state, deployment, kind)
    rows = await ports.queries.changes(who.tenant, want, paging.page(*_SORT_KEY.values()))
    return paging.of(rows, change_view, tuple(_SORT_KEY))


async def one_change(change: Id, who: Reader, ports: Ports) -> ChangeDetail:
    """One change: where it stands, who said what, each stage with its gates, every event."""
    row = await ports.queries.change(who.tenant, change)
    saga = row.pop("body")
    proposal = Recommendation.model_validate(saga["recommendation"])
    timeline = [event_view(event) for event in await ports.queries.timeline(change)]
    return ChangeDetail(
        **change_view(row).model_dump(),
        round=saga["round"],
        look=saga["look"],
        arms=saga["arms"],
        recommendation=proposal,
        version_hash=proposal.version_hash(),
        votes=[vote_of(vote) for vote in await ports.queries.votes(change)],
        approvals=[approval_view(one) for one in await ports.queries.approvals(change)],
        stages=stages_of(proposal, timeline),
        executions=[execution_view(one) for one in await ports.queries.executions(change)],
        timeline=timeline,
    )


def _control(verb: ControlVerb, new_id: NewId) -> Any:
    async def control(
        change: Id,
        who: Operator,
        ports: Ports,
        body: ControlBody,
        idempotency_key: IdempotencyKey = None,
    ) -> AcceptedView:
        key = idempotency_key or new_id()
        return accepted_view(await ports.decisions.control(who, (change, verb), body.reason, key))

    return control


_ABOUT = {
    ControlVerb.PAUSE: "No further stage until it is resumed.",
    ControlVerb.RESUME: "Goes on after a pause.",
    ControlVerb.PROMOTE: "Takes the decision of the gate that is waited for: the stage passes.",
    ControlVerb.ABORT: "Ends it: cancelled before its first step, rolled back after.",
    ControlVerb.ROLLBACK: "Brings the target back to what it was before the change.",
}
