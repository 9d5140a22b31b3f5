"""What caused an event, and what it led to: read from the log both ways, within bounds."""

from __future__ import annotations

from dataclasses import dataclass

from optiinfra.schemas.errors import NotFound
from optiinfra.storage.postgres.database import Database
from optiinfra.storage.postgres.documents import EVENT_COLUMNS, Document

DEEPEST = 50
"""So many steps are followed either way."""
MOST = 200
"""So many effects are told, those nearest to the event first."""
NEAR = 5_000
"""Among so many events that follow (in its chain, and in the tenant's log) effects are looked for:
the log has no index by cause."""
BEFORE = 500
"""One batch may write an effect of another chain this far ahead of its cause."""


@dataclass(frozen=True, slots=True)
class Causes:
    """The event among its causes (depth below 0) and effects (above 0), in the order of depth."""

    found: list[Document]
    causes_cut: bool
    effects_cut: bool


async def causes_of(database: Database, tenant: str, event: str) -> Causes:
    """Raises `NotFound`, also for what belongs to another tenant; `Unavailable` without server."""
    async with database.connection() as connection:
        row = await connection.fetchrow(_FOUND, tenant, event)
        if row is None:
            raise NotFound(f"there is no event {event}")
        position, chain, version, beyond = row
        up = await connection.fetch(_UP, tenant, event)
        down = await connection.fetch(_DOWN, tenant, event, position, chain, version)
    causes = [Document(text, (depth,)) for text, depth in up]
    effects = [Document(text, (depth,)) for text, depth in down]
    return Causes(
        found=[*causes, *effects[:MOST]],
        causes_cut=-DEEPEST in {one.key[0] for one in causes},
        effects_cut=beyond or len(effects) > MOST or DEEPEST in {one.key[0] for one in effects},
    )


_FOUND = f"""
SELECT e.position, e.chain, e.version, EXISTS (
    SELECT FROM event_log l WHERE l.tenant = $1 AND l.position > e.position
    ORDER BY l.position OFFSET {NEAR} LIMIT 1
) FROM event_log e WHERE e.tenant = $1 AND e.event_id = $2
"""  # noqa: S608 - of constants
_SHOWN = f"""
SELECT row_to_json(shown)::text, shown.depth FROM (
    SELECT {EVENT_COLUMNS}, t.depth FROM told t JOIN event_log e ON e.event_id = t.event_id
) shown ORDER BY shown.depth, shown.position LIMIT {MOST + 1}
"""  # noqa: S608 - of constants
_UP = f"""
WITH RECURSIVE told AS (
    SELECT event_id, causation, 0 AS depth FROM event_log WHERE tenant = $1 AND event_id = $2
    UNION ALL
    SELECT e.event_id, e.causation, t.depth - 1 FROM told t
    JOIN event_log e ON e.tenant = $1 AND e.event_id = t.causation
    WHERE t.depth > -{DEEPEST}
)
{_SHOWN}
"""  # noqa: S608 - of constants
_DOWN = f"""
WITH RECURSIVE near AS MATERIALIZED (
    (SELECT event_id, causation FROM event_log
        WHERE chain = $4 AND version > $5 ORDER BY version LIMIT {NEAR})
    UNION
    (SELECT event_id, causation FROM event_log
        WHERE tenant = $1 AND position > $3 - {BEFORE} ORDER BY position LIMIT {NEAR + BEFORE})
), told AS (
    SELECT event_id, 1 AS depth FROM near WHERE causation = $2 AND event_id <> $2
    UNION ALL
    SELECT n.event_id, t.depth + 1 FROM told t JOIN near n ON n.causation = t.event_id
    WHERE t.depth < {DEEPEST} AND n.event_id <> $2
)
{_SHOWN}
"""  # noqa: S608 - of constants
