"""The log read again: how changes stood, and what another policy would have decided."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from optiinfra.portal_api.auth import Ports, Reader
from optiinfra.portal_api.paging import Paged, PageOf
from optiinfra.portal_api.routes.times import Time
from optiinfra.schemas.change import ChangeState
from optiinfra.schemas.errors import Rejected
from optiinfra.schemas.hindsight import Standing, WhatIf
from optiinfra.schemas.rules import Rules
from optiinfra.schemas.wrong_keys import in_words
from optiinfra.storage.postgres.events import links_of_tenant
from optiinfra.storage.postgres.reading import EventFilter
from optiinfra.storage.postgres.replays import Chain, chains_open

MOST_EVENTS = 20_000
LONGEST = timedelta(days=92)
_A_DAY = timedelta(days=1)

router = APIRouter(tags=["hindsight"])


class StepView(BaseModel):
    """How a change stood from an event on; `why` it waits, is undone or has ended, if said."""

    position: int
    event: str
    at: AwareDatetime
    state: ChangeState
    stage: int | None
    why: str | None


class ReplayView(BaseModel):
    """One change from its beginning to the end of the range; steps are where it moved."""

    change: str
    title: str | None
    deployment: str | None
    opened_at: AwareDatetime
    steps: list[StepView]


class WhatIfBody(BaseModel):
    """`since` is when the first of the changes has begun: a day ago, if it is not given."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"policy": {"name": "careful", "max_moving": 1}}]},
    )

    policy: dict[str, Any]
    since: Time | None = None


class WhatIfView(WhatIf):
    since: AwareDatetime
    events: int = Field(description="how many events of the log were read")


@router.get("/replay")
async def replay(
    who: Reader,
    ports: Ports,
    paging: Paged,
    change: Annotated[str | None, Query(pattern="^[0-9a-f]{32}$")] = None,
    since: Time | None = None,
    until: Time | None = None,
) -> PageOf[ReplayView]:
    """How the changes stood that were open in a range, folded from the log alone, oldest first.

    As `optiinfra events replay --states`. A page ends early where its chains are long.
    """
    want = EventFilter(change, None, since, until)
    chains, more = await chains_open(ports.database, who.tenant, want, paging.page(datetime, str))
    standings = await ports.hindsight.standings(chains)
    items = [_replayed(*one) for one in zip(chains, standings, strict=True)]
    last = (chains[-1].opened_at, chains[-1].change) if more else None
    return PageOf[ReplayView](items=items, next=paging.following(last))


@router.post("/what-if")
async def what_if(body: WhatIfBody, who: Reader, ports: Ports) -> WhatIfView:
    """Which recorded decisions would differ under another policy, why, and for how much.

    As `optiinfra what-if`. Nothing is written.
    """
    try:
        rules = Rules.model_validate(body.policy)
    except ValidationError as invalid:
        raise Rejected(
            f"the policy is not right: {'; '.join(in_words(invalid, Rules))}",
            hint="POST /policies/check says all that is wrong",
        ) from invalid
    now = datetime.now(UTC)
    since = body.since or now - _A_DAY
    if now - since > LONGEST:
        raise Rejected(f"{since:%Y-%m-%d} is more than {LONGEST.days} days ago")
    links = await links_of_tenant(ports.database, who.tenant, since, MOST_EVENTS + 1)
    if len(links) > MOST_EVENTS:
        raise Rejected(
            f"the log has more than {MOST_EVENTS} events since {since:%Y-%m-%d %H:%M}",
            hint="choose a later time, or run `optiinfra what-if`, which has no such limit",
        )
    found = await ports.hindsight.what_if(links, rules)
    return WhatIfView(since=since, events=len(links), **dict(found))


def _replayed(chain: Chain, standings: list[Standing | None]) -> ReplayView:
    known = [one for one in standings if one is not None]
    return ReplayView(
        change=chain.change,
        title=chain.title,
        deployment=known[-1].deployment if known else None,
        opened_at=chain.opened_at,
        steps=list(_steps(chain, standings)),
    )


def _steps(chain: Chain, standings: list[Standing | None]) -> Iterator[StepView]:
    last: tuple[object, ...] | None = None
    for event, one in zip(chain.events, standings, strict=True):
        if one is None or (one.state, one.stage, one.why) == last:
            continue
        last = (one.state, one.stage, one.why)
        yield StepView(
            position=event["position"],
            event=event["event_id"],
            at=event["at"],
            state=one.state,
            stage=one.stage,
            why=one.why,
        )
