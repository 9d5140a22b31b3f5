"""Fires what is due and publishes what was left: the nets under the bus."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime

import structlog

from optiinfra.coordinator.outlet import Publishes
from optiinfra.events.envelope import Event
from optiinfra.events.facts import AgentLost
from optiinfra.schemas.errors import Unavailable
from optiinfra.schemas.ids import NewId, derived_id
from optiinfra.storage.postgres.database import Database
from optiinfra.storage.postgres.outbox import unsent
from optiinfra.storage.postgres.registry import database_clock, silent_agents
from optiinfra.storage.postgres.retention import forget_received, forget_sent
from optiinfra.storage.postgres.timers import StandingTimer, due_timers, unscheduled

log = structlog.get_logger()

Handle = Callable[[Sequence[Event]], Awaitable[Sequence[BaseException | None]]]
_SOURCE = "coordinator"
_BATCH = 256
_TIDY_BATCH = 5_000


async def sweep_timers(
    database: Database, handle: Handle, heard_until: datetime | None = None
) -> int:
    """Fires the timers that are due by the database's clock; gives how many.

    `heard_until`: how far it is known what was said; None: to the end.
    """
    due = await due_timers(database, heard_until)
    if not due:
        return 0
    now = await database_clock(database)
    events = [
        Event(
            id=derived_id(timer.fired.change, timer.fired.name, timer.fired.key),
            source=_SOURCE,
            tenant=timer.tenant,
            time=now,
            fact=timer.fired,
            correlation=timer.fired.change,
        )
        for timer in due
    ]
    for event, failure in zip(events, await handle(events), strict=True):
        if failure is not None:
            log.error("timer.failed", change=event.correlation, reason=str(failure))
    return len(due)


async def sweep_agents(
    database: Database, handle: Handle, *, lost_after_s: float, new_id: NewId
) -> list[AgentLost]:
    """Declares agents lost that have been silent for `lost_after_s` seconds."""
    lost = await silent_agents(database, lost_after_s)
    if lost:
        now = await database_clock(database)
        events = [
            Event(id=new_id(), source=_SOURCE, tenant=fact.tenant, time=now, fact=fact)
            for fact in lost
        ]
        await handle(events)
    for fact in lost:
        log.warning("agent.lost", agent=fact.agent, instance=fact.instance)
    return lost


async def relay_outbox(
    database: Database, publisher: Publishes, *, older_than_s: float = 2.0
) -> int:
    """Publishes what was committed but not acknowledged; repeats are dropped by message id.

    What another coordinator publishes now is left out.
    """
    async with unsent(database, limit=_BATCH, older_than_s=older_than_s) as (events, sent):
        sent.update(await _published(publisher, events))
        _require_some(events, sent)
    return len(sent)


async def relay_timers(
    database: Database, publisher: Publishes, *, older_than_s: float = 1.0
) -> int:
    """Hands timers to the broker that still stand after a while; gives how many it took."""
    async with unscheduled(database, limit=_BATCH, older_than_s=older_than_s) as (timers, done):
        events = [_set_event(timer) for timer in timers]
        taken = await _published(publisher, events)
        _require_some(events, taken)
        done.extend(taken)
    return len(taken)


def _set_event(timer: StandingTimer) -> Event:
    """The event that set a timer; its time counts for nothing here."""
    return Event(
        id=timer.event_id,
        source=_SOURCE,
        tenant=timer.tenant,
        time=timer.fact.fire_at,
        fact=timer.fact,
        correlation=timer.fact.change,
    )


async def tidy(database: Database, *, keep_s: float) -> int:
    """Forgets what was received or sent longer ago than `keep_s` seconds; gives how much.

    In small batches, so that no lock is held for long. The event log is never touched.
    """
    forgotten = 0
    for forget in (forget_received, forget_sent):
        while gone := await forget(database, older_than_s=keep_s, limit=_TIDY_BATCH):
            forgotten += gone
    if forgotten:
        log.info("journal.tidied", rows=forgotten)
    return forgotten


async def _published(publisher: Publishes, events: Sequence[Event]) -> dict[str, int]:
    results = await publisher.publish_many(events) if events else []
    return {e.id: r for e, r in zip(events, results, strict=True) if isinstance(r, int)}


def _require_some(events: Sequence[Event], sent: Mapping[str, int]) -> None:
    if events and not sent:
        raise Unavailable(f"none of {len(events)} events in the outbox could be published")
