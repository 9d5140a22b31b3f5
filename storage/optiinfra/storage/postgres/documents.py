"""What people look at most, as JSON that PostgreSQL writes: checked when written, not again.

Every read is one prepared statement. Bodies leave as they were validated on their way in; the
shapes are those of the API's models, which a contract test holds real answers against.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from optiinfra.events.subjects import BY_PREFIX
from optiinfra.schemas.errors import NotFound
from optiinfra.storage.postgres.asked import Asked
from optiinfra.storage.postgres.asleep import SNOOZED
from optiinfra.storage.postgres.database import Database
from optiinfra.storage.postgres.reading import ChangeFilter, ConflictFilter, EventFilter, Page

TIMELINE_LIMIT = 5_000
"""More events than any change has; a page of a change never grows without bound."""


@dataclass(frozen=True, slots=True)
class Document:
    """One JSON object as text; `key` is its place in the order of its list."""

    text: str
    key: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class Proposal:
    """A recommendation with its votes and approvals as JSON text."""

    text: str
    version_hash: str


@dataclass(frozen=True, slots=True)
class Story:
    """One change as JSON texts: the object without its stages and timeline, and what those need.

    `planned` is the list of planned stages, `told` the events that stages are read out of.
    """

    text: str
    planned: str
    told: str
    timeline: str


class Documents:
    """Hot reads of one tenant. All raise `Unavailable` without server."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def agents(self, tenant: str) -> list[Document]:
        """The instances of all agents, by name; `silent_s` is how long each has been silent."""
        async with self._database.connection() as connection:
            return [Document(row[0]) for row in await connection.fetch(_AGENTS, tenant)]

    async def recommendations(self, tenant: str, want: ChangeFilter, page: Page) -> list[Document]:
        """Recommendations with their change's state, newest first; sort key (proposed_at, id)."""
        asked = Asked("r.tenant", tenant)
        asked.filter_changes(want)
        asked.before("r.proposed_at", "r.id", page.after)
        return await self._list(_RECOMMENDATIONS, asked, page.limit)

    async def changes(self, tenant: str, want: ChangeFilter, page: Page) -> list[Document]:
        """Changes, the latest moved first; sort key (updated_at, id)."""
        asked = Asked("s.tenant", tenant)
        asked.filter_changes(want)
        asked.before("s.updated_at", "s.change_id", page.after)
        return await self._list(_CHANGES, asked, page.limit)

    async def events(self, tenant: str, want: EventFilter, page: Page) -> list[Document]:
        """The tenant's log, oldest first; sort key (position)."""
        asked = Asked("e.tenant", tenant)
        asked.that("e.chain = {}", want.change)
        asked.that("e.type LIKE {}", want.kind and f"optiinfra.{want.kind}.v%")
        asked.that("e.at >= {}", want.since)
        asked.that("e.at < {}", want.until)
        asked.that("e.position > {}", page.after[0] if page.after else None)
        return await self._list(_EVENTS, asked, page.limit)

    async def conflicts(self, tenant: str, want: ConflictFilter, page: Page) -> list[Document]:
        """What arbitration decided, the latest first; sort key (position)."""
        asked = Asked("e.tenant", tenant)
        asked.that("e.type = {}", BY_PREFIX["conflict.resolved"].type)
        asked.that("{} IN (f.change, f.against)", want.change)
        asked.that("f.verdict = {}", want.verdict)
        asked.that("f.rule = {}", want.rule)
        asked.that("e.at >= {}", want.since)
        asked.that("e.position < {}", page.after[0] if page.after else None)
        return await self._list(_CONFLICTS, asked, page.limit)

    async def recommendation(self, tenant: str, change: str) -> Proposal:
        """Raises `NotFound`, also for what belongs to another tenant."""
        async with self._database.connection() as connection:
            row = await connection.fetchrow(_RECOMMENDATION, tenant, change)
        if row is None:
            raise NotFound(f"there is no recommendation {change}")
        return Proposal(*row)

    async def change(self, tenant: str, change: str) -> Story:
        """One change with everything that was said about it. Raises `NotFound`."""
        async with self._database.connection() as connection:
            row = await connection.fetchrow(_CHANGE, tenant, change)
        if row is None:
            raise NotFound(f"there is no change {change}")
        return Story(*row)

    async def _list(self, statement: str, asked: Asked, limit: int) -> list[Document]:
        text = statement.format(where=asked.where, limit=int(limit))
        async with self._database.connection() as connection:
            rows = await connection.fetch(text, *asked.values)
        return [Document(row[0], tuple(row)[1:]) for row in rows]


_AGENTS = """
SELECT row_to_json(shown)::text FROM (
    SELECT agent, instance, version, capabilities, status, busy_with, handled, failed,
        registered_at, last_seen_at,
        greatest(0, extract(epoch FROM clock_timestamp() - last_seen_at))::float8 AS silent_s
    FROM agents WHERE tenant = $1 ORDER BY agent, instance
) shown
"""
_RECOMMENDATIONS = f"""
SELECT row_to_json(shown)::text, shown.proposed_at, shown.id FROM (
    SELECT r.id, s.state, r.version_hash, r.body AS recommendation, r.proposed_at, s.updated_at,
        {SNOOZED} AS snoozed
    FROM recommendations r JOIN sagas s ON s.change_id = r.id
    WHERE {{where}} ORDER BY r.proposed_at DESC, r.id DESC LIMIT {{limit}}
) shown
"""  # noqa: S608 - of constants
_APPROVALS = """
SELECT coalesce(json_agg(json_build_object('granted', a.granted,
    'by', a.by_kind || ':' || a.by_name, 'version_hash', a.version_hash, 'reason', a.reason,
    'at', a.at) ORDER BY a.at), '[]')
FROM approvals a WHERE a.change_id = r.id
"""
_VOTES = """
SELECT coalesce(json_agg(v.body ORDER BY v.round, v.agent, v.cast_at), '[]')
FROM votes v WHERE v.change_id = r.id
"""
_NEEDED = "coalesce((s.body::json ->> 'needed')::integer, 1) AS approvals_needed"
_RECOMMENDATION = f"""
SELECT row_to_json(shown)::text, shown.version_hash FROM (
    SELECT r.id, s.state, r.version_hash, r.body AS recommendation, r.proposed_at, s.updated_at,
        {SNOOZED} AS snoozed, ({_VOTES}) AS votes, ({_APPROVALS}) AS approvals, {_NEEDED}
    FROM recommendations r JOIN sagas s ON s.change_id = r.id
    WHERE r.tenant = $1 AND r.id = $2
) shown
"""  # noqa: S608 - of constants
_OF_SAGA = """
    b.phase, b.step, b.paused_by, b.waiting, b.rollback_reason, b.end_reason,
    s.version, s.opened_at, s.updated_at
"""
_CHANGES = f"""
SELECT row_to_json(shown)::text, shown.updated_at, shown.id FROM (
    SELECT s.id, s.deployment, s.title, s.kind, s.risk, s.proposer, s.state, {_OF_SAGA}
    FROM (
        SELECT s.change_id AS id, s.deployment, r.body ->> 'title' AS title, r.kind, r.risk,
            r.proposer, s.state, s.version, s.opened_at, s.updated_at, s.body
        FROM recommendations r JOIN sagas s ON s.change_id = r.id
        WHERE {{where}} ORDER BY s.updated_at DESC, s.change_id DESC LIMIT {{limit}}
    ) s, json_to_record(s.body::json) AS b(phase text, step json, paused_by text, waiting text,
        rollback_reason text, end_reason text)
) shown
"""  # noqa: S608 - of constants
EVENT_COLUMNS = """
    e.position, e.event_id AS id,
    split_part(e.type, '.', 2) || '.' || split_part(e.type, '.', 3) AS kind,
    e.chain, e.version, e.source, e.at, e.said_at, e.correlation, e.causation, e.hash,
    e.body::json AS fact
"""
_EVENTS = f"""
SELECT row_to_json(shown)::text, shown.position FROM (
    SELECT {EVENT_COLUMNS} FROM event_log e
    WHERE {{where}} ORDER BY e.position LIMIT {{limit}}
) shown
"""  # noqa: S608 - of constants
_PARTY = """
(SELECT json_build_object('id', {0}, 'title', min(r.body ->> 'title'),
    'deployment', min(s.deployment), 'state', min(s.state))
FROM sagas s LEFT JOIN recommendations r ON r.id = s.change_id WHERE s.change_id = {0})
"""
_CONFLICTS = f"""
SELECT row_to_json(shown)::text, shown.position FROM (
    SELECT e.position, e.event_id AS id, e.at, {_PARTY.format("f.change")} AS change,
        {_PARTY.format("f.against")} AS against, f.verdict, f.claim, f.rule, f.reason,
        f.rules_version
    FROM event_log e, json_to_record(e.body::json) AS f(change text, against text, verdict text,
        claim text, rule text, reason text, rules_version text)
    WHERE {{where}} ORDER BY e.position DESC LIMIT {{limit}}
) shown
"""  # noqa: S608 - of constants
_EXECUTIONS = """
SELECT coalesce(json_agg(json_build_object('kind', x.kind, 'stage', x.stage, 'attempt', x.attempt,
    'fence', x.fence, 'result', x.result, 'begun_at', x.begun_at, 'finished_at', x.finished_at)
    ORDER BY x.begun_at, x.fence), '[]')
FROM executions x WHERE x.change_id = r.id
"""
_CHANGE = f"""
SELECT row_to_json(shown)::text, (r.body -> 'rollout' -> 'stages')::text, t.told, t.timeline
FROM recommendations r JOIN sagas s ON s.change_id = r.id,
LATERAL json_to_record(s.body::json) AS b(phase text, step json, paused_by text, waiting text,
    rollback_reason text, end_reason text, round integer, look integer, arms json),
LATERAL (
    SELECT s.change_id AS id, s.deployment, r.body ->> 'title' AS title, r.kind, r.risk,
        r.proposer, s.state, {_OF_SAGA}, b.round, b.look, b.arms,
        r.body AS recommendation, r.version_hash,
        ({_VOTES}) AS votes, ({_APPROVALS}) AS approvals, {_NEEDED}, ({_EXECUTIONS}) AS executions
) shown,
LATERAL (
    SELECT coalesce('[' || string_agg(w.text, ',') || ']', '[]') AS timeline,
        coalesce('[' || string_agg(w.text, ',') FILTER (
            WHERE w.kind LIKE 'execution.%' OR w.kind LIKE 'gate.%') || ']', '[]') AS told
    FROM (
        SELECT e.kind, row_to_json(e)::text AS text FROM (
            SELECT {EVENT_COLUMNS} FROM event_log e
            WHERE e.chain = s.change_id ORDER BY e.version LIMIT {TIMELINE_LIMIT}
        ) e OFFSET 0
    ) w
) t
WHERE s.tenant = $1 AND s.change_id = $2
"""  # noqa: S608 - of constants
