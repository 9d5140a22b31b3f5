"""Who is at work: every instance of every agent, and the coordinator."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

from fastapi import APIRouter
from pydantic import AwareDatetime, BaseModel, Field

from optiinfra.events.condition import ConsumerCondition
from optiinfra.portal_api.auth import Ports, Reader
from optiinfra.portal_api.examples import shown_as
from optiinfra.portal_api.ports import ApiPorts
from optiinfra.portal_api.routes.snapshots import Snapshot
from optiinfra.portal_api.views import AgentView
from optiinfra.schemas.change import ChangeState
from optiinfra.schemas.errors import OptiInfraError

router = APIRouter(tags=["fleet"], dependencies=[Snapshot])

COORDINATOR = "coordinator"


class WorkView(BaseModel):
    """The change that an instance is at."""

    title: str | None
    deployment: str | None
    state: ChangeState


class LagView(BaseModel):
    """What waits for all instances of a role together."""

    waiting: int
    in_hand: int
    redelivered: int


class WorkerView(AgentView):
    """An instance with its present work; `lag` is null where the broker does not tell it."""

    work: WorkView | None
    lag: LagView | None
    lag_reason: str | None


class CoordinatorView(BaseModel):
    status: Literal["alive", "unknown"] = Field(
        description="alive: it waits for events at the broker now"
    )
    policy: str | None
    last_written_at: AwareDatetime | None = Field(description="the newest event of the log")
    open_changes: int
    overdue_timers: int
    lag: LagView | None
    lag_reason: str | None


class WorkersView(BaseModel):
    model_config = shown_as("workers")

    agents: list[WorkerView]
    coordinator: CoordinatorView


@router.get("/agents/detail")
async def workers(who: Reader, ports: Ports) -> WorkersView:
    """What each has handled, what it is at, and what waits for it."""
    told = await ports.reports.workers(who.tenant)
    names = sorted({COORDINATOR, *(one["agent"] for one in told["agents"])})
    found = await asyncio.gather(*(_asked(ports, name) for name in names))
    asked = dict(zip(names, found, strict=True))
    return WorkersView(
        agents=[WorkerView(**one, **_lag(asked[one["agent"]])) for one in told["agents"]],
        coordinator=CoordinatorView(
            **told["coordinator"], **_lag(asked[COORDINATOR]), status=_status(asked[COORDINATOR])
        ),
    )


async def _asked(ports: ApiPorts, name: str) -> ConsumerCondition | str:
    """What the broker says of a role, or why it is not known."""
    if ports.consumers is None:
        return "this API has no broker to ask"
    try:
        found = await ports.consumers.condition(name)
    except OptiInfraError as failed:
        return failed.message
    return found or "it has never listened"


def _lag(found: ConsumerCondition | str) -> dict[str, Any]:
    if isinstance(found, str):
        return {"lag": None, "lag_reason": found}
    lag = LagView(waiting=found.waiting, in_hand=found.in_hand, redelivered=found.redelivered)
    return {"lag": lag, "lag_reason": None}


def _status(found: ConsumerCondition | str) -> Literal["alive", "unknown"]:
    return "alive" if not isinstance(found, str) and found.listeners else "unknown"
