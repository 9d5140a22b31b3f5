"""Putting a decision off until later, and ending that early."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from pydantic import AwareDatetime, Field

from optiinfra.portal_api.auth import Approver, Ports
from optiinfra.portal_api.routes.recommendations import (
    DecisionBody,
    Id,
    IdempotencyKey,
    IfMatch,
    accepted_view,
    version_of,
)
from optiinfra.portal_api.views import AcceptedView
from optiinfra.schemas.ids import NewId
from optiinfra.storage.postgres.decisions import PutOff


class SnoozeBody(DecisionBody):
    until: AwareDatetime = Field(description="with its zone; at most when it expires")


def snooze_router(new_id: NewId) -> APIRouter:
    """`new_id` names requests that come without an `Idempotency-Key`."""
    router = APIRouter(tags=["recommendations"])
    for name, made in (("snooze", _snooze(new_id)), ("wake", _wake(new_id))):
        path = f"/recommendations/{{change}}/{name}"
        router.add_api_route(path, made, methods=["POST"], status_code=202, name=name)
    return router


def _snooze(new_id: NewId) -> Any:
    async def snooze(
        change: Id,
        who: Approver,
        ports: Ports,
        body: SnoozeBody,
        if_match: IfMatch = None,
        idempotency_key: IdempotencyKey = None,
    ) -> AcceptedView:
        """Puts the decision on the version that was shown off until a time. It stays pending, is
        not asked for, and cannot be approved meanwhile; it still expires when it did."""
        key = idempotency_key or new_id()
        wish = PutOff(change, version_of(if_match), body.until, body.reason, key)
        return accepted_view(await ports.decisions.put_off(who, wish))

    return snooze


def _wake(new_id: NewId) -> Any:
    async def wake(
        change: Id,
        who: Approver,
        ports: Ports,
        body: DecisionBody,
        if_match: IfMatch = None,
        idempotency_key: IdempotencyKey = None,
    ) -> AcceptedView:
        """Asks for the decision again before the time has come."""
        key = idempotency_key or new_id()
        wish = PutOff(change, version_of(if_match), None, body.reason, key)
        return accepted_view(await ports.decisions.put_off(who, wish))

    return wake
