"""Timers that are due by the database's clock, and those that the broker does not know yet."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime

import asyncpg

from optiinfra.events.facts import TimerFired, TimerName, TimerSet
from optiinfra.events.timers import WAIT_FOR_NOBODY
from optiinfra.storage.postgres.database import Database


@dataclass(frozen=True, slots=True)
class StandingTimer:
    """A timer that is set; `event_id` is that of its `timer.set` event."""

    tenant: str
    event_id: str
    fact: TimerSet


@dataclass(frozen=True, slots=True)
class DueTimer:
    tenant: str
    fired: TimerFired


async def due_timers(
    database: Database, heard_until: datetime | None = None, limit: int = 64
) -> list[DueTimer]:
    """What should have fired by now, oldest first.

    Those that end the waiting for somebody's word only once everything has been heard that was
    said before them: until `heard_until` (None: all).
    """
    async with database.connection() as connection:
        rows = await connection.fetch(
            _DUE, limit, heard_until, sorted(name.value for name in WAIT_FOR_NOBODY)
        )
    return [
        DueTimer(
            row["tenant"],
            TimerFired(change=row["change_id"], name=TimerName(row["name"]), key=row["key"]),
        )
        for row in rows
    ]


@asynccontextmanager
async def unscheduled(
    database: Database, *, limit: int, older_than_s: float
) -> AsyncIterator[tuple[list[StandingTimer], list[str]]]:
    """Timers that the broker does not know yet and that have stood for `older_than_s` seconds.

    They are ours alone until the block ends; those whose event ids are put into the list by then
    are marked as scheduled. What is due within a second is left to the sweep.
    """
    async with database.transaction() as connection:
        rows = await connection.fetch(_UNSCHEDULED, limit, older_than_s)
        done: list[str] = []
        yield [_standing(row) for row in rows], done
        if done:
            await connection.execute(_SCHEDULED, done)


def _standing(row: asyncpg.Record) -> StandingTimer:
    fact = TimerSet(
        change=row["change_id"],
        name=TimerName(row["name"]),
        key=row["key"],
        fire_at=row["fire_at"],
    )
    return StandingTimer(row["tenant"], row["event_id"], fact)


_DUE = """
SELECT change_id, name, key, tenant FROM timers WHERE nudged OR (
    fire_at <= clock_timestamp()
    AND ($2::timestamptz IS NULL OR fire_at <= $2 OR name = ANY($3::text[]))
) ORDER BY fire_at LIMIT $1
"""
_UNSCHEDULED = """
SELECT change_id, name, key, tenant, fire_at, event_id FROM timers WHERE NOT scheduled
AND set_at <= clock_timestamp() - make_interval(secs => $2)
AND fire_at > clock_timestamp() + interval '1 second'
ORDER BY set_at LIMIT $1 FOR UPDATE SKIP LOCKED
"""
_SCHEDULED = "UPDATE timers SET scheduled = true WHERE event_id = ANY($1)"
