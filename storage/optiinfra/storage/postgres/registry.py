"""Agents that are known, and who has not been heard of for too long."""

from __future__ import annotations

from datetime import datetime

from optiinfra.events.facts import AgentHeartbeat, AgentLost
from optiinfra.storage.postgres.database import Database


async def saw(database: Database, beat: AgentHeartbeat) -> bool:
    """Notes a heartbeat; False when this instance is not registered or counted as lost."""
    async with database.connection() as connection:
        known = await connection.fetchval(
            "UPDATE agents SET last_seen_at = clock_timestamp(), busy_with = $4, handled = $5,"
            " failed = $6 WHERE tenant = $1 AND agent = $2 AND instance = $3 AND status = 'alive'"
            " RETURNING 1",
            beat.tenant,
            beat.agent,
            beat.instance,
            beat.busy_with,
            beat.handled,
            beat.failed,
        )
    return known is not None


async def silent_agents(database: Database, silent_s: float) -> list[AgentLost]:
    """Instances counted as alive that have been silent for longer than `silent_s` seconds."""
    async with database.connection() as connection:
        rows = await connection.fetch(
            "SELECT tenant, agent, instance, last_seen_at FROM agents WHERE status = 'alive'"
            " AND last_seen_at < clock_timestamp() - make_interval(secs => $1)",
            silent_s,
        )
    return [
        AgentLost(
            tenant=row["tenant"],
            agent=row["agent"],
            instance=row["instance"],
            last_seen_at=row["last_seen_at"],
        )
        for row in rows
    ]


async def database_clock(database: Database) -> datetime:
    async with database.connection() as connection:
        now: datetime = await connection.fetchval("SELECT clock_timestamp()")
    return now
