"""What several tables say together, as JSON that PostgreSQL writes; one statement each.

Everything is of one tenant. What is listed has a sort key, from which the next page begins.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from optiinfra.events.subjects import BY_PREFIX
from optiinfra.schemas.change import TERMINAL_STATES, ChangeState
from optiinfra.schemas.errors import NotFound
from optiinfra.storage.postgres.asked import Asked
from optiinfra.storage.postgres.asleep import ASLEEP
from optiinfra.storage.postgres.cards import CARD
from optiinfra.storage.postgres.database import Database
from optiinfra.storage.postgres.documents import Document
from optiinfra.storage.postgres.reading import Page

SHOWN = 20
"""So many of a list stand in a report; its count tells of them all."""


@dataclass(frozen=True, slots=True)
class OutcomeFilter:
    """Which outcomes; None means "any"."""

    deployment: str | None = None
    kind: str | None = None
    state: str | None = None
    since: datetime | None = None


@dataclass(frozen=True, slots=True)
class GateFilter:
    """Which gate answers of a deployment; None means "any"."""

    deployment: str
    assessor: str | None = None
    verdict: str | None = None


class Reports:
    """Reads of one tenant. All raise `Unavailable` without server."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def overview(self, tenant: str) -> Any:
        """Deployments, realised savings, what waits for people, and what is under way."""
        return await self._one(_OVERVIEW, tenant)

    async def waterfall(self, tenant: str) -> Any:
        """By deployment: what it cost before its first completed change, and what they saved."""
        return await self._one(_WATERFALL, tenant)

    async def deployment(self, tenant: str, deployment: str) -> Any:
        """What was declared. Raises `NotFound`."""
        found = await self._one(_DEPLOYMENT, tenant, deployment)
        if found is None:
            raise NotFound(f"there is no deployment {deployment}")
        return found

    async def deployment_ids(self, tenant: str) -> list[str]:
        """What is declared, by name."""
        async with self._database.connection() as connection:
            return [row[0] for row in await connection.fetch(_DEPLOYMENT_IDS, tenant)]

    async def outcomes(self, tenant: str, want: OutcomeFilter, page: Page) -> list[Document]:
        """How finished changes turned out, the latest first; sort key (at, id)."""
        asked = Asked("o.tenant", tenant)
        asked.that("o.body ->> 'deployment' = {}", want.deployment)
        asked.that("o.kind = {}", want.kind)
        asked.that("o.body ->> 'terminal' = {}", want.state)
        asked.that("o.at >= {}", want.since)
        asked.before("o.at", "o.change_id", page.after)
        return await self._list(_OUTCOMES, asked, page.limit)

    async def gates(self, tenant: str, want: GateFilter, page: Page) -> list[Document]:
        """What assessors answered to looks at a deployment, the latest first; key (position)."""
        asked = Asked("s.tenant", tenant)
        asked.that("s.deployment = {}", want.deployment)
        asked.that("e.type = {}", BY_PREFIX["gate.answered"].type)
        asked.that("f.answer ->> 'assessor' = {}", want.assessor)
        asked.that("f.answer ->> 'verdict' = {}", want.verdict)
        asked.that("e.position < {}", page.after[0] if page.after else None)
        return await self._list(_GATES, asked, page.limit)

    async def policies(self, tenant: str, page: Page) -> list[Document]:
        """The policies that were recorded, the newest first; sort key (number)."""
        asked = Asked("p.tenant", tenant)
        asked.that("p.number < {}", page.after[0] if page.after else None)
        return await self._list(_POLICIES, asked, page.limit)

    async def policy(self, tenant: str, number: int | None) -> Any:
        """One recorded policy with its document; None: the one in force. Raises `NotFound`."""
        found = await self._one(_POLICY, tenant, number)
        if found is None:
            named = "policy" if number is None else f"policy {number}"
            raise NotFound(
                f"there is no {named}", hint="a coordinator records its policy when it starts"
            )
        return found

    async def workers(self, tenant: str) -> Any:
        """All instances of agents with the change each is at, and where the coordinator stands."""
        return await self._one(_WORKERS, tenant)

    async def card(self, tenant: str, change: str) -> Any:
        """All that is known of a recommendation and of others like it. Raises `NotFound`."""
        found = await self._one(CARD, tenant, change)
        if found is None:
            raise NotFound(f"there is no recommendation {change}")
        return found

    async def _one(self, statement: str, *values: Any) -> Any:
        async with self._database.connection() as connection:
            text = await connection.fetchval(statement, *values)
        return None if text is None else json.loads(text)

    async def _list(self, statement: str, asked: Asked, limit: int) -> list[Document]:
        text = statement.format(where=asked.where, limit=int(limit))
        async with self._database.connection() as connection:
            rows = await connection.fetch(text, *asked.values)
        return [Document(row[0], tuple(row)[1:]) for row in rows]


def _type(prefix: str) -> str:
    return f"'{BY_PREFIX[prefix].type}'"


def _states(*states: ChangeState) -> str:
    return ", ".join(f"'{state.value}'" for state in sorted(states))


_SAVED = "(o.body #>> '{realised_usd_per_month,value}')::float8"
"""Null where it is not known."""
_MOVING = _states(ChangeState.APPROVED, ChangeState.EXECUTING, ChangeState.ROLLING_BACK)
_ASKED = f"""
SELECT e.at AS asked_at, e.body::json ->> 'expires_at' AS expires_at FROM event_log e
WHERE e.chain = s.change_id AND e.type = {_type("approval.requested")}
ORDER BY e.version DESC LIMIT 1
"""  # noqa: S608 - of constants
_PENDING = f"""
SELECT count(*) FILTER (WHERE NOT w.asleep) AS count,
    count(*) FILTER (WHERE w.asleep) AS snoozed,
    extract(epoch FROM clock_timestamp() - min(w.asked_at) FILTER (WHERE NOT w.asleep))::float8
        AS oldest_age_s,
    coalesce(json_agg(w ORDER BY w.asked_at)
        FILTER (WHERE NOT w.asleep AND w.place <= {SHOWN}), '[]') AS items
FROM (
    SELECT a.*, row_number() OVER (PARTITION BY a.asleep ORDER BY a.asked_at) AS place
    FROM (
        SELECT s.change_id AS id, r.body ->> 'title' AS title, s.deployment, r.risk, a.asked_at,
            a.expires_at, {ASLEEP} AS asleep
        FROM sagas s JOIN recommendations r ON r.id = s.change_id
        LEFT JOIN LATERAL ({_ASKED}) a ON true
        WHERE s.tenant = $1 AND s.state = {_states(ChangeState.AWAITING_APPROVAL)}
    ) a
) w
"""  # noqa: S608 - of constants
_RUNNING = f"""
SELECT count(*) AS count,
    coalesce(json_agg(w ORDER BY w.opened_at) FILTER (WHERE w.place <= {SHOWN}), '[]') AS items
FROM (
    SELECT s.change_id AS id, r.body ->> 'title' AS title, s.deployment, s.state,
        s.body::json ->> 'phase' AS phase, s.body::json ->> 'paused_by' AS paused_by, s.opened_at,
        row_number() OVER (ORDER BY s.opened_at) AS place
    FROM sagas s JOIN recommendations r ON r.id = s.change_id
    WHERE s.tenant = $1 AND s.state IN ({_MOVING})
) w
"""  # noqa: S608 - of constants
_COMPLETED = f"""
SELECT o.change_id, o.at, o.body ->> 'deployment' AS deployment, {_SAVED} AS saved,
    o.body -> 'usd_per_hour_before' AS before
FROM outcomes o WHERE o.tenant = $1 AND o.body ->> 'terminal' = 'completed' OFFSET 0
"""  # noqa: S608 - of constants
"""What sums need of an outcome, and no more: whole bodies would be sorted on disk."""
_REALISED = f"""
SELECT w.changes, w.known, w.usd_per_month, w.deployments, (
    SELECT max(e.position) FROM event_log e
    WHERE e.chain = w.last AND e.type = {_type("outcome.recorded")}
) AS event_position
FROM (
    SELECT count(*) AS changes, count(o.saved) AS known, sum(o.saved) AS usd_per_month,
        coalesce(json_agg(DISTINCT o.deployment), '[]') AS deployments,
        (array_agg(o.change_id ORDER BY o.at DESC))[1] AS last
    FROM ({_COMPLETED}) o
) w
"""  # noqa: S608 - of constants
_DECLARED = """
SELECT coalesce(json_agg(d.body ORDER BY d.id), '[]') FROM deployments d WHERE d.tenant = $1
"""
_OVERVIEW = f"""
SELECT json_build_object('deployments', ({_DECLARED}), 'pending', row_to_json(p),
    'running', row_to_json(q), 'realised', row_to_json(r))::text
FROM ({_PENDING}) p, ({_RUNNING}) q, ({_REALISED}) r
"""  # noqa: S608 - of constants
_WATERFALL = f"""
SELECT json_build_object('deployments', ({_DECLARED}), 'outcomes', (
    SELECT coalesce(json_object_agg(w.deployment, row_to_json(w)), '{{}}') FROM (
        SELECT o.deployment, count(*) AS changes, count(o.saved) AS known,
            sum(o.saved) AS usd_per_month,
            (array_agg(o.before ORDER BY o.at, o.change_id))[1] AS before
        FROM ({_COMPLETED}) o GROUP BY o.deployment
    ) w
))::text
"""  # noqa: S608 - of constants
_DEPLOYMENT = """
SELECT json_build_object('id', id, 'deployment', body, 'updated_at', updated_at)::text
FROM deployments WHERE tenant = $1 AND id = $2
"""
_DEPLOYMENT_IDS = "SELECT id FROM deployments WHERE tenant = $1 ORDER BY id"
_OUTCOMES = """
SELECT row_to_json(shown)::text, shown.at, shown.id FROM (
    SELECT o.change_id AS id, r.body ->> 'title' AS title, o.at, o.body AS outcome
    FROM outcomes o LEFT JOIN recommendations r ON r.id = o.change_id
    WHERE {where} ORDER BY o.at DESC, o.change_id DESC LIMIT {limit}
) shown
"""
_GATES = """
SELECT row_to_json(shown)::text, shown.position FROM (
    SELECT e.position, e.event_id AS id, e.at, e.chain AS change, f.answer
    FROM sagas s JOIN event_log e ON e.chain = s.change_id,
        json_to_record(e.body::json) AS f(answer json)
    WHERE {where} ORDER BY e.position DESC LIMIT {limit}
) shown
"""
_IN_FORCE = "p.number = (SELECT max(n.number) FROM policies n WHERE n.tenant = p.tenant)"
_OF_POLICY = f"p.number, p.version, p.sha256, p.by, p.written_at, p.at, {_IN_FORCE} AS in_force"
_POLICIES = f"""
SELECT row_to_json(shown)::text, shown.number FROM (
    SELECT {_OF_POLICY} FROM policies p WHERE {{where}} ORDER BY p.number DESC LIMIT {{limit}}
) shown
"""  # noqa: S608 - of constants
_POLICY = f"""
SELECT row_to_json(shown)::text FROM (
    SELECT {_OF_POLICY}, p.body::json AS policy FROM policies p
    WHERE p.tenant = $1 AND ($2::int IS NULL OR p.number = $2) ORDER BY p.number DESC LIMIT 1
) shown
"""  # noqa: S608 - of constants
_ENDED = _states(*TERMINAL_STATES)
_WORK = """
SELECT r.body ->> 'title' AS title, s.deployment, s.state
FROM sagas s JOIN recommendations r ON r.id = s.change_id
WHERE s.change_id = split_part(a.busy_with, ' ', 2) AND s.tenant = a.tenant
"""
_WORKERS = f"""
SELECT json_build_object('agents', (
    SELECT coalesce(json_agg(w ORDER BY w.agent, w.instance), '[]') FROM (
        SELECT a.agent, a.instance, a.version, a.capabilities, a.status, a.busy_with, a.handled,
            a.failed, a.registered_at, a.last_seen_at,
            greatest(0, extract(epoch FROM clock_timestamp() - a.last_seen_at))::float8 AS silent_s,
            (SELECT row_to_json(x) FROM ({_WORK}) x) AS work
        FROM agents a WHERE a.tenant = $1
    ) w
), 'coordinator', json_build_object(
    'policy', (SELECT version FROM policies WHERE tenant = $1 ORDER BY number DESC LIMIT 1),
    'last_written_at', (SELECT at FROM event_log WHERE tenant = $1 ORDER BY position DESC LIMIT 1),
    'open_changes', (
        SELECT count(*) FROM sagas WHERE tenant = $1 AND state NOT IN ({_ENDED})
    ),
    'overdue_timers', (
        SELECT count(*) FROM timers WHERE tenant = $1 AND fire_at < clock_timestamp()
    )
))::text
"""  # noqa: S608 - of constants
