"""What the database says of unfinished work: open changes, overdue timers, backlogs, agents."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from optiinfra.schemas.change import TERMINAL_STATES
from optiinfra.storage.postgres.database import Database

_ENDED = [state.value for state in sorted(TERMINAL_STATES)]


@dataclass(frozen=True, slots=True)
class OpenChange:
    """A change that has not ended; `quiet_s` is how long ago its last event was taken in, s."""

    id: str
    tenant: str
    deployment: str | None
    state: str
    body: str
    """The saga as JSON."""
    quiet_s: float
    next_timer: str | None
    """The timer that is due first; None when none is set."""
    overdue_s: float
    """How long ago that one should have fired, s; below 0 when it is still to come."""
    alone: bool
    """Whether no other open change wants its deployment."""
    seen_at: datetime
    """When that was so, by the database's clock."""


@dataclass(frozen=True, slots=True)
class Backlog:
    """How many wait, and for how long the oldest does, s."""

    count: int
    oldest_s: float


@dataclass(frozen=True, slots=True)
class OpenIntent:
    """A step that an executor has begun and not finished."""

    change: str
    state: str
    step: str
    begun_s: float
    """How long ago, s."""


@dataclass(frozen=True, slots=True)
class KnownAgent:
    """An instance of an agent; `silent_s` counts from its last heartbeat, s."""

    tenant: str
    agent: str
    instance: str
    status: str
    silent_s: float


@dataclass(frozen=True, slots=True)
class StopSwitch:
    """A stop switch that is on."""

    tenant: str
    by: str
    reason: str
    at: datetime


class Condition:
    """Reads, and changes nothing. All raise `Unavailable` without server."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def open_states(self) -> dict[str, int]:
        """How many changes are open, by state."""
        async with self._database.connection() as connection:
            return {row[0]: row[1] for row in await connection.fetch(_STATES, _ENDED)}

    async def open_changes(self, limit: int) -> list[OpenChange]:
        """Open changes: those whose timer is most overdue, or that have none, come first."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(_OPEN, _ENDED, limit)
        return [OpenChange(**dict(row)) for row in rows]

    async def overdue_timers(self, late_s: float) -> Backlog:
        """Timers that should have fired more than `late_s` seconds ago."""
        return await self._backlog(_OVERDUE, late_s)

    async def unsent(self) -> Backlog:
        """What the outbox holds that the broker has not acknowledged."""
        return await self._backlog(_UNSENT)

    async def open_intents(self) -> list[OpenIntent]:
        """Steps without a result, the oldest first."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(_INTENTS)
        return [OpenIntent(**dict(row)) for row in rows]

    async def agents(self) -> list[KnownAgent]:
        """All instances that have registered."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(_AGENTS)
        return [KnownAgent(**dict(row)) for row in rows]

    async def switches(self) -> list[StopSwitch]:
        """Stop switches that are on."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(_SWITCHES)
        return [StopSwitch(**dict(row)) for row in rows]

    async def heads_off_their_log(self, limit: int) -> list[str]:
        """Which of the changes that moved last do not stand where their logs end."""
        async with self._database.connection() as connection:
            return [row[0] for row in await connection.fetch(_HEADS, limit)]

    async def not_projected(self, limit: int) -> list[str]:
        """Ids among the newest `limit` events of the log that the tables for reading lack."""
        async with self._database.connection() as connection:
            return [row[0] for row in await connection.fetch(_NOT_PROJECTED, limit)]

    async def _backlog(self, query: str, *arguments: object) -> Backlog:
        async with self._database.connection() as connection:
            row = await connection.fetchrow(query, *arguments)
        assert row is not None
        return Backlog(row[0], row[1])


_STATES = "SELECT state, count(*) FROM sagas WHERE state <> ALL($1) GROUP BY state ORDER BY state"
_OPEN = """
SELECT s.change_id AS id, s.tenant, s.deployment, s.state, s.body,
    extract(epoch FROM clock_timestamp() - s.updated_at)::float8 AS quiet_s,
    t.name AS next_timer,
    coalesce(extract(epoch FROM clock_timestamp() - t.fire_at), 0)::float8 AS overdue_s,
    s.deployment IS NULL OR s.wanting = 1 AS alone, clock_timestamp() AS seen_at
FROM (
    SELECT *, count(*) OVER (PARTITION BY tenant, deployment) AS wanting
    FROM sagas WHERE state <> ALL($1)
) AS s LEFT JOIN LATERAL (
    SELECT name, fire_at FROM timers WHERE timers.change_id = s.change_id
    ORDER BY fire_at LIMIT 1
) AS t ON true
ORDER BY t.fire_at NULLS FIRST, s.updated_at LIMIT $2
"""
_OVERDUE = """
SELECT count(*), coalesce(extract(epoch FROM clock_timestamp() - min(fire_at)), 0)::float8
FROM timers WHERE fire_at < clock_timestamp() - make_interval(secs => $1)
"""
_UNSENT = """
SELECT count(*), coalesce(extract(epoch FROM clock_timestamp() - min(created_at)), 0)::float8
FROM outbox WHERE sent_seq IS NULL
"""
_INTENTS = """
SELECT e.change_id AS change, coalesce(s.state, 'unknown') AS state,
    e.kind || ' ' || e.stage || ', attempt ' || e.attempt AS step,
    extract(epoch FROM clock_timestamp() - e.begun_at)::float8 AS begun_s
FROM executions e LEFT JOIN sagas s USING (change_id)
WHERE e.result IS NULL ORDER BY e.begun_at
"""
_AGENTS = """
SELECT tenant, agent, instance, status,
    extract(epoch FROM clock_timestamp() - last_seen_at)::float8 AS silent_s
FROM agents ORDER BY tenant, agent, instance
"""
_SWITCHES = "SELECT tenant, by, reason, at FROM switches WHERE stopped ORDER BY tenant"
_HEADS = """
SELECT change_id FROM (
    SELECT change_id, version, hash FROM sagas ORDER BY updated_at DESC LIMIT $1
) AS newest WHERE NOT EXISTS (
    SELECT 1 FROM event_log WHERE chain = change_id AND event_log.version = newest.version
    AND event_log.hash = newest.hash
) OR EXISTS (
    SELECT 1 FROM event_log WHERE chain = change_id AND event_log.version > newest.version
)
"""
_NOT_PROJECTED = """
SELECT event_id FROM (
    SELECT event_id, chain, type FROM event_log ORDER BY position DESC LIMIT $1
) AS newest WHERE CASE type
    WHEN 'optiinfra.recommendation.proposed.v1' THEN
        NOT EXISTS (SELECT 1 FROM recommendations WHERE id = chain)
    WHEN 'optiinfra.vote.cast.v1' THEN
        NOT EXISTS (SELECT 1 FROM votes WHERE votes.event_id = newest.event_id)
    WHEN 'optiinfra.approval.granted.v1' THEN
        NOT EXISTS (SELECT 1 FROM approvals WHERE approvals.event_id = newest.event_id)
    WHEN 'optiinfra.approval.denied.v1' THEN
        NOT EXISTS (SELECT 1 FROM approvals WHERE approvals.event_id = newest.event_id)
    WHEN 'optiinfra.outcome.recorded.v1' THEN
        NOT EXISTS (SELECT 1 FROM outcomes WHERE change_id = chain)
    ELSE false END
"""
