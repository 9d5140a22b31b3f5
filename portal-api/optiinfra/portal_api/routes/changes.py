"""Changes under way and done, with their whole story, and an operator's wishes."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

from fastapi import APIRouter, Response
from pydantic import BaseModel, ConfigDict, Field

from optiinfra.portal_api.auth import Operator, Ports, Reader
from optiinfra.portal_api.paging import Paged, PageOf, json_answer
from optiinfra.portal_api.routes.recommendations import Id, IdempotencyKey, Name, accepted_view
from optiinfra.portal_api.routes.snapshots import Snapshot
from optiinfra.portal_api.stages import stages_of
from optiinfra.portal_api.views import AcceptedView, ChangeDetail, ChangeView
from optiinfra.schemas.change import ChangeState, ControlVerb
from optiinfra.schemas.ids import NewId
from optiinfra.storage.postgres.reading import ChangeFilter

_SORT_KEY = (datetime, str)


class ControlBody(BaseModel):
    model_config = ConfigDict(extra="forbid")

    reason: str = Field(default="", max_length=2_000)


def changes_router(new_id: NewId) -> APIRouter:
    """`new_id` names requests that come without an `Idempotency-Key`."""
    router = APIRouter(tags=["changes"])
    router.add_api_route(
        "/changes", changes, response_model=PageOf[ChangeView], dependencies=[Snapshot]
    )
    router.add_api_route(
        "/changes/{change}",
        one_change,
        name="change",
        response_model=ChangeDetail,
        dependencies=[Snapshot],
    )
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
    response: Response,
    state: ChangeState | None = None,
    deployment: Name = None,
    kind: Name = None,
) -> Response:
    """What moved last comes first."""
    want = ChangeFilter(state, deployment, kind)
    found = await ports.documents.changes(who.tenant, want, paging.page(*_SORT_KEY))
    return paging.page_of(found, response)


async def one_change(change: Id, who: Reader, ports: Ports, response: Response) -> Response:
    """One change: where it stands, who said what, each stage with its gates, every event."""
    found = await ports.documents.change(who.tenant, change)
    stages = json.dumps(stages_of(json.loads(found.planned), json.loads(found.told)))
    rest = f'"stages":{stages},"timeline":{found.timeline}}}'
    return json_answer(f"{found.text[:-1]},{rest}", response)


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
