"""What a batch must know of the database before it decides: one statement."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from optiinfra.storage.postgres.append import SagaRecord, record_of
from optiinfra.storage.postgres.database import Connection


@dataclass(frozen=True, slots=True)
class Moving:
    """A change that holds its target, as `World` needs it."""

    change: str
    tenant: str
    deployment: str | None
    state: str
    usd_per_hour: float | None = None
    """What its target cost when it was proposed; None: unknown."""


@dataclass(frozen=True, slots=True)
class Question:
    """Events that came in for `consumer`, the changes that they are about, and their tenants.

    `known` are the hashes at which changes are known already: their bodies are not read.
    `deployments` are targets of changes that may have no row yet; `counts_moves` has `View.moves`
    counted.
    """

    consumer: str
    events: Sequence[str]
    changes: Sequence[str]
    deployments: Sequence[str]
    known: Mapping[str, str]
    tenants: Sequence[str]
    counts_moves: bool = True


@dataclass(frozen=True, slots=True)
class View:
    """The answer, as of `now` on the database's clock."""

    now: datetime
    fresh: frozenset[str]
    """Events that were not received before; they are marked as received from here on."""
    records: Mapping[str, SagaRecord]
    """The changes that were asked for, and all open ones of the same deployments."""
    nudged: frozenset[str]
    """Those of them that wait and whose turn has come."""
    moving: Sequence[Moving]
    """All changes of the tenants that are being carried out."""
    moves: Mapping[tuple[str, str | None], int]
    """How many changes began to move in the last hour, by (tenant, deployment); the deployment is
    None for all that are no targets of this batch."""
    stopped: frozenset[str]
    """The tenants whose stop switch is on."""
    waits: bool
    """Whether any change of the tenants is deferred."""
    policies: Mapping[str, int]
    """The number of each tenant's newest policy."""


async def look(connection: Connection, asked: Question) -> View:
    """Marks the events as received and reads everything else as it was just before."""
    hashes = [asked.known.get(change) for change in asked.changes]
    row = await connection.fetchrow(
        _LOOK,
        asked.consumer,
        asked.events,
        asked.changes,
        hashes,
        asked.tenants,
        asked.deployments,
        asked.counts_moves,
    )
    assert row is not None
    records = [record_of(one) for one in json.loads(row["records"])]
    moves = json.loads(row["moves"])
    return View(
        now=row["now"],
        fresh=frozenset(row["fresh"]),
        nudged=frozenset(row["nudged"]),
        records={record.change: record for record in records},
        moving=[Moving(*one) for one in json.loads(row["moving"])],
        moves={(tenant, deployment): count for tenant, deployment, count in moves},
        stopped=frozenset(row["stopped"]),
        waits=row["waits"],
        policies=json.loads(row["policies"]),
    )


_LOOK = """
WITH received AS (
    INSERT INTO inbox (consumer, event_id) SELECT $1, id FROM unnest($2::text[]) AS id
    ON CONFLICT DO NOTHING RETURNING event_id
),
wanted AS (
    SELECT change_id, tenant, deployment, state, version, hash, moving_since, opened_at,
        CASE WHEN hash = known THEN '' ELSE body END AS body
    FROM unnest($3::text[], $4::text[]) AS asked(change_id, known) JOIN sagas USING (change_id)
),
targets AS (
    SELECT unnest($6::text[]) AS deployment UNION SELECT deployment FROM wanted
),
rivals AS (
    SELECT open.* FROM targets CROSS JOIN LATERAL (
        SELECT change_id, tenant, deployment, state, version, hash, moving_since, opened_at, body
        FROM sagas WHERE sagas.deployment = targets.deployment
        AND tenant = ANY($5::text[]) AND change_id <> ALL($3::text[])
        AND state IN ('deferred', 'voting', 'awaiting_approval', 'approved', 'executing',
            'rolling_back')
        OFFSET 0  -- by the index of open changes' deployments, whatever the planner would rather
    ) AS open
),
read AS (
    SELECT * FROM wanted UNION ALL
    SELECT change_id, tenant, deployment, state, version, hash, moving_since, opened_at, body
    FROM rivals
),
held AS (
    SELECT change_id, s.tenant, s.deployment, state,
        (r.body ->> 'spend_usd_per_hour')::float8 AS usd
    FROM sagas s LEFT JOIN recommendations r ON r.id = s.change_id
    WHERE s.tenant = ANY($5::text[]) AND state IN ('executing', 'rolling_back')
),
moved AS (
    SELECT s.tenant, t.deployment, count(*) AS n FROM sagas s LEFT JOIN targets t USING (deployment)
    WHERE $7 AND s.tenant = ANY($5::text[]) AND moving_since > clock_timestamp() - interval '1 hour'
    GROUP BY s.tenant, t.deployment
)
SELECT clock_timestamp() AS now,
    ARRAY(SELECT event_id FROM received) AS fresh,
    (SELECT coalesce(json_agg(read), '[]') FROM read)::text AS records,
    ARRAY(
        SELECT change_id FROM rivals JOIN timers USING (change_id)
        WHERE name = 'turn' AND (nudged OR fire_at <= clock_timestamp())
    ) AS nudged,
    (
        SELECT coalesce(json_agg(json_build_array(change_id, tenant, deployment, state, usd)), '[]')
        FROM held
    )::text AS moving,
    (SELECT coalesce(json_agg(json_build_array(tenant, deployment, n)), '[]') FROM moved)::text
        AS moves,
    ARRAY(SELECT tenant FROM switches WHERE tenant = ANY($5::text[]) AND stopped) AS stopped,
    EXISTS (SELECT 1 FROM sagas WHERE tenant = ANY($5::text[]) AND state = 'deferred') AS waits,
    (
        SELECT coalesce(json_object_agg(tenant, newest), '{}') FROM (
            SELECT tenant, max(number) AS newest FROM policies
            WHERE tenant = ANY($5::text[]) GROUP BY tenant
        ) AS p
    )::text AS policies
"""
