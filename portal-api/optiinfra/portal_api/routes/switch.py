"""The stop switch."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from optiinfra.portal_api.auth import Ports, Reader, Switcher
from optiinfra.portal_api.routes.recommendations import IdempotencyKey, accepted_view
from optiinfra.portal_api.routes.snapshots import Snapshot
from optiinfra.portal_api.views import AcceptedView, SwitchView
from optiinfra.schemas.ids import NewId


class SwitchBody(BaseModel):
    model_config = ConfigDict(extra="forbid")

    stopped: bool
    reason: str = Field(min_length=1, max_length=2_000)


def switch_router(new_id: NewId) -> APIRouter:
    """`new_id` names requests that come without an `Idempotency-Key`."""
    router = APIRouter(tags=["switch"])

    @router.get("/switch", dependencies=[Snapshot])
    async def switch(who: Reader, ports: Ports) -> SwitchView:
        """How it stands: stopped means that no stage begins; rollbacks still run."""
        row = await ports.queries.switch(who.tenant)
        if row is None:
            return SwitchView(stopped=False)
        return SwitchView(stopped=row["stopped"], by=row["by"], reason=row["reason"], at=row["at"])

    @router.post("/switch", status_code=202)
    async def turn(
        who: Switcher, ports: Ports, body: SwitchBody, idempotency_key: IdempotencyKey = None
    ) -> AcceptedView:
        """Stops the tenant's changes, or lets them go on."""
        accepted = await ports.decisions.turn_switch(
            who, stopped=body.stopped, reason=body.reason, key=idempotency_key or new_id()
        )
        return accepted_view(accepted)

    return router
