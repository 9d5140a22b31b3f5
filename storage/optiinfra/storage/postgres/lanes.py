"""Who did what in a stretch of time, read from the log: marks, changes on their way, silences."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import asyncpg

from optiinfra.events.facts import TERMINAL_FACTS
from optiinfra.events.subjects import BY_PREFIX
from optiinfra.schemas.change import TERMINAL_STATES, ChangeState
from optiinfra.storage.postgres.database import Connection, Database

PEOPLE, COORDINATOR = "people", "coordinator"
MOST_CHANGES = 200
MOST_SIGNS = 200
"""So many of the last comings and goings of agents are looked through for who is silent."""


@dataclass(frozen=True, slots=True)
class LanesQuery:
    """A tenant's log of the last `window_s`, of all deployments or of one.

    Events of one kind in one `slot_s` of a lane make one mark.
    """

    tenant: str
    window_s: float
    slot_s: float
    deployment: str | None = None


@dataclass(frozen=True, slots=True)
class Marked:
    """`count` events of one kind that `lane` said; `event` is the first, `detail` its verdict."""

    lane: str
    kind: str
    detail: str | None
    at: datetime
    last_at: datetime
    count: int
    event: str
    change: str | None
    title: str | None


@dataclass(frozen=True, slots=True)
class Told:
    """What the log says of one step of a change; `step` is its kind, `verdict` that of a gate."""

    kind: str
    at: datetime
    event: str
    step: str | None
    stage: int | None
    share: float | None
    verdict: str | None


@dataclass(frozen=True, slots=True)
class Moved:
    """A change that is open or moved since the beginning, with what was told of its steps."""

    change: str
    title: str | None
    deployment: str | None
    executor: str | None
    state: ChangeState
    opened_at: datetime
    told: list[Told] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Sign:
    """An instance of an agent was heard (again), or has fallen silent after `last_seen_at`."""

    agent: str
    instance: str
    is_lost: bool
    at: datetime
    last_seen_at: datetime | None
    event: str


@dataclass(frozen=True, slots=True)
class LanesTold:
    """Marks by time; changes, those on their way first; signs by time. The clock is the log's."""

    since: datetime
    until: datetime
    marks: list[Marked]
    changes: list[Moved]
    more_changes: bool
    signs: list[Sign]


async def lanes_told(database: Database, want: LanesQuery) -> LanesTold:
    """Raises `Unavailable` without server."""
    async with database.connection() as connection:
        until: datetime = await connection.fetchval("SELECT clock_timestamp()")
        since = until - timedelta(seconds=want.window_s)
        span = want.tenant, since, until, want.deployment
        marks = await connection.fetch(_MARKS, *span, want.slot_s)
        changes = await connection.fetch(_CHANGED, *span)
        told = await _told(connection, [row["change"] for row in changes])
        signs = await connection.fetch(_SIGNS, want.tenant, until)
    moved = [
        Moved(**{**dict(row), "state": ChangeState(row["state"])}, told=told.get(row["change"], []))
        for row in changes[:MOST_CHANGES]
    ]
    return LanesTold(
        since=since,
        until=until,
        marks=[Marked(**dict(row)) for row in marks],
        changes=moved,
        more_changes=len(changes) > MOST_CHANGES,
        signs=[Sign(**dict(row)) for row in reversed(signs)],
    )


async def _told(connection: Connection, changes: list[str]) -> dict[str, list[Told]]:
    rows: list[asyncpg.Record] = await connection.fetch(_TOLD, changes, _types(_OF_STEPS))
    found: dict[str, list[Told]] = {}
    for row in rows:
        values = dict(row)
        found.setdefault(values.pop("chain"), []).append(Told(**values))
    return found


def _types(kinds: Iterable[str]) -> list[str]:
    return [BY_PREFIX[kind].type for kind in kinds]


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in sorted(names))


_OF_STEPS = (
    "execution.started", "execution.staged", "execution.failed",
    "gate.closed", "rollback.requested", "rollback.completed", *TERMINAL_FACTS,
)  # fmt: skip
_UNSHOWN = _listed(
    _types(("change.opened", "execution.requested", "gate.requested", "timer.set", "timer.fired"))
)
"""Questions of which the answer is shown, and what spans show."""
_OPEN = _listed(set(ChangeState) - TERMINAL_STATES)
_KIND = "split_part(e.type, '.', 2) || '.' || split_part(e.type, '.', 3)"
_LAST_TOKEN = "reverse(split_part(reverse(e.subject), '.', 1))"  # noqa: S105 - of a subject
_LANE = f"""
CASE
    WHEN {_KIND} IN ('vote.cast', 'gate.answered', 'agent.registered', 'agent.lost')
        THEN {_LAST_TOKEN}
    WHEN {_KIND} IN ('recommendation.proposed', 'execution.started', 'execution.staged',
        'execution.failed', 'rollback.completed') THEN coalesce(r.proposer, e.source)
    WHEN {_KIND} IN ('control.requested', 'switch.turned') THEN '{PEOPLE}'
    WHEN e.type LIKE 'optiinfra.approval.%' AND {_KIND} <> 'approval.requested'
        AND e.source <> '{COORDINATOR}' THEN '{PEOPLE}'
    WHEN {_KIND} = 'outcome.recorded' THEN 'cost'
    WHEN e.type LIKE 'optiinfra.quality.%' THEN 'application'
    WHEN {_KIND} = 'telemetry.gap' THEN 'performance'
    ELSE '{COORDINATOR}'
END
"""
_DETAIL = f"""
CASE {_KIND}
    WHEN 'vote.cast' THEN v.verdict
    WHEN 'gate.answered' THEN e.body::json -> 'answer' ->> 'verdict'
    WHEN 'gate.closed' THEN e.body::json ->> 'verdict'
    WHEN 'switch.turned' THEN CASE e.body::json ->> 'stopped' WHEN 'true' THEN 'stopped' END
END
"""
_MARKS = f"""
WITH said AS (
    SELECT e.position, e.at, {_KIND} AS kind, {_LANE} AS lane, {_DETAIL} AS detail
    FROM event_log e LEFT JOIN recommendations r ON r.id = e.chain
        LEFT JOIN votes v ON v.event_id = e.event_id
    WHERE e.tenant = $1 AND e.at >= $2 AND e.at < $3 AND e.type NOT IN ({_UNSHOWN})
    AND ($4::text IS NULL OR e.chain LIKE 'tenant-%' OR r.deployment = $4)
), marked AS (
    SELECT lane, kind, detail, min(at) AS at, max(at) AS last_at, count(*) AS count,
        min(position) AS position
    FROM said GROUP BY lane, kind, detail, floor(extract(epoch FROM at) / $5::float8)
)
SELECT m.lane, m.kind, m.detail, m.at, m.last_at, m.count, e.event_id AS event, r.id AS change,
    r.body ->> 'title' AS title
FROM marked m JOIN event_log e ON e.position = m.position
    LEFT JOIN recommendations r ON r.id = e.chain
ORDER BY m.at, m.position
"""  # noqa: S608 - of constants
_CHANGED = f"""
SELECT s.change, r.body ->> 'title' AS title, s.deployment, r.proposer AS executor, s.state,
    s.opened_at
FROM (
    SELECT change_id AS change, deployment, state, opened_at,
        state IN ('executing', 'rolling_back') AS moves, updated_at
    FROM sagas WHERE tenant = $1 AND (updated_at >= $2 OR state IN ({_OPEN})) AND opened_at < $3
    AND ($4::text IS NULL OR deployment = $4)
    ORDER BY moves DESC, updated_at DESC, change_id LIMIT {MOST_CHANGES + 1}
) s LEFT JOIN recommendations r ON r.id = s.change
ORDER BY s.moves DESC, s.updated_at DESC, s.change
"""  # noqa: S608 - of constants
_STEP = f"""
CASE {_KIND}
    WHEN 'execution.staged' THEN e.body::json -> 'result' -> 'step'
    WHEN 'execution.started' THEN e.body::json -> 'step'
    WHEN 'execution.failed' THEN e.body::json -> 'step'
END
"""
_TOLD = f"""
SELECT e.chain, {_KIND} AS kind, e.at, e.event_id AS event, t.step ->> 'kind' AS step,
    coalesce((t.step ->> 'stage')::int, t.stage) AS stage, (t.step ->> 'share')::float8 AS share,
    t.verdict
FROM event_log e, LATERAL (
    SELECT {_STEP} AS step,
        CASE {_KIND} WHEN 'gate.closed' THEN (e.body::json ->> 'stage')::int END AS stage,
        CASE {_KIND} WHEN 'gate.closed' THEN e.body::json ->> 'verdict'
            WHEN 'rollback.completed' THEN e.body::json ->> 'proved' END AS verdict
) t
WHERE e.chain = ANY($1) AND e.type = ANY($2) ORDER BY e.chain, e.version
"""  # noqa: S608 - of constants
_SIGNS = f"""
SELECT split_part(e.subject, '.', 4) AS agent, e.body::json ->> 'instance' AS instance,
    e.type = '{BY_PREFIX["agent.lost"].type}' AS is_lost, e.at,
    (e.body::json ->> 'last_seen_at')::timestamptz AS last_seen_at, e.event_id AS event
FROM event_log e WHERE e.tenant = $1 AND e.type LIKE 'optiinfra.agent.%' AND e.at < $2
ORDER BY e.position DESC LIMIT {MOST_SIGNS}
"""  # noqa: S608 - of constants
