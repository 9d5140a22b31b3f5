"""Writes what a batch did: log, saga rows and outbox in one statement."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from optiinfra.events.envelope import Event
from optiinfra.events.facts import TimerSet
from optiinfra.events.subjects import row_of
from optiinfra.schemas.errors import Conflict
from optiinfra.storage.postgres.chain import Link
from optiinfra.storage.postgres.database import Connection
from optiinfra.storage.postgres.projections import projected
from optiinfra.storage.postgres.together import Part, columns, run_together


@dataclass(frozen=True, slots=True)
class SagaRecord:
    """A saga row; `body` is the saga as JSON, which only the coordinator understands.

    `version` and `hash` are those of the last link of the change's chain. `body` is empty when
    the reader had named this very hash as known.
    """

    change: str
    tenant: str
    deployment: str | None
    state: str
    version: int
    hash: str
    body: str
    moving_since: datetime | None
    opened_at: datetime


def record_of(row: Mapping[str, Any]) -> SagaRecord:
    """A row of `sagas`, also one that was read as JSON: then its times are texts."""
    since, opened = row["moving_since"], row["opened_at"]
    return SagaRecord(
        change=row["change_id"],
        tenant=row["tenant"],
        deployment=row["deployment"],
        state=row["state"],
        version=row["version"],
        hash=row["hash"],
        body=row["body"],
        moving_since=datetime.fromisoformat(since) if isinstance(since, str) else since,
        opened_at=datetime.fromisoformat(opened) if isinstance(opened, str) else opened,
    )


@dataclass(frozen=True, slots=True)
class LogEntry:
    """An event as it goes into the log; `said` ones are published through the outbox too."""

    event: Event
    said: bool


@dataclass(slots=True)
class SagaWrite:
    """What one batch did to one change: the new row, and the entries since `base`."""

    base: SagaRecord
    state: str
    deployment: str | None
    body: str
    moving_since: datetime | None
    entries: list[LogEntry] = field(default_factory=list)


async def append(connection: Connection, links: Sequence[Link], said: Iterable[Event]) -> None:
    """Appends to the log, and fills the outbox with what we have said ourselves."""
    await run_together(connection, [_log(links), _outbox(said)])


async def append_changes(
    connection: Connection,
    writes: Mapping[str, SagaWrite],
    chained: Mapping[str, Sequence[Link]],
    now: datetime,
) -> None:
    """Appends to the chains of changes, saves their rows, fills the outbox and the projections.

    Raises `Conflict` when a row is no longer at the version that was read.
    """
    entries = [entry for write in writes.values() for entry in write.entries]
    rows = (saga_row(write, chained[change][-1], now) for change, write in writes.items())
    parts = [
        _log([link for change in writes for link in chained[change]]),
        _outbox(entry.event for entry in entries if entry.said),
        Part("given", _GIVEN, columns(rows, 11)),
        Part("inserted", _INSERTED, ()),
        Part("updated", _UPDATED, ()),
        *projected((entry.event, now) for entry in entries),
    ]
    saved = await run_together(connection, parts, _SAVED)
    if saved is None or saved[0] != len(writes):
        raise Conflict("another coordinator has moved a change on", hint="try again")


def _log(links: Sequence[Link]) -> Part:
    return Part("log", _LOG, columns(links, 14))


def _outbox(said: Iterable[Event]) -> Part:
    """Timers stand in a table of their own and are handed to the broker from there."""
    rows = [
        (event.id, stream.value if stream else "", event.traceparent)
        for event in said
        if not isinstance(event.fact, TimerSet)
        for stream in (row_of(event.fact).stream,)
    ]
    return Part("outboxed", _OUTBOX, columns(rows, 3))


def saga_row(write: SagaWrite, head: Link, now: datetime) -> tuple[object, ...]:
    base = write.base
    return (
        base.change,
        base.tenant,
        write.deployment,
        write.state,
        head.version,
        head.hash,
        write.body,
        write.moving_since,
        base.opened_at,
        now,
        base.version,
    )


_LOG = """
INSERT INTO event_log (event_id, tenant, chain, version, type, subject, source, at, said_at,
    correlation, causation, body, prev_hash, hash)
SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::int[], $5::text[], $6::text[],
    $7::text[], $8::timestamptz[], $9::timestamptz[], $10::text[], $11::text[], $12::text[],
    $13::text[], $14::text[])
"""
_OUTBOX = """
INSERT INTO outbox (event_id, stream, traceparent)
SELECT * FROM unnest($1::text[], $2::text[], $3::text[])
"""
_GIVEN = """
SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::int[], $6::text[],
    $7::text[], $8::timestamptz[], $9::timestamptz[], $10::timestamptz[], $11::int[]) AS n(
    change_id, tenant, deployment, state, version, hash, body, moving_since, opened_at,
    updated_at, base_version)
"""
_INSERTED = """
INSERT INTO sagas (change_id, tenant, deployment, state, version, hash, body, moving_since,
    opened_at, updated_at)
SELECT change_id, tenant, deployment, state, version, hash, body, moving_since, opened_at,
    updated_at FROM given WHERE base_version = 0
ON CONFLICT DO NOTHING RETURNING 1
"""
_UPDATED = """
UPDATE sagas SET deployment = g.deployment, state = g.state, version = g.version, hash = g.hash,
    body = g.body, moving_since = g.moving_since, updated_at = g.updated_at
FROM given AS g WHERE g.base_version > 0
AND sagas.change_id = g.change_id AND sagas.version = g.base_version RETURNING 1
"""
_SAVED = "SELECT (SELECT count(*) FROM inserted) + (SELECT count(*) FROM updated)"
