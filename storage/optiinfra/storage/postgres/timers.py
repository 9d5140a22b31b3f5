"""Timers that are due, by the database's clock."""

from __future__ import annotations

from dataclasses import dataclass

from optiinfra.events.facts import TimerFired, TimerName
from optiinfra.storage.postgres.database import Database


@dataclass(frozen=True, slots=True)
class DueTimer:
    tenant: str
    fired: TimerFired


async def due_timers(database: Database, limit: int = 64) -> list[DueTimer]:
    """What should have fired by now, oldest first."""
    async with database.connection() as connection:
        rows = await connection.fetch(
            "SELECT change_id, name, key, tenant FROM timers WHERE fire_at <= clock_timestamp()"
            " ORDER BY fire_at LIMIT $1",
            limit,
        )
    return [
        DueTimer(
            row["tenant"],
            TimerFired(change=row["change_id"], name=TimerName(row["name"]), key=row["key"]),
        )
        for row in rows
    ]


async def is_due(database: Database, fired: TimerFired) -> bool:
    """Whether the timer's time has come; a timer that no longer stands counts as due (and void)."""
    async with database.connection() as connection:
        early = await connection.fetchval(
            "SELECT fire_at > clock_timestamp() FROM timers"
            " WHERE change_id = $1 AND name = $2 AND key = $3",
            fired.change,
            fired.name.value,
            fired.key,
        )
    return not early
